"""Folders and a real S3 server under one interface; what leads out of a root is refused."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.storage import (
    Folder,
    Missing,
    NotAllowed,
    Place,
    StorageError,
    StorageTrouble,
    _of_os,
    check_places,
    open_place,
)
from tests.jobs_servers import S3


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        return open_place(str(tmp_path / "place"))
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    place = open_place("s3://pictures/some/prefix")
    place.clear()
    return place


def test_what_is_written_is_listed_and_read(place: Place) -> None:
    large = os.urandom(12 << 20)
    assert place.write("a.png", b"one") == 3
    assert place.write("deep/er/b c.png", iter([large[:5], large[5:]])) == len(large)
    assert place.write("a.png", b"other") == 5
    assert sorted(place.list()) == [("a.png", 5), ("deep/er/b c.png", len(large))]
    assert [key for key, _ in place.list(recursive=False)] == ["a.png"]
    assert place.read("a.png") == b"other"
    assert b"".join(place.stream("deep/er/b c.png")) == large
    assert (place.size("a.png"), place.size("none.png")) == (5, None)
    with pytest.raises(Missing, match=r"none\.png"):
        place.read("none.png")
    place.clear()


def test_a_bucket_that_is_not_there_is_an_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError):
        open_place("s3://no-such-bucket/x").write("a.png", b"one")


def test_a_key_that_obstore_does_not_take_is_an_error_in_one_line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("keys")
    place = open_place("s3://keys/odd")
    with pytest.raises(StorageError, match=r"^a\tb\.png: .*path") as refused:
        place.write("a\tb.png", b"one")
    assert "\n" not in str(refused.value)
    httpx.put(f"{s3.url}/keys/odd//b.png", content=b"one").raise_for_status()
    with pytest.raises(StorageError, match=r"^s3://keys/odd: .*odd//b\.png") as refused:
        list(place.list())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["\N{GRINNING FACE}" * 62 + ".png", "雪" * 83 + ".png", "x" * 251 + ".png"])
def test_any_name_that_a_folder_can_have_is_written(tmp_path: Path, name: str) -> None:
    assert Folder(tmp_path).write(name, b"one") == 3
    assert os.listdir(tmp_path) == [name]


def test_a_writer_is_not_stopped_by_what_one_of_its_number_left_on_another_machine(tmp_path: Path) -> None:
    for count in range(2000):  # in containers all processes may have one number
        (tmp_path / f".a.png.part-{os.getpid()}-{count}").touch()
    assert Folder(tmp_path).write("a.png", b"one") == 3


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a.png", b"whole")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageTrouble, match=r"a\.png: No space left"):
        folder.write("a.png", broken())
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_a_killed_writer_left_is_not_listed_and_tidied_away(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".a.png.part-12-3", "deep/.b\nc.png.part-1-0", "a.part-1-2", ".hidden.part-x"):
        (tmp_path / name).write_bytes(b"x")
    folder = Folder(tmp_path)
    assert sorted(key for key, _ in folder.list()) == [".hidden.part-x", "a.part-1-2"]
    folder.tidy()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".hidden.part-x", "a.part-1-2"]


def test_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / ".Trash" / "1000").mkdir(parents=True)
    (tmp_path / ".Trash" / "1000" / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"x")
    assert list(Folder(tmp_path).list()) == [("b.png", 1)]


def test_only_what_passes_is_trouble() -> None:
    assert isinstance(_of_os(OSError(errno.EDQUOT, "Quota"), "a"), StorageTrouble)
    assert not isinstance(_of_os(PermissionError(errno.EACCES, "Denied"), "a"), StorageTrouble)


def test_links_are_neither_listed_nor_followed_out(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder").symlink_to(outside)
    folder = Folder(inside)
    assert list(folder.list()) == []
    for key in ("link", "folder/secret", "../out/secret", "folder/new"):
        with pytest.raises(StorageError, match="leads out"):
            folder.read(key)
        with pytest.raises(StorageError, match="leads out"):
            folder.write(key, b"x")
    assert os.listdir(outside) == ["secret"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("{root}/in", "{root}/out", None),
        ("s3://bucket/data/in", "{root}/out", None),
        ("{root}/in", "/etc", "output /etc is not below"),
        ("{root}/../x", "{root}/out", "input .* is not below"),
        ("{root}/escape/x", "{root}/out", "input .* is not below"),
        ("{root}-sibling", "{root}/out", "input .* is not below"),
        ("s3://bucket/other", "{root}/out", "input .* is not below"),
        ("s3://bucket/data/../other", "{root}/out", "must not contain"),
        ("{root}/in", "{root}/in/out", "one inside the other"),
        ("{root}/in/deep", "{root}/in", "one inside the other"),
        ("{root}/in", "{root}/same/../in", "one inside the other"),
        ("{root}/in", "{root}/alias/out", "one inside the other"),
    ],
)
def test_places_stay_below_the_roots_and_apart(tmp_path: Path, source: str, target: str, message: str | None) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "escape").symlink_to("/")
    (root / "alias").symlink_to(root / "in")
    places = source.format(root=root), target.format(root=root)
    if message is None:
        check_places(*places, [str(root), "s3://bucket/data"])
        return
    with pytest.raises(NotAllowed, match=message):
        check_places(*places, [str(root), "s3://bucket/data"])


def test_no_roots_allow_nothing_and_other_schemes_are_unknown() -> None:
    with pytest.raises(NotAllowed, match="SERVICE_STORAGE_ROOTS"):
        check_places("/tmp/a", "/tmp/b", [])
    for url in ("http://host/x", "file:///etc", "s3:///x"):
        with pytest.raises(ValueError, match="neither a folder nor"):
            open_place(url)


@pytest.mark.parametrize("url", ["~nosuch/photos", "/tmp/a\0b", "s3://bucket/a\0b"])
def test_names_that_no_folder_can_have_are_value_errors(url: str) -> None:
    for attempt in (lambda: open_place(url), lambda: check_places(url, "/tmp/b", None)):
        with pytest.raises(ValueError, match=r"nosuch|NUL"):
            attempt()


@pytest.mark.parametrize("name", ["GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_NAME"])
def test_a_cloud_whose_credentials_are_wrong_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in [each for each in os.environ if each.startswith(("GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(each)
    if name.startswith("GOOGLE"):
        monkeypatch.setenv(name, "/none.json")
    url = "gs://bucket/x" if name.startswith("GOOGLE") else "az://container/x"
    with pytest.raises(StorageError, match=r"\(credentials come from the environment: (GOOGLE|AZURE)_") as caught:
        open_place(url)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(url)
