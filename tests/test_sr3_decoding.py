"""Files as pictures: every kind, every defect."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from sr3.decoding import read, read_folder, upright
from sr3.encoding import encode
from sr3.images import ImageError, TooLarge
from tests.picture_files import noise, png, saved, tiff


def test_orientation_is_applied_and_profile_and_exif_stay():
    image = Image.fromarray(noise(8, 12, 3))
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    picture = read(saved(image, exif=exif, icc_profile=b"a profile"))
    assert picture.pixels.shape == (12, 8, 3)
    again = Image.open(io.BytesIO(encode(picture)))
    assert again.info["icc_profile"] == b"a profile"
    assert again.getexif()[0x010E] == "a description"
    assert again.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4), ("CMYK", 3)]
)
def test_other_modes_become_grey_or_rgb(mode, channels):
    image = Image.fromarray(noise(8, 8, 4)).convert("RGBA" if "A" in mode else "RGB").convert(mode)
    picture = read(saved(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert picture.pixels.shape == (8, 8, channels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_agrees_with_pillow(orientation, dtype):
    pixels = noise(6, 9, 3)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(saved(image, exif=exif)))))
    assert np.array_equal(upright(pixels.astype(dtype), orientation), expected)


def test_a_cameras_jpeg_with_a_preview_behind_it_is_a_jpeg():
    image = Image.fromarray(noise(16, 24, 3))
    data = saved(image, "MPO", save_all=True, append_images=[image.resize((6, 4))])
    with Image.open(io.BytesIO(data)) as file:
        assert (file.format, file.n_frames) == ("MPO", 2)
    picture = read(data)
    assert picture.format == "JPEG" and picture.consistency(None) == 0
    assert np.array_equal(picture.pixels, read(saved(image, "JPEG")).pixels)


def test_one_grey_that_is_transparent_stays_so_in_one_and_in_sixteen_bits():
    pixels = noise(9, 11, 1)[..., 0]
    black = read(saved(Image.fromarray(pixels).convert("1"), transparency=0)).pixels
    assert black.shape == (9, 11, 2) and np.array_equal(black[..., 0], black[..., 1])
    deep = read(saved(Image.fromarray(pixels.astype(np.uint16) * 257), transparency=int(pixels[0, 0]) * 257)).pixels
    assert deep.dtype == np.uint16 and np.array_equal(deep[..., 0], pixels.astype(np.uint16) * 257)
    assert np.array_equal(deep[..., 1], np.where(pixels == pixels[0, 0], 0, 65535))


@pytest.mark.parametrize(("bits", "clear"), [(1, 1), (2, 1), (4, 9), (8, 9)])
def test_one_grey_that_is_transparent_stays_so_in_less_than_eight_bits(bits, clear):
    row = np.arange(16) % 2**bits
    packed = np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()
    made = read(png(16, 8, bits, 0, (b"\0" + packed) * 8, (b"tRNS", struct.pack(">H", clear)))).pixels
    assert made.shape == (8, 16, 2)
    assert np.array_equal(made[0, :, 0], row * 255 // (2**bits - 1))
    assert np.array_equal(made[0, :, 1], np.where(row == clear, 0, 255))


def test_a_deep_tiff_whose_white_is_zero_is_inverted():
    pixels = noise(9, 11, 1, np.uint16)
    assert np.array_equal(read(tiff(pixels, 1)).pixels, pixels)
    assert np.array_equal(read(tiff(pixels, 0)).pixels, 65535 - pixels)


def test_the_fourth_channel_of_a_deep_tiff_is_what_its_tag_says():
    pixels = noise(9, 11, 4, np.uint16)
    assert np.array_equal(read(tiff(pixels, 2, extra=2)).pixels, pixels)
    assert np.array_equal(read(tiff(pixels, 2, extra=0)).pixels, pixels[..., :3])
    pixels[0, 0] = 0
    pixels[0, 1] = (3, 2, 1, 3)
    pixels[1:, :, 3] |= 0x8000
    share = pixels[..., 3:] / 65535
    multiplied = pixels.copy()
    multiplied[1:, :, :3] = np.round(pixels[1:, :, :3] * share[1:])
    made = read(tiff(multiplied, 2, extra=1)).pixels
    assert np.array_equal(made[..., 3], pixels[..., 3])
    assert np.abs(made[1:, :, :3].astype(int) - pixels[1:, :, :3]).max() <= 1  # half of the alpha's 32768 and more
    assert made[0, :2].tolist() == [[0, 0, 0, 0], [65535, 43690, 21845, 3]]


def defects() -> dict[str, tuple[bytes, str]]:
    whole = saved(Image.fromarray(noise(64, 64, 3)), "JPEG")
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    return {
        "empty": (b"", "is empty"),
        "text": (b"This is no picture at all, but a text.", "not a picture in a format that is accepted: PNG, JPEG"),
        "truncated": (whole[: len(whole) // 2], "damaged"),
        "40,000 square": (png(40_000, 40_000, 8, 2), "at most 100 megapixels"),
        "animated": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "gif": (saved(frames[0], "GIF"), "not a picture in a format"),
        "deep planes": (tiff(noise(8, 8, 3, np.uint16), 2, planes=2), r"separate planes \(planar configuration 2\)"),
        "deep CMYK": (tiff(noise(8, 8, 4, np.uint16), 5), r"16 bits a channel of mode CMYK \(photometric interp.* 5\)"),
        "deep grey with alpha": (
            tiff(noise(8, 8, 2, np.uint16), 1, extra=2),
            "layout that is not accepted; with 16 bits",
        ),
        "floats": (saved(Image.new("F", (8, 8)), "TIFF"), "mode F"),
    }


@pytest.mark.parametrize("name", defects())
def test_defects_are_named(name, capfd):
    data, message = defects()[name]
    with pytest.raises(ImageError, match=message):
        read(data)
    assert capfd.readouterr().err == ""  # nor does a library write there


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read(tmp_path / "none.png")
    with pytest.raises(ImageError, match="directory"):
        read(tmp_path)


def test_folders_are_listed_without_links_and_empty_ones_refused(tmp_path):
    with pytest.raises(ImageError, match="holds no pictures"):
        read_folder(tmp_path)
    (tmp_path / "inner").mkdir()
    for name in ("b.PNG", "a.jpg", "inner/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.PNG")
    assert [p.name for p in read_folder(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]
    with pytest.raises(ImageError, match="is not a folder"):
        read_folder(tmp_path / "a.jpg")


def test_resolution_turns_with_the_picture_and_may_be_nonsense():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read(saved(Image.new("RGB", (16, 12)), "JPEG", exif=turned, dpi=(300, 150))).dpi == (150, 300)
    assert read(saved(Image.new("RGB", (16, 12)), "JPEG", dpi=(0, 0))).dpi is None


def test_too_many_pixels_are_told_from_other_defects():
    with pytest.raises(TooLarge, match=r"at most 6\.3e-05 megapixels"):
        read(saved(Image.new("RGB", (8, 8))), max_pixels=63)


def with_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG whose EXIF has these entries: tag, type, count and the four bytes of the value."""
    whole = saved(Image.fromarray(noise(12, 16, 3)), "JPEG", quality=95)
    packed = b"".join(struct.pack("<HHI", *numbers) + value.ljust(4, b"\0") for *numbers, value in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


@pytest.mark.parametrize(
    "mistyped", [(0x0128, 2, 2, b"2"), (0x0128, 8, 1, struct.pack("<h", -2)), (0x4746, 8, 1, struct.pack("<h", -2))]
)
def test_a_mistyped_entry_of_exif_is_left_out_and_the_others_stay(mistyped):
    picture = read(with_exif((0x0110, 2, 4, b"Cam"), mistyped))
    assert picture.pixels.shape == (12, 16, 3)
    exif = Image.Exif()
    exif.load(picture.exif)
    assert exif[0x0110] == "Cam" and 0x0128 not in exif


def test_a_mistyped_entry_in_exifs_own_directory_is_left_out_too():
    inner = struct.pack("<H", 2) + struct.pack("<HHI4sHHI4s", 0x9209, 3, 1, b"\x09", 0xA002, 8, 1, b"\xfe\xff\0\0")
    data = with_exif((0x8769, 4, 1, struct.pack("<I", 26)))
    at = data.index(b"II*\0") + 22  # where the directory's four closing bytes are
    data = data[:at] + bytes(4) + inner + bytes(4) + data[at + 4 :]
    at = data.index(b"\xff\xe1") + 2
    data = data[:at] + struct.pack(">H", struct.unpack(">H", data[at : at + 2])[0] + len(inner) + 4) + data[at + 2 :]
    exif = Image.Exif()
    exif.load(read(data).exif)
    assert dict(exif.get_ifd(0x8769)) == {0x9209: 9}
