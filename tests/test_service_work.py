"""The pictures of a chunk: batches, memory, failures by name, waiting for the storage, stopping; with a fake ledger."""

import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.device import Device
from service.jobs import JobSpec, PictureState
from service.pictures import Picture, read_metadata
from service.room import Budget
from service.storage import StorageTrouble
from service.upscale import UpscaleOptions
from service.work import Limits, Studio, Task
from tests.jobs_fakes import BROKEN, FakeUpscaler, picture_bytes
from tests.service_fakes import wait_until

SPEC = JobSpec("in", "out", UpscaleOptions(steps=0))


class Memory:
    """A place in memory that fails its first `trouble` writes."""

    url = "memory"

    def __init__(self, files: dict[str, bytes] | None = None, trouble: int = 0) -> None:
        self.files = files or {}
        self.trouble = trouble
        self.flushed: set[str] = set()
        self.unflushable = False

    def list(self, recursive: bool = True, refused: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
        return iter([(key, len(data)) for key, data in self.files.items()])

    def read(self, key: str) -> bytes:
        return self.files[key]

    def size(self, key: str) -> int | None:
        return len(self.files[key]) if key in self.files else None

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        if self.trouble > 0:
            self.trouble -= 1
            raise StorageTrouble(f"{key}: No space left on device")
        self.files[key] = parts if isinstance(parts, bytes) else b"".join(parts)
        return len(self.files[key])

    def flush(self, keys: Iterable[str]) -> None:
        self.flushed.update(keys)
        if self.unflushable:
            self.unflushable = False
            raise StorageTrouble("Input/output error")

    def stream(self, key: str) -> Iterator[bytes]:
        return iter([self.files[key]])

    def clear(self) -> None:
        self.files.clear()


class Ledger:
    """Keeps what it is told; `take` is asked whether a picture may be begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.returned: list[str] = []
        self.records: dict[str, tuple[PictureState, dict[str, Any]]] = {}
        self.notes: list[str | None] = []
        self.wanted = True

    def begin(self, key: str) -> bool:
        if self.wanted:
            self.begun.append(key)
        return self.wanted

    def give_back(self, key: str) -> None:
        self.returned.append(key)

    def record(self, key: str, state: PictureState, record: dict[str, Any], following: str | None = None) -> bool:
        assert key not in self.records
        self.records[key] = state, record
        return following is not None and self.begin(following)

    def take_back(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.records.pop(key, None)

    def waiting(self, reason: str | None) -> bool:
        self.notes.append(reason)
        return self.wanted


class Watched(FakeUpscaler):
    """Counts the pictures of each batch; begins with the first once so many are in its device's hands."""

    def __init__(self, company: int = 1) -> None:
        self.company, self.batches = company, list[int]()
        self.device: Device | None = None

    def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
        device = self.device
        assert device is not None
        wait_until(lambda: self.batches or len(pictures) + len(device._waiting) >= self.company)
        self.batches.append(len(pictures))
        assert len({picture.pixels.shape for picture in pictures}) == 1
        return super().upscale(pictures, seeds, options)


def studio_of(upscaler: FakeUpscaler, limits: Limits, stop: threading.Event | None = None) -> Studio:
    device = Device(lambda: upscaler, limits.batch)
    if isinstance(upscaler, Watched):
        upscaler.device = device
    return Studio(device, limits, stop or threading.Event())


def run(
    source: Memory,
    spec: JobSpec = SPEC,
    target: Memory | None = None,
    tasks: Sequence[Task] | None = None,
    **more: Any,
) -> tuple[Ledger, Memory, bool]:
    limits = more.pop("limits", Limits(max_pixels=2**24))
    studio = studio_of(more.pop("upscaler", None) or FakeUpscaler(), limits)
    ledger, target = Ledger(), target or Memory()
    tasks = [Task(key, len(data)) for key, data in source.files.items()] if tasks is None else tasks
    return ledger, target, studio.run(spec, source, target, tasks, ledger)


def encoded(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def test_each_picture_is_enlarged_and_written_down() -> None:
    source = Memory({f"{index}.png": picture_bytes(index) for index in range(5)})
    ledger, target, whole = run(source)
    assert whole
    assert sorted(target.files) == sorted(source.files)
    state, record = ledger.records["3.png"]
    assert state is PictureState.DONE
    assert (record["size"], record["output_size"]) == ([16, 16], [64, 64])
    assert record["output_bytes"] == len(target.files["3.png"])
    assert read_metadata(target.files["3.png"]) == {"parameters": f"Seed: {record['seed']}"}
    assert record["settings"]["factor"] == 4
    assert {"sha256", "seed", "seconds", "attempts"} <= set(record)


def test_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    source = Memory({f"{index}.png": picture_bytes(index, 16 + 8 * (index % 2)) for index in range(9)})
    upscaler = Watched(company=4)
    _, together, _ = run(source, limits=Limits(2**24, batch=4), upscaler=upscaler)
    assert max(upscaler.batches) > 1
    _, alone, _ = run(source)
    assert together.files == alone.files


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.png", b"", "empty"),
        ("text.png", b"not a picture at all", "not a picture"),
        ("cut.png", picture_bytes(1)[:-200], "damaged"),
        ("tiny.png", picture_bytes(1, 4), "at least"),
        ("suffix.jpg", picture_bytes(1), "wrong suffix: the file is PNG, its name says JPEG"),
        ("huge.png", encoded(np.zeros((1100, 1000), np.uint8), "PNG"), "at most"),
        ("huge.jpg", encoded(np.zeros((1100, 1000), np.uint8), "JPEG"), "SERVICE_MAX_PIXELS=17600000"),
        ("broken.png", picture_bytes(1, first=BROKEN), "RuntimeError: the model failed"),
    ],
)
def test_a_bad_picture_is_named_and_the_rest_goes_on(name: str, data: bytes, message: str) -> None:
    source = Memory({"a.png": picture_bytes(1), name: data, "z.png": picture_bytes(2)})
    ledger, target, whole = run(source, limits=Limits(2**24))
    assert whole
    assert sorted(target.files) == ["a.png", "z.png"]
    state, record = ledger.records[name]
    assert state is PictureState.FAILED
    assert message in record["error"]


