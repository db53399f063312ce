"""Jobs over HTTP: a real server, real workers, archives in and out, and what is refused."""

import io
import json
import os
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.archive import MAX_DIRECTORY, MAX_FILES, BadArchive, TooLarge, packed, unpack
from service.routes_jobs import JobSettings
from service.settings import Settings
from service.storage import Folder
from tests.jobs_fakes import BROKEN, fill, picture_bytes
from tests.jobs_http import jobs_app, running
from tests.jobs_servers import Postgres
from tests.service_fakes import problem, wait_until

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[httpx.Client]:
    """A server with one worker, which may use `root`/free alone."""
    settings = Settings(data_dir=root / "data", storage_roots=[str(root / "free")], max_archive_bytes=200_000)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)  # of the worker's process
        with running(jobs_app(settings)) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield client


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return buffer.getvalue()


def over(client: httpx.Client, id: str) -> bool:
    return client.get(f"/jobs/{id}").json()["state"] in ("done", "cancelled", "failed")


def test_a_job_from_folder_to_folder_is_made_watched_and_forgotten(client: httpx.Client, root: Path) -> None:
    assert client.get("/jobs").json() == []
    assert not (root / "data").exists()
    fill(root / "free" / "in", 5)
    (root / "free" / "in" / "broken.png").write_bytes(picture_bytes(1, first=BROKEN))
    body = {"input": str(root / "free" / "in"), "output": str(root / "free" / "out"), "steps": 0}
    made = client.post("/jobs", json=body)
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    assert made.headers["location"] == f"/jobs/{id}"
    assert made.json()["settings"]["steps"] == 0
    assert problem(client.delete(f"/jobs/{id}")).status == 409
    assert problem(client.post("/jobs", json=body)).status == 409
    with client.stream("GET", f"/jobs/{id}/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert seen[-1]["state"] == "done"
    assert (seen[-1]["done"], seen[-1]["failed"], seen[-1]["total"]) == (5, 1, 6)
    assert seen[-1]["failures"][0]["source"] == "broken.png"
    assert [job["id"] for job in client.get("/jobs").json()] == [id]
    (root / "free" / "in" / "broken.png").write_bytes(picture_bytes(1))
    assert client.post(f"/jobs/{id}/retry-failed").json()["state"] == "planning"
    wait_until(lambda: over(client, id), 60)
    job = client.get(f"/jobs/{id}").json()
    assert (job["done"], job["failed"], job["failures"]) == (6, 0, [])
    assert problem(client.post(f"/jobs/{id}/cancel")).status == 409
    deleted = client.delete(f"/jobs/{id}")
    assert deleted.status_code == 204 and "content-type" not in deleted.headers
    for path in (f"/jobs/{id}", f"/jobs/{id}/events", f"/jobs/{id}/result.zip"):
        assert problem(client.get(path)).status == 404
    assert len(list((root / "free" / "out").iterdir())) == 7


def test_a_jobs_events_outlast_a_database_that_is_away_and_end_with_the_job(tmp_path: Path, postgres: Postgres) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres.url, storage_roots=[str(tmp_path)], job_workers=0)
    body = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    with running(jobs_app(settings)) as url, httpx.Client(base_url=url, timeout=30) as client:
        for stopped in (True, False):
            id = client.post("/jobs", json=body).json()["id"]
            with client.stream("GET", f"/jobs/{id}/events", timeout=60) as stream:
                lines = stream.iter_lines()
                assert next(json.loads(line[6:]) for line in lines if line.startswith("data: "))["id"] == id
                if stopped:
                    postgres.stop()
                    time.sleep(1.5)
                    postgres.start()
                assert client.post(f"/jobs/{id}/cancel").status_code == 200
                if not stopped:
                    assert client.delete(f"/jobs/{id}").status_code == 204
                seen = [json.loads(line[6:])["state"] for line in lines if line.startswith("data: ")]
            assert seen in ((["cancelled"],) if stopped else (["cancelled"], []))


