"""Folders of captioned pictures: both layouts, and every fault named."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.folder import Captioned, read_captioned


def picture(path, colour=(200, 30, 30, 255)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (20, 10), colour).save(path)


def test_captions_beside_the_pictures(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "deep" / "a.png", (0, 0, 0, 0))
    (tmp_path / "b.txt").write_text("﻿a red\n card \n", encoding="utf-8")
    (tmp_path / "deep" / "a.caption").write_text("白色", encoding="utf-8")
    found = read_captioned(tmp_path)
    assert [(f.path.name, f.caption) for f in found] == [("b.png", "a red card"), ("a.png", "白色")]
    assert np.asarray(found[0].open())[0, 0].tolist() == [200, 30, 30]
    assert np.asarray(found[1].open()).min() == 255  # what is transparent is white


def test_metadata_lines(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "caption": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [f.caption for f in read_captioned(tmp_path)] == ["one", "two"]


def test_sixteen_bits_of_grey_keep_their_tones(tmp_path):
    ramp = np.arange(256, dtype=np.uint16)[None].repeat(4, axis=0) * 257
    for values, options in (
        (ramp, {"format": "PNG"}),
        (ramp, {"format": "PNG", "transparency": 257 * 30}),
        (ramp.astype(np.int32), {"format": "TIFF"}),
    ):
        Image.fromarray(values).save(tmp_path / "a.png", **options)
        wanted = np.arange(256)
        if "transparency" in options:
            wanted[30] = 255  # as what is transparent is white
        seen = np.asarray(Captioned(tmp_path / "a.png", "").open())
        assert seen.shape == (4, 256, 3) and (seen == wanted[None, :, None]).all()


def test_every_fault_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no pictures"):
        read_captioned(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_captioned(tmp_path / "none")
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_text("  ")
    with pytest.raises(ValueError, match=r"b\.png has an empty caption; c\.png has no caption"):
        read_captioned(tmp_path)
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00x")
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(ValueError, match=r"c\.txt is not UTF-8"):
        read_captioned(tmp_path)
    lines = ['{"file_name": "a.png", "text": "x"}', "nonsense", '{"file_name": "d.png", "text": "x"}', '{"text": 1}']
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "b.png"}']))
    with pytest.raises(ValueError, match=r"line 2 is not JSON.*line 4 has no file_name.*line 5 has none of text.*more"):
        read_captioned(tmp_path)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    (tmp_path / "a.txt").write_text("fine")
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        read_captioned(tmp_path)


def test_damage_inside_a_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    (tmp_path / "a.png").write_bytes(data[:second] + b"\0\0\0\0" + data[second + 4 :])
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture: .*chunk"):
        Captioned(tmp_path / "a.png", "").open()


def test_metadata_of_another_encoding_is_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "café"}', encoding="latin-1")
    with pytest.raises(ValueError, match=r"metadata\.jsonl is not UTF-8 text"):
        read_captioned(tmp_path)


def test_only_a_newline_ends_a_line_of_metadata(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    lines = ('{"file_name": "a.png", "text": "one\u2028two"}', '{"file_name": "b.png", "text": "three"}', "")
    (tmp_path / "metadata.jsonl").write_bytes("\r\n".join(lines).encode())
    assert [f.caption for f in read_captioned(tmp_path)] == ["one two", "three"]


def test_captions_of_no_picture_are_named(tmp_path):
    for name in ("a.png", "deep/d.png", ".hidden.png"):
        picture(tmp_path / name)
    for name in ("a.txt", "b.txt", "c.caption", "deep/d.txt", "deep/a.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("fine")
    with pytest.raises(ValueError) as raised:
        read_captioned(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: b.txt, c.caption, deep/a.txt: no picture of that name beside (.bmp, .jpeg, .jpg, .png, .webp)"
    )
    for name in ("b.txt", "c.caption", "deep/a.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "README.txt").write_text("about these")
    with pytest.raises(ValueError, match=r"README\.txt: no picture of that name"):
        read_captioned(tmp_path)
    lines = [{"file_name": name, "text": "fine"} for name in ("a.png", "deep/d.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(read_captioned(tmp_path)) == 2  # captions are in the metadata, and text files are no captions


def test_a_picture_with_several_lines_comes_with_each(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    lines = [("./a.png", "one"), ("sub//b.png", "two"), ("a.png", "three")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": t}) for n, t in lines))
    found = [(each.path.name, each.caption) for each in read_captioned(tmp_path)]
    assert found == [("a.png", "one"), ("a.png", "three"), ("b.png", "two")]


def test_two_files_with_captions_of_one_picture_are_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.caption").write_text("two")
    with pytest.raises(ValueError, match=r"a\.png has two captions, a\.txt and a\.caption"):
        read_captioned(tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path, listed):
    for name in ("a.png", "b.tif", "c.GIF", ".d.gif"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_text("fine")
    if listed:
        lines = [{"file_name": name, "text": "fine"} for name in ("a.png", "b.tif")]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError) as raised:
        read_captioned(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: b.tif, c.GIF: pictures of this kind are not read (.bmp, .jpeg, .jpg, .png, .webp)"
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"b\.tif, c\.GIF: pictures of this kind"):
        read_captioned(tmp_path)