def test_a_file_too_large_to_be_a_picture_that_is_taken_is_not_read() -> None:
    source = Memory({"a.png": picture_bytes(1)})
    tasks = [Task("film.png", 2**31), Task("a.png", 1)]  # of which the first is not there to be read
    ledger, target, whole = run(source, tasks=tasks, limits=Limits(2**24))
    assert whole and list(target.files) == ["a.png"]
    assert ledger.records["film.png"][1]["error"] == (
        "the file has 2147.5 MB; at most 83.9 MB are read where SERVICE_MAX_PIXELS=16777216"
    )


def test_an_animation_is_refused_and_another_format_asked_for_is_written() -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    source = Memory({"moves.webp": buffer.getvalue(), "wrong.jpg": picture_bytes(1)})
    spec = replace(SPEC, options=replace(SPEC.options, format="WEBP"))
    ledger, target, _ = run(source, spec)
    assert "animated" in ledger.records["moves.webp"][1]["error"]
    assert list(target.files) == ["wrong.jpg.webp"]
    with Image.open(io.BytesIO(target.files["wrong.jpg.webp"])) as image:
        assert (image.format, image.size) == ("WEBP", (64, 64))


def test_one_failure_does_not_spoil_its_batch() -> None:
    source = Memory({f"{index}.png": picture_bytes(index) for index in range(3)})
    source.files["1.png"] = picture_bytes(1, first=BROKEN)
    upscaler = Watched(company=3)
    ledger, _, _ = run(source, limits=Limits(2**24, batch=3), upscaler=upscaler)
    states = {key: state for key, (state, _) in ledger.records.items()}
    done, failed = PictureState.DONE, PictureState.FAILED
    assert states == {"0.png": done, "1.png": failed, "2.png": done}
    assert ledger.begun.count("1.png") - ledger.returned.count("1.png") == 3


def test_a_picture_that_ended_its_worker_three_times_is_given_up_and_suspects_go_first_and_alone() -> None:
    source = Memory({f"{index}.png": picture_bytes(index) for index in range(4)})
    tasks = [Task("0.png", 1), Task("1.png", 1, attempts=1), Task("2.png", 1, attempts=3), Task("3.png", 1)]
    ledger, _, _ = run(source, tasks=tasks, limits=Limits(2**24, batch=4))
    assert list(dict.fromkeys(ledger.begun)) == ["1.png", "2.png", "0.png", "3.png"]
    assert "3 attempts ended the worker" in ledger.records["2.png"][1]["error"]
    assert ledger.records["1.png"][0] is PictureState.DONE


def test_a_full_disk_is_waited_for() -> None:
    source = Memory({"a.png": picture_bytes(1)})
    ledger, target, _ = run(source, target=Memory(trouble=2))
    assert ledger.records["a.png"][0] is PictureState.DONE
    assert "No space left" in str(ledger.notes[0])
    assert ledger.notes[-1] is None
    assert list(target.files) == ["a.png"]


def test_all_of_a_chunk_is_on_the_disk_before_its_last_is_written_down() -> None:
    source, target = Memory({f"{index}.png": picture_bytes(index) for index in range(5)}), Memory()
    flushed: list[int] = []

    class Watching(Ledger):
        def record(self, key: str, state: PictureState, record: dict[str, Any], following: str | None = None) -> bool:
            flushed.append(len(target.flushed))
            return super().record(key, state, record, following)

    tasks = [Task(key, len(data)) for key, data in source.files.items()]
    assert studio_of(FakeUpscaler(), Limits(2**24, batch=3)).run(SPEC, source, target, tasks, Watching())
    assert len(flushed) == 5
    assert max(flushed) == 5
    ledger, bad = Ledger(), Memory()
    bad.unflushable = True
    with pytest.raises(StorageTrouble, match="did not get to the disk"):
        studio_of(FakeUpscaler(), Limits(2**24)).run(SPEC, source, bad, tasks, ledger)
    assert len(ledger.records) < 5
    left = [Task(key, 1) for key in source.files if key not in ledger.records]
    assert studio_of(FakeUpscaler(), Limits(2**24)).run(SPEC, source, bad, left, ledger)
    assert len(ledger.records) == 5