def test_a_job_takes_names_in_any_case_as_an_upload_does() -> None:
    asked = JobSettings.model_validate({"format": "png", "scheduler": "dpmsolver++"})
    assert (asked.format, asked.scheduler) == ("PNG", "DPMSolver++")
    for wrong in ({"format": "gif"}, {"scheduler": "PNG"}, {"format": 3}):
        with pytest.raises(ValidationError):
            JobSettings.model_validate(wrong)


def test_an_archive_goes_in_and_comes_out(client: httpx.Client, root: Path) -> None:
    files = {f"deep/{index}.png": picture_bytes(index) for index in range(3)}
    made = client.post("/jobs/zip", params={"factor": 4, "steps": 0}, content=archive(files))
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    assert (made.json()["input"], made.json()["output"]) == (None, None)  # the server's own folders
    wait_until(lambda: over(client, id), 60)
    answer = client.get(f"/jobs/{id}/result.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as result:
        assert result.testzip() is None
        assert result.namelist() == [*files, "manifest.jsonl"]
        assert len(result.read("manifest.jsonl").splitlines()) == 3
    assert (root / "data" / "uploads" / id).exists()
    assert client.delete(f"/jobs/{id}").status_code == 204
    assert not (root / "data" / "uploads" / id).exists()


def test_an_archives_job_is_forgotten_with_its_last_picture_once_that_is_no_longer_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    for name, value in (("PYTHONPATH", str(ROOT)), ("JOBS_LOG", str(log)), ("JOBS_SECONDS", "6")):
        monkeypatch.setenv(name, value)  # of the worker's process
    with running(jobs_app(Settings(data_dir=tmp_path))) as url, httpx.Client(base_url=url, timeout=30) as client:
        id = client.post("/jobs/zip", content=archive({f"{i}.png": picture_bytes(i) for i in range(3)})).json()["id"]
        wait_until(lambda: log.exists() and log.read_text(), 60)
        assert client.post(f"/jobs/{id}/cancel").json()["state"] == "cancelled"
        assert "in hand" in problem(client.delete(f"/jobs/{id}")).detail
        assert client.get(f"/jobs/{id}").json()["state"] == "cancelled"
        wait_until(lambda: client.delete(f"/jobs/{id}").status_code == 204, 60)
        assert len(log.read_text().splitlines()) == 1
    assert not list((tmp_path / "uploads").rglob("*.*"))  # nor after the worker has ended


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": "/etc"}, "input"),
        ({"output": "{root}/free/in/deeper"}, "output"),
        ({"output": "{root}/free/../data"}, "output"),
        ({"output": "s3://bucket/x"}, "output"),
        ({"output": "ftp://host/x"}, "output"),
        ({"input": "{root}/data/uploads/x"}, "input"),
        ({"input": "~nosuch/photos"}, "input"),
        ({"output": "~nosuch/photos"}, "output"),
        ({"input": "{root}/free/in\0"}, "input"),
        ({"output": "s3://bucket/\0"}, "output"),
        ({"factor": 3}, "factor"),
        ({"steps": -1}, "steps"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_refused_is_named(client: httpx.Client, root: Path, change: dict[str, object], field: str) -> None:
    body = {"input": f"{root}/free/in", "output": f"{root}/free/other"}
    filled = {name: value.format(root=root) if isinstance(value, str) else value for name, value in change.items()}
    answer = client.post("/jobs", json={**body, **filled})
    body_of_problem = problem(answer)
    assert body_of_problem.status == 422
    assert body_of_problem.errors is not None
    assert [error.field for error in body_of_problem.errors] == [field]


def damaged(method: int) -> bytes:
    """An archive whose second entry cannot be unpacked, though its directory can be read."""
    noise = os.urandom(500)
    data = bytearray(archive({"a.png": b"whole", "b.png": noise}, method))
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        last = read.infolist()[1]
    begin = last.header_offset + 30 + len("b.png")
    data[begin + 9 : begin + last.compress_size] = b"\xff" * (last.compress_size - 9)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(archive({"a.png": b"whole", "b.png": b"x"}))
    data[data.rindex(b"PK\1\2") + 8] |= 1
    return bytes(data)


def renamed(name: bytes) -> bytes:
    """An archive with an entry whose name zipfile would not write."""
    return archive({"a.png": b"whole", "é" + "b" * (len(name) - 2): b"x"}).replace(
        "é".encode() + b"b" * (len(name) - 2), name
    )


def twice() -> bytes:
    return archive({"a.png": b"x", "b.png": b"y"}).replace(b"b.png", b"a.png")


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"no archive", 415, "not a ZIP archive"),
        (archive({"../../escape.png": b"x"}), 422, "leads elsewhere"),
        (archive({"/etc/x.png": b"x"}), 422, "leads elsewhere"),
        (archive({"large.png": bytes(300_000)}, zipfile.ZIP_DEFLATED), 413, "holds more than"),
        (os.urandom(200_001), 413, "larger than"),
        (damaged(zipfile.ZIP_STORED), 422, "damaged"),
        (damaged(zipfile.ZIP_DEFLATED), 422, "damaged"),
        (archive({"a.png": b"x"}, zipfile.ZIP_BZIP2), 422, "a.png is packed by method 12 of ZIP; stored and deflated"),
        (archive({"a.png": b"x"}, zipfile.ZIP_LZMA), 422, "a.png is packed by method 14 of ZIP; stored and deflated"),
        (encrypted(), 422, "encrypted"),
        (twice(), 422, "one name"),
        (renamed(b"\xff\xfe.png"), 415, "not a ZIP archive"),
        (archive({"a.png": b"x", "a.png/b.png": b"x"}), 422, "both a file and a folder"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    client: httpx.Client, root: Path, data: bytes, status: int, words: str
) -> None:
    refused = problem(client.post("/jobs/zip", content=data))
    assert (refused.status, words in refused.detail) == (status, True), refused.detail
    uploads = root / "data" / "uploads"
    assert not [path for path in uploads.rglob("*") if path.is_file()] if uploads.exists() else True
    assert not list(root.rglob("escape.png"))


def test_what_is_packed_is_unpacked_the_same(tmp_path: Path) -> None:
    files = {"a.png": os.urandom(3_000_000), "b/ü.png": b"", "c.png": b"c"}
    data = b"".join(packed((name, iter([content])) for name, content in files.items()))
    assert unpack(io.BytesIO(data), Folder(tmp_path), 10**7) == 3
    assert {key: (tmp_path / key).read_bytes() for key in files} == files


def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    data = archive({"a.png": b"x" * 1000}).replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(BadArchive):
        unpack(io.BytesIO(data), Folder(tmp_path), 100)
    assert MAX_FILES >= 10_000


def test_names_in_an_archive_may_be_utf8_without_saying_so(client: httpx.Client) -> None:
    """As Info-ZIP writes them; other bytes are of the code page that zipfile takes them for."""
    data = archive({"xx.png": picture_bytes(0), "y.png": picture_bytes(1)})
    data = data.replace(b"xx.png", "ü.png".encode()).replace(b"y.png", "é.png".encode("cp437"))
    id = client.post("/jobs/zip", params={"steps": 0}, content=data).json()["id"]
    wait_until(lambda: over(client, id), 60)
    with zipfile.ZipFile(io.BytesIO(client.get(f"/jobs/{id}/result.zip").content)) as result:
        assert {*result.namelist()} == {"ü.png", "é.png", "manifest.jsonl"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 93])
