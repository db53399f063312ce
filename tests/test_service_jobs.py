"""Jobs in a real SQLite database: what is planned, kept, taken up again, written into the manifest."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.claims import Claims
from service.database import database_url, open_database, workers
from service.jobs import Conflict, Jobs, JobSpec, PictureState
from service.manifest import write_manifest
from service.plan import output_key, picture_seed, plan
from service.storage import Folder, StorageError
from service.upscale import UpscaleOptions
from tests.jobs_fakes import fill, picture_bytes
from tests.jobs_servers import Postgres

ME = "worker"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(open_database(database_url(tmp_path / "data", None)))
    with jobs.engine.begin() as connection:
        connection.execute(sa.insert(workers), [{"id": ME, "beat": 0}])
    yield jobs
    jobs.close()


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    fill(tmp_path / "in", 3)
    return JobSpec(str(tmp_path / "in"), str(tmp_path / "out"), UpscaleOptions(steps=0))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], AbstractContextManager[None]]:
    """What makes a folder one that this user may not read, who may be root."""
    scandir = os.scandir

    @contextmanager
    def closed(folder: Path) -> Iterator[None]:
        def refusing(path: Any) -> Any:
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refusing)
            yield

    return closed


def planned(jobs: Jobs, spec: JobSpec) -> str:
    id = jobs.create(spec)
    plan(jobs, id)
    return id


def chunks(jobs: Jobs, id: str) -> dict[str, tuple[int, bool]]:
    """The chunk of each pending picture, and whether its result is to be looked into."""
    found = {}
    for number in range(1, 100):
        for row in jobs.chunk(id, number):
            found[row["key"]] = (number, bool(row["verify"]))
    return found


def do(jobs: Jobs, id: str, state: PictureState = PictureState.DONE) -> None:
    """Record every pending picture as done, with a result of its name's length in bytes."""
    spec = jobs.spec(id)
    for key, (number, _) in chunks(jobs, id).items():
        assert Claims(jobs.engine).begin(id, number, key, ME)
        output = output_key(key, spec.options.format)
        record: dict[str, Any] = {"source": key, "output": output, "state": state.name.lower(), "seconds": 1.0}
        if state is PictureState.DONE:
            record |= {"settings": asdict(spec.options), "seed": picture_seed(spec.seed, key)}
            size = Folder(Path(spec.output)).write(output, key.encode())
            record |= {"output_bytes": size, "source_bytes": (Path(spec.input) / key).stat().st_size}
        assert Claims(jobs.engine).record(id, key, ME, state, record)[0]


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "manifest.jsonl").read_text().splitlines()]