def test_patience_ends() -> None:
    ledger, _, whole = run(
        Memory({"a.png": picture_bytes(1)}), target=Memory(trouble=10**6), limits=Limits(2**24, patience=0)
    )
    assert whole
    assert "No space left" in ledger.records["a.png"][1]["error"]


def test_a_whole_result_is_kept_and_a_cut_one_done_again() -> None:
    source = Memory({key: picture_bytes(index) for index, key in enumerate(("a.png", "b.png", "c.png"))})
    _, made, _ = run(source)
    there = Memory({"a.png": made.files["a.png"], "b.png": made.files["b.png"][:-100], "c.png": source.files["c.png"]})
    tasks = [Task(key, len(data), verify=True) for key, data in source.files.items()]
    ledger, target, _ = run(source, target=there, tasks=tasks)
    kept, done = PictureState.KEPT, PictureState.DONE
    assert {key: state for key, (state, _) in ledger.records.items()} == {"a.png": kept, "b.png": done, "c.png": done}
    assert target.files == made.files


def test_a_stop_finishes_the_picture_in_hand_and_gives_the_others_back() -> None:
    source = Memory({f"{index}.png": picture_bytes(index) for index in range(20)})
    stop, ledger, target = threading.Event(), Ledger(), Memory()

    class Stopping(FakeUpscaler):
        def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
            stop.set()
            return super().upscale(pictures, seeds, options)

    studio = studio_of(Stopping(), Limits(2**24), stop)
    tasks = [Task(key, len(data)) for key, data in source.files.items()]
    assert not studio.run(SPEC, source, target, tasks, ledger)
    assert list(ledger.records) == ["0.png"] == list(target.files)
    assert sorted(ledger.begun) == sorted([*ledger.records, *ledger.returned])
    assert studio.budget.used == 0


def test_a_cancelled_job_is_left() -> None:
    source = Memory({f"{index}.png": picture_bytes(index) for index in range(20)})
    ledger = Ledger()

    class Cancelling(FakeUpscaler):
        def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
            ledger.wanted = False
            return super().upscale(pictures, seeds, options)

    studio = studio_of(Cancelling(), Limits(2**24))
    tasks = [Task(key, len(data)) for key, data in source.files.items()]
    assert not studio.run(SPEC, source, Memory(), tasks, ledger)
    assert 1 <= len(ledger.records) < 5
    assert sorted(ledger.begun) == sorted([*ledger.records, *ledger.returned])


def test_room_is_taken_before_a_picture_is_decoded_and_for_a_look_into_a_result() -> None:
    costs: list[int] = []

    class Noting(Budget):
        @contextmanager
        def take(self, cost: int) -> Iterator[None]:
            costs.append(cost)
            with super().take(cost):
                yield

    deep = np.random.default_rng(0).integers(0, 65535, (16, 16), np.uint16)
    files = {"grey.png": encoded(deep, "PNG"), "cut.png": picture_bytes(1, 64)[:-99], "there.png": picture_bytes(2)}
    _, made, _ = run(Memory({"there.png": files["there.png"]}))
    studio, ledger = studio_of(FakeUpscaler(), Limits(2**24)), Ledger()
    studio.budget = Noting(2**24)
    tasks = [Task(key, len(data), verify=True) for key, data in files.items()]
    assert studio.run(SPEC, Memory(files), made, tasks, ledger)
    done, failed, kept = PictureState.DONE, PictureState.FAILED, PictureState.KEPT
    assert [ledger.records[key][0] for key in files] == [done, failed, kept]
    assert sorted(costs) == sorted([16 * 16 * 2 * 17, 64 * 64 * 3 * 17, 64 * 64 * 3])


def test_what_is_in_memory_stays_under_the_budget() -> None:
    source = Memory({f"{index:02}.png": picture_bytes(index, 64) for index in range(12)})
    cost = 64 * 64 * 3 * 17
    held: list[int] = []

    class Weighed(FakeUpscaler):
        def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
            held.append(studio.budget.used)
            return super().upscale(pictures, seeds, options)

    studio = studio_of(Weighed(), Limits(2**24, batch=4, bytes_in_hand=3 * cost))
    tasks = [Task(key, len(data)) for key, data in source.files.items()]
    ledger = Ledger()
    assert studio.run(SPEC, source, Memory(), tasks, ledger)
    assert len(ledger.records) == 12
    assert max(held) <= 3 * cost
    tight = studio_of(FakeUpscaler(), Limits(2**24, bytes_in_hand=1))
    assert tight.run(SPEC, source, Memory(), tasks, Ledger())  # one may always be in hand, however large