def test_what_is_packed_by_a_method_without_a_limit_is_refused_before_anything_is_unpacked(
    tmp_path: Path, method: int
) -> None:
    data = bytearray(archive({"a.png": b"whole", "b.png": bytes(3_000_000)}, zipfile.ZIP_DEFLATED))
    local, central = data.rindex(b"PK\3\4"), data.rindex(b"PK\1\2")
    data[local + 8 : local + 10] = data[central + 10 : central + 12] = struct.pack("<H", method)
    data[local + 22 : local + 26] = data[central + 24 : central + 28] = struct.pack("<L", 10)  # its size, it says
    with pytest.raises(BadArchive, match=r"^b.png is packed by .*; stored and deflated files are accepted"):
        unpack(io.BytesIO(data), Folder(tmp_path), 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot 2026-11-22 at 5.00.00\u202fPM.png",
        "写真\u3000一.png",
        "l’été\xa0à la mer.png",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
        "12:30.jpg",
        "deep/12:30/C: drive.png",
    ],
)
def test_names_that_cameras_and_people_give_are_taken(tmp_path: Path, name: str) -> None:
    assert unpack(io.BytesIO(archive({name: b"x"})), Folder(tmp_path), 100) == 1
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/a.png", "a\\b.png", "C:/a.png", "c:a.png"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadArchive, match="leads elsewhere"):
        unpack(io.BytesIO(archive({name: b"x"})), Folder(tmp_path / "in"), 100)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["a\nb.png", "a\x07.png", "a\x85.png"])