def test_pictures_are_chosen_by_suffix_or_glob_and_hidden_ones_never(jobs: Jobs, spec: JobSpec) -> None:
    root = Path(spec.input)
    for name in ("b.JPG", "notes.txt", ".hidden.png", "deep/c.tiff", "deep/.x/d.png", "manifest.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    flat = planned(jobs, spec)
    assert sorted(chunks(jobs, flat)) == ["00000.png", "00001.png", "00002.png", "b.JPG"]
    other = replace(spec, output=spec.output + "2", recursive=True)
    assert sorted(chunks(jobs, planned(jobs, other)))[-2:] == ["b.JPG", "deep/c.tiff"]
    named = replace(spec, output=spec.output + "3", recursive=True, glob="*.txt")
    assert list(chunks(jobs, planned(jobs, named))) == ["notes.txt"]
    path = replace(spec, output=spec.output + "4", recursive=True, glob="deep/*")
    assert list(chunks(jobs, planned(jobs, path))) == ["deep/c.tiff"]


def test_a_result_has_its_pictures_name_with_a_suffix_added_where_the_format_is_another() -> None:
    assert output_key("a/b.jpg", None) == "a/b.jpg"
    assert output_key("a/b.JPEG", "JPEG") == "a/b.JPEG"
    assert output_key("b.bmp", None) == "b.bmp.png"
    keys = [output_key(key, "PNG") for key in ("b.jpg", "b.png", "b.tif", "c")]
    assert keys == ["b.jpg.png", "b.png", "b.tif.png", "c.png"]


def test_seeds_follow_from_job_and_key_alone() -> None:
    seeds = [picture_seed(0, "a.png"), picture_seed(0, "b.png"), picture_seed(1, "a.png")]
    assert len(set(seeds)) == 3
    assert seeds[0] == picture_seed(0, "a.png") == 4213375475


def test_a_result_that_the_manifest_vouches_for_is_kept_and_another_looked_into(jobs: Jobs, spec: JobSpec) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    write_manifest(jobs, first)
    assert jobs.status(first).state == "done"
    out = Path(spec.output)
    (out / "00001.png").write_bytes(b"cut")
    (out / "00003.png").write_bytes(b"somebody else's")
    fill(Path(spec.input), 5)
    second = planned(jobs, spec)
    assert {key: verify for key, (_, verify) in chunks(jobs, second).items()} == {
        "00001.png": True,
        "00003.png": True,
        "00004.png": False,
    }
    assert jobs.status(second).kept == 2
    do(jobs, second)
    write_manifest(jobs, second)
    third = planned(jobs, replace(spec, overwrite=True))
    assert {verify for _, verify in chunks(jobs, third).values()} == {False}
    assert len(chunks(jobs, third)) == 5


def test_a_changed_source_is_done_again(jobs: Jobs, spec: JobSpec) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    write_manifest(jobs, first)
    (Path(spec.input) / "00000.png").write_bytes(picture_bytes(9, 40))
    again = chunks(jobs, planned(jobs, spec))
    assert {key: verify for key, (_, verify) in again.items()} == {"00000.png": False}


@pytest.mark.parametrize(
    "change",
    [
        {"options": UpscaleOptions(factor=16, steps=0)},
        {"options": UpscaleOptions(factor=4, steps=8)},
        {"options": UpscaleOptions(steps=0, aug_level=0.1)},
        {"seed": 1},
    ],
)
@pytest.mark.parametrize("state", [PictureState.DONE, PictureState.FAILED])
def test_a_result_that_was_made_otherwise_is_made_anew(
    jobs: Jobs, spec: JobSpec, change: dict[str, Any], state: PictureState
) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    write_manifest(jobs, first)
    changed = replace(spec, **change)
    second = planned(jobs, changed)
    assert {key: verify for key, (_, verify) in chunks(jobs, second).items()} == {
        f"0000{index}.png": False for index in range(3)
    }
    do(jobs, second, state)
    write_manifest(jobs, second)
    third = planned(jobs, changed)  # one that failed left what was there
    assert jobs.status(third).kept == (3 if state is PictureState.DONE else 0)
    assert {verify for _, verify in chunks(jobs, third).values()} <= {False}


def test_a_result_of_which_the_manifest_does_not_say_how_it_was_made_is_looked_into(jobs: Jobs, spec: JobSpec) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    sizes = {"source_bytes": (Path(spec.input) / "00000.png").stat().st_size, "output_bytes": len("00000.png")}
    line = {"source": "00000.png", "output": "00000.png", "state": "kept", **sizes}
    Folder(Path(spec.output)).write("manifest.jsonl", json.dumps(line).encode())
    jobs.cancel(first)
    assert {verify for _, verify in chunks(jobs, planned(jobs, spec)).values()} == {True}


def test_a_setting_that_an_older_version_did_not_have_is_its_default(jobs: Jobs, spec: JobSpec) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    write_manifest(jobs, first)
    older = lines(spec.output)
    for line in older:
        del line["settings"]["consistency"]
    Folder(Path(spec.output)).write("manifest.jsonl", "\n".join(map(json.dumps, older)).encode())
    assert chunks(jobs, planned(jobs, spec)) == {}
    other = replace(spec, options=replace(spec.options, consistency=2), output=spec.output)
    jobs.cancel(jobs.all(1)[0].id)
    assert len(chunks(jobs, planned(jobs, other))) == 3


def test_no_more_than_five_thousand_pictures_are_written_down_at_a_time(
    jobs: Jobs, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused ones among them, of which the five thousandth may be one."""
    sizes: list[int] = []
    names = [*(f"a{n:04}.png" for n in range(4999)), "b\udce9.png", *(f"c{n:04}.png" for n in range(7000))]
    monkeypatch.setattr("service.plan.chosen", lambda source, spec, refused: [(name, 1) for name in names])
    monkeypatch.setattr("service.plan._insert", lambda jobs, rows: sizes.append(len(rows)))
    plan(jobs, jobs.create(spec))
    assert sum(sizes) == 12_000 and max(sizes) == 5000


def test_planning_again_changes_nothing(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    before = chunks(jobs, id)
    do(jobs, id)
    plan(jobs, id)
    assert len(before) == 3
    assert chunks(jobs, id) == {}
    assert jobs.status(id).done == 3


def test_a_claim_needs_the_chunk_the_running_job_and_a_living_worker(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    key, (number, _) = next(iter(chunks(jobs, id).items()))
    assert not Claims(jobs.engine).begin(id, number + 1, key, ME)
    assert not Claims(jobs.engine).begin(id, number, key, "struck off")
    assert Claims(jobs.engine).begin(id, number, key, ME)
    assert Claims(jobs.engine).record(id, key, "another", PictureState.DONE, {}) == (False, False)
    jobs.cancel(id)
    assert not Claims(jobs.engine).begin(id, number, key, ME)
    assert Claims(jobs.engine).record(id, key, ME, PictureState.DONE, {"source": key, "state": "done"})[0]
    assert Claims(jobs.engine).record(id, key, ME, PictureState.FAILED, {}) == (False, False)


def test_what_failed_or_was_left_is_taken_up(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    key, (number, _) = next(iter(chunks(jobs, id).items()))
    assert Claims(jobs.engine).begin(id, number, key, ME)
    Claims(jobs.engine).record(
        id, key, ME, PictureState.FAILED, {"source": key, "output": key, "state": "failed", "error": "x"}
    )
    assert jobs.status(id).failures[0]["error"] == "x"
    with pytest.raises(Conflict, match="running"):
        jobs.take_up(id)
    jobs.cancel(id)
    with pytest.raises(Conflict, match="cancelled"):
        jobs.cancel(id)
    fill(Path(spec.input), 4)
    jobs.take_up(id)
    plan(jobs, id)
    after = chunks(jobs, id)
    assert len(after) == 4
    assert number not in {chunk for chunk, _ in after.values()}
    assert not Claims(jobs.engine).begin(id, number, key, ME)


def test_two_jobs_do_not_write_to_one_place(jobs: Jobs, spec: JobSpec) -> None:
    id = jobs.create(spec)
    for output in (spec.output, spec.output + "/deeper", str(Path(spec.output).parent)):
        with pytest.raises(Conflict, match=id):
            jobs.create(replace(spec, output=output))
    jobs.cancel(id)
    other = jobs.create(replace(spec, output=spec.output + "/deeper"))
    with pytest.raises(Conflict, match=other):
        jobs.take_up(id)
    assert jobs.state(id) == "cancelled"
    jobs.cancel(other)
    jobs.take_up(id)
    assert jobs.state(id) == "planning"


def test_of_another_clients_job_nothing_is_told(jobs: Jobs, spec: JobSpec) -> None:
    mine = jobs.create(spec, client="me")
    jobs.cancel(mine)
    theirs = jobs.create(spec, client="you")
    for attempt in (lambda: jobs.take_up(mine), lambda: jobs.create(spec, client="me")):
        with pytest.raises(Conflict, match="another's job") as refused:
            attempt()
        assert theirs not in str(refused.value)


def test_a_forgotten_job_leaves_its_pictures(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    with pytest.raises(Conflict):
        jobs.delete(id)
    do(jobs, id)
    write_manifest(jobs, id)
    jobs.delete(id)
    with pytest.raises(KeyError):
        jobs.status(id)
    assert len(list(Path(spec.output).iterdir())) == 4


def test_the_manifest_is_sorted_and_keeps_the_lines_of_earlier_jobs(jobs: Jobs, spec: JobSpec) -> None:
    first = planned(jobs, spec)
    do(jobs, first)
    write_manifest(jobs, first)
    made = lines(spec.output)
    (Path(spec.input) / "00002.png").unlink()
    fill(Path(spec.input) / "é", 2)
    second = planned(jobs, replace(spec, recursive=True))
    do(jobs, second, PictureState.FAILED)
    write_manifest(jobs, second)
    after = lines(spec.output)
    assert [line["source"] for line in after] == [
        "00000.png",
        "00001.png",
        "00002.png",
        "é/00000.png",
        "é/00001.png",
    ]
    assert after[:3] == made  # not replaced by lines that only say "kept"
    assert {line["state"] for line in after[3:]} == {"failed"}


def test_a_job_that_found_no_pictures_says_so(jobs: Jobs, spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty, full = (
        planned(jobs, replace(spec, input=str(tmp_path / "empty"))),
        planned(jobs, replace(spec, output=str(tmp_path / "b"))),
    )
    do(jobs, full)
    for id, note in ((empty, "no pictures were found"), (full, None)):
        write_manifest(jobs, id)
        status = jobs.status(id)
        assert (status.state, status.note) == ("done", note)


def test_a_manifest_out_of_order_or_damaged_is_put_right(jobs: Jobs, spec: JobSpec) -> None:
    foreign = [{"source": "z", "output": "z", "state": "done"}, {"source": "a", "output": "a", "state": "done"}]
    text = "\n".join(map(json.dumps, foreign)) + '\n{"source": "cut off'
    Folder(Path(spec.output)).write("manifest.jsonl", text.encode())
    id = planned(jobs, spec)
    do(jobs, id)
    write_manifest(jobs, id)
    assert [line["source"] for line in lines(spec.output)] == ["00000.png", "00001.png", "00002.png", "a", "z"]


def test_a_name_that_is_not_text_is_a_failure_by_name(jobs: Jobs, spec: JobSpec) -> None:
    (Path(spec.input) / "bad\udcff.png").write_bytes(b"x")
    id = planned(jobs, spec)
    (failure,) = jobs.status(id).failures
    assert failure["source"] == "bad\\udcff.png"
    assert "UTF-8" in failure["error"]


def test_a_folder_that_cannot_be_read_is_a_failure_until_it_can(
    jobs: Jobs, spec: JobSpec, closed: Callable[[Path], AbstractContextManager[None]]
) -> None:
    fill(Path(spec.input) / "lost+found", 1)
    with closed(Path(spec.input) / "lost+found"):
        id = planned(jobs, replace(spec, recursive=True))
        assert len(chunks(jobs, id)) == 3
        (failure,) = jobs.status(id).failures
        told = (failure["source"], failure["error"])
        assert told == ("lost+found/", "the folder cannot be read: Permission denied")
        do(jobs, id)
    jobs.cancel(id)
    jobs.take_up(id)
    plan(jobs, id)
    assert list(chunks(jobs, id)) == ["lost+found/00000.png"]
    assert (jobs.status(id).total, jobs.status(id).failed) == (4, 0)
    with closed(Path(spec.input)), pytest.raises(StorageError, match="in: Permission denied"):
        plan(jobs, id)


@pytest.mark.parametrize(("format", "first"), [("PNG", "a.jpg"), (None, "a.bmp")])
def test_of_two_pictures_with_one_result_the_second_is_refused_by_name(
    jobs: Jobs, spec: JobSpec, format: str | None, first: str
) -> None:
    for name in (first, f"{first}.png"):
        (Path(spec.input) / name).write_bytes(b"x")
    id = planned(jobs, replace(spec, options=replace(spec.options, format=format), glob=f"{first}*"))
    assert list(chunks(jobs, id)) == [first]
    (failure,) = jobs.status(id).failures
    assert failure["source"] == f"{first}.png"
    assert failure["error"] == f"its result would be {first}.png, and so would that of {first}"
    plan(jobs, id)
    assert list(chunks(jobs, id)) == [first]


def test_results_of_several_threads_are_each_written_down_and_counted(jobs: Jobs, spec: JobSpec) -> None:
    check_results_of_several_threads(jobs, spec)


def test_of_jobs_that_are_made_at_one_moment_one_has_the_output(jobs: Jobs, spec: JobSpec) -> None:
    check_jobs_at_one_moment(jobs, spec)


def test_a_result_begins_the_next_in_the_same_step(jobs: Jobs, spec: JobSpec) -> None:
    check_a_result_that_begins_the_next(jobs, spec)


def test_a_cancellation_while_chunks_are_dealt_out_is_not_lost(jobs: Jobs, spec: JobSpec) -> None:
    check_a_cancellation_between(jobs, spec)


def test_at_a_stop_the_attempts_in_hand_are_given_back_once_and_those_of_crashes_stay(
    jobs: Jobs, spec: JobSpec
) -> None:
    check_attempts_given_back(jobs, spec)


def test_so_they_are_on_postgres(postgres: Postgres, spec: JobSpec) -> None:
    jobs = Jobs(open_database(database_url(Path(), postgres.url)))
    try:
        with jobs.engine.begin() as connection:
            connection.execute(sa.insert(workers), [{"id": ME, "beat": 0}])
        check_results_of_several_threads(jobs, spec)
        check_a_result_that_begins_the_next(jobs, replace(spec, output=f"{spec.output}-again"))
        check_attempts_given_back(jobs, replace(spec, output=f"{spec.output}-back"))
        check_a_cancellation_between(jobs, replace(spec, output=f"{spec.output}-between"))
        check_jobs_at_one_moment(jobs, replace(spec, output=f"{spec.output}-once"))
    finally:
        jobs.close()


def test_a_database_of_an_older_version_gets_what_it_lacks(tmp_path: Path, spec: JobSpec) -> None:
    check_an_older_database(database_url(tmp_path / "data", None), spec)


def test_so_it_is_on_postgres(postgres: Postgres, spec: JobSpec) -> None:
    check_an_older_database(database_url(Path(), postgres.url), spec)


def check_an_older_database(url: str, spec: JobSpec) -> None:
    jobs = Jobs(open_database(url))
    id = jobs.create(spec)
    with jobs.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE sr3_jobs DROP COLUMN client"))
    jobs.close()
    jobs = Jobs(open_database(url))
    try:
        assert jobs.status(id).client is None
        mine = jobs.create(replace(spec, output=f"{spec.output}-mine"), client="me")
        assert jobs.status(mine).client == "me"
        assert [job.id for job in jobs.all(client="me")] == [mine]
        assert {id, mine} <= {job.id for job in jobs.all()}
    finally:
        jobs.close()


def check_results_of_several_threads(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    claims = Claims(jobs.engine)
    keys = chunks(jobs, id)
    assert all(claims.begin(id, number, key, ME) for key, (number, _) in keys.items())
    with ThreadPoolExecutor(8) as threads:
        twice = [*keys, *keys]
        taken = list(threads.map(lambda key: claims.record(id, key, ME, PictureState.DONE, {"source": key})[0], twice))
    assert sum(taken) == len(keys)
    assert jobs.status(id).done == len(keys)
    assert {line["source"] for line in jobs.records(id)} == set(keys)
    first, *rest = sorted(keys)
    claims.take_back(id, [first])
    assert [row["key"] for row in jobs.chunk(id, keys[first][0])] == [first]
    assert sorted(key for key, _ in jobs.written(id, keys[first][0])) == rest
    assert jobs.status(id).done == len(rest)
    assert claims.begin(id, keys[first][0], first, ME)
    assert claims.record(id, first, ME, PictureState.FAILED, {"source": first})[0]
    assert jobs.written(id, keys[first][0]) == []  # of a chunk that is over all is on the disk
    assert (jobs.status(id).done, jobs.status(id).failed) == (len(rest), 1)


def check_jobs_at_one_moment(jobs: Jobs, spec: JobSpec) -> None:
    for turn in range(5):
        together = threading.Barrier(8)
        asked = replace(spec, output=f"{spec.output}/{turn}")

        def make(_: int, together: threading.Barrier = together, asked: JobSpec = asked) -> str | None:
            together.wait()
            try:
                return jobs.create(asked)
            except Conflict:
                return None

        with ThreadPoolExecutor(8) as threads:
            made = [id for id in threads.map(make, range(8)) if id]
        assert len(made) == 1


def check_a_cancellation_between(jobs: Jobs, spec: JobSpec) -> None:
    id = jobs.create(spec)
    cancelling = threading.Thread(target=jobs.cancel, args=(id,))

    def between(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if "sum(source_bytes" in statement and cancelling.ident is None:  # it has looked at the job's state
            cancelling.start()
            cancelling.join(0.5)

    sa.event.listen(jobs.engine, "before_cursor_execute", between)
    try:
        plan(jobs, id)
    finally:
        sa.event.remove(jobs.engine, "before_cursor_execute", between)
    cancelling.join()
    assert jobs.state(id) == "cancelled"


def check_attempts_given_back(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    (number,) = {number for number, _ in chunks(jobs, id).values()}
    first, second, third = sorted(chunks(jobs, id))

    def attempts() -> dict[str, int]:
        return {row["key"]: row["attempts"] for row in jobs.chunk(id, number)}

    assert Claims(jobs.engine).begin(id, number, first, ME)  # by a worker that crashed
    claims = Claims(jobs.engine)
    assert claims.begin(id, number, first, ME)
    assert attempts() == {first: 2, second: 0, third: 0}
    claims.give_all_back(ME)
    claims.give_all_back(ME)
    claims.give_back(id, first, ME)
    assert attempts() == {first: 1, second: 0, third: 0}
    assert claims.record(id, first, ME, PictureState.DONE, {"source": first}, number, second) == (True, True)
    assert attempts() == {second: 1, third: 0}
    claims.give_all_back(ME)
    assert attempts() == {second: 0, third: 0}
    assert jobs.status(id).done == 1


def check_a_result_that_begins_the_next(jobs: Jobs, spec: JobSpec) -> None:
    id = planned(jobs, spec)
    claims = Claims(jobs.engine)
    (number,) = {number for number, _ in chunks(jobs, id).values()}
    first, second, third = sorted(chunks(jobs, id))

    def record(key: str, number: int, following: str, owner: str = ME) -> tuple[bool, bool]:
        return claims.record(id, key, owner, PictureState.DONE, {"source": key}, number, following)

    assert claims.begin(id, number, first, ME)
    assert record(first, number + 1, second) == (True, False)  # it is of another chunk now
    assert record(first, number, second) == (False, True)
    assert record(first, number, second, "struck off") == (False, False)
    assert {row["key"]: row["attempts"] for row in jobs.chunk(id, number)} == {second: 1, third: 0}
    jobs.cancel(id)
    assert record(second, number, third) == (True, False)
    assert {row["key"]: row["attempts"] for row in jobs.chunk(id, number)} == {third: 0}
    assert jobs.status(id).done == 2
