"""Jobs over HTTP: a real server, real workers, archives in and out, and what is refused."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.archive import MAX_FILES, BadArchive, packed, unpack
from service.settings import Settings
from service.storage import Folder
from tests.jobs_fakes import BROKEN, fill, picture_bytes
from tests.jobs_http import jobs_app, running
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


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
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
    assert client.delete(f"/jobs/{id}").status_code == 204
    for path in (f"/jobs/{id}", f"/jobs/{id}/events", f"/jobs/{id}/result.zip"):
        assert problem(client.get(path)).status == 404
    assert len(list((root / "free" / "out").iterdir())) == 7


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
    assert not list((root / "data" / "uploads" / id).glob("*"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": "/etc"}, "input"),
        ({"output": "{root}/free/in/deeper"}, "output"),
        ({"output": "{root}/free/../data"}, "output"),
        ({"output": "s3://bucket/x"}, "output"),
        ({"output": "ftp://host/x"}, "output"),
        ({"input": "{root}/data/uploads/x"}, "input"),
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


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no archive", 415),
        (archive({"../../escape.png": b"x"}), 413),
        (archive({"/etc/x.png": b"x"}), 413),
        (archive({"large.png": bytes(300_000)}), 413),
        (os.urandom(200_001), 413),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    client: httpx.Client, root: Path, data: bytes, status: int
) -> None:
    assert problem(client.post("/jobs/zip", content=data)).status == status
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