def test_names_with_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadArchive, match="control characters"):
        unpack(io.BytesIO(archive({name: b"x"})), Folder(tmp_path), 100)


def test_an_entry_without_a_name_is_left_out(tmp_path: Path) -> None:
    data = archive({"a.png": b"x", ".": b"x", "@b": b"x"}).replace(b"@b", b"\0b")
    assert unpack(io.BytesIO(data), Folder(tmp_path), 100) == 1
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_archive_whose_job_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, job_workers=0)
    (tmp_path / "jobs.sqlite").mkdir()  # so that no database can be opened
    with running(jobs_app(settings)) as url:
        answer = httpx.post(f"{url}/jobs/zip", content=archive({"a.png": b"x"}), timeout=30)
    assert problem(answer).status == 503
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]


def test_a_directory_of_an_archive_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(one := io.BytesIO(), "w") as made:
        made.writestr("/", b"")
    begin = one.getvalue().index(b"PK\1\2")
    entry, end = one.getvalue()[begin : begin + 47], bytearray(one.getvalue()[begin + 47 :])
    number = (MAX_DIRECTORY + (1 << 19)) // len(entry)
    end[12:20] = struct.pack("<LL", number * len(entry), 0)  # its size and where it begins; it says that it has one
    with pytest.raises(TooLarge, match="directory"):
        unpack(io.BytesIO(entry * number + end), Folder(tmp_path), 100)
    end[12:20] = struct.pack("<LL", 1000 * len(entry), 0)
    assert unpack(io.BytesIO(entry * 1000 + end), Folder(tmp_path), 100) == 0


def test_without_a_data_folder_jobs_are_503_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    body = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    settings = Settings(data_dir=tmp_path / "file" / "data", storage_roots=[str(tmp_path)], job_workers=0)
    with running(jobs_app(settings)) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert problem(client.post("/jobs", json=body)).status == 503
        assert problem(client.post("/jobs/zip", content=archive({"a.png": b"x"}))).status == 503
        assert client.get("/jobs").json() == []
        assert problem(client.get("/jobs/x")).status == 404


def test_an_archive_for_which_the_disk_has_no_room_is_503(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, job_workers=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with running(jobs_app(settings)) as url, httpx.Client(base_url=url, timeout=30) as client:
        for size in (101_000, 1_000_000):  # at the last flush, and before
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                answer = client.post("/jobs/zip", content=archive({"a.png": os.urandom(size)}))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert problem(answer).status == 503
            assert "cannot be stored: File too large" in problem(answer).detail
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


KEYS = {name: {"x-api-key": f"the-key-of-{name}-here"} for name in ("me", "guest")}


@pytest.fixture
def shared(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of servers without workers on one database, with these limits in requests a minute, or without keys."""

    def settings(**limits: str) -> Settings:
        keys = ",".join(f"{name}{limit}:{KEYS[name]['x-api-key']}" for name, limit in limits.items())
        roots = [str(tmp_path / "free")]
        return Settings(data_dir=tmp_path / "data", storage_roots=roots, job_workers=0, api_keys=keys)

    return settings


def test_a_job_is_its_keys_alone(shared: Callable[..., Settings], tmp_path: Path) -> None:
    body = {"input": str(tmp_path / "free" / "in"), "output": str(tmp_path / "free" / "out")}
    with running(jobs_app(shared())) as url, httpx.Client(base_url=url, timeout=30) as client:
        nobodys = client.post("/jobs/zip", content=archive({"a.png": b"x"})).json()["id"]
    with running(jobs_app(shared(me="", guest=""))) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert problem(client.get("/jobs")).status == 401
        assert problem(client.post("/jobs", json=body)).status == 401
        mine = client.post("/jobs", json=body, headers=KEYS["me"]).json()["id"]
        uploaded = client.post("/jobs/zip", content=archive({"a.png": b"x"}), headers=KEYS["me"]).json()["id"]
        assert [job["id"] for job in client.get("/jobs", headers=KEYS["me"]).json()] == [uploaded, mine]
        assert client.get("/jobs", headers=KEYS["guest"]).json() == []
        for name, id in (("guest", mine), ("guest", uploaded), ("guest", nobodys), ("me", nobodys)):
            for method, rest in (
                ("GET", ""),
                ("GET", "/events"),
                ("GET", "/result.zip"),
                ("POST", "/cancel"),
                ("POST", "/retry-failed"),
                ("DELETE", ""),
            ):
                refused = problem(client.request(method, f"/jobs/{id}{rest}", headers=KEYS[name]))
                unknown = problem(client.request(method, f"/jobs/unknown{rest}", headers=KEYS[name]))
                assert (refused.status, refused.detail) == (404, unknown.detail.replace("unknown", id))
        told = {name: problem(client.post("/jobs", json=body, headers=KEYS[name])) for name in KEYS}
        assert {refused.status for refused in told.values()} == {409}
        assert [mine in told[name].detail for name in ("me", "guest")] == [True, False]
        assert client.post(f"/jobs/{mine}/cancel", headers=KEYS["me"]).json()["state"] == "cancelled"
        assert client.delete(f"/jobs/{mine}", headers=KEYS["me"]).status_code == 204
    with running(jobs_app(shared())) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert [job["id"] for job in client.get("/jobs").json()] == [uploaded, nobodys]
        assert client.post(f"/jobs/{uploaded}/cancel").json()["state"] == "cancelled"


@pytest.mark.parametrize("path", ["", "/zip", "/x/cancel", "/x/retry-failed"])
def test_a_keys_limit_counts_what_is_asked_of_jobs(shared: Callable[..., Settings], path: str) -> None:
    with running(jobs_app(shared(guest="/1"))) as url, httpx.Client(base_url=url, headers=KEYS["guest"]) as client:
        assert problem(client.post(f"/jobs{path}", content=b"{}")).status in (404, 415, 422)
        limited = client.post(f"/jobs{path}", content=b"{}")
        assert problem(limited).status == 429
        assert "1 times a minute" in problem(limited).detail
        assert client.get("/jobs").status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": "{root}/uploads/x"}, "input"),
        ({"output": "{root}/uploads/x"}, "output"),
        ({"input": "{root}", "recursive": True}, "input"),
    ],
)
def test_what_others_uploaded_is_no_jobs_even_below_a_root(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    roots = [str(root), str(other)]
    settings = Settings(data_dir=tmp_path, storage_roots=roots, uploads=str(root / "uploads"), job_workers=0)
    filled = {name: value.format(root=root) if isinstance(value, str) else value for name, value in change.items()}
    body = {"input": str(root / "in"), "output": str(other)} | filled
    with running(jobs_app(settings)) as url:
        refused = problem(httpx.post(f"{url}/jobs", json=body, timeout=30))
    assert (refused.status, [error.field for error in refused.errors or []]) == (422, [field])
    assert "uploaded" in refused.detail
