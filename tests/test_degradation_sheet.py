"""The contact sheet and what it is drawn with."""

import numpy as np
import pytest

from degradation import drawing
from degradation.plan import Blur, Jpeg
from degradation.sheet import Panel, Section, draw_sheet
from tests.degradation_measures import textured


def section(height, width, panels=4, name="photo.jpg"):
    image = textured(0, height, width)
    low = textured(1, max(1, height // 4), max(1, width // 4))
    steps = (Blur(1.0), Jpeg(50))
    others = tuple(Panel(f"bsr {i}", low, steps) for i in range(1, panels))
    return Section(name, "about it", image, (0, 0, height, width), (Panel("Original", image), *others))


def contains(sheet, picture):
    """Whether the picture lies somewhere on the sheet, pixel for pixel."""
    pixels = np.rint(picture * 255).astype(np.uint8)
    rows, columns = np.nonzero((sheet == pixels[0, 0]).all(axis=2))
    height, width = pixels.shape[:2]
    places = zip(rows, columns, strict=True)
    return any(np.array_equal(sheet[y : y + height, x : x + width], pixels) for y, x in places)


def test_the_original_is_shown_as_it_is_and_the_others_as_squares():
    part = section(320, 320)
    sheet = draw_sheet([part], "A heading", "A footer")
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    assert contains(sheet, part.panels[0].image)
    assert contains(sheet, np.kron(part.panels[1].image, np.ones((4, 4, 1), np.float32)))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (20, 300), (300, 20), (320, 200), (900, 1280)])
@pytest.mark.parametrize("panels", [1, 2, 5, 9])
def test_any_size_and_number_fits(size, panels):
    sheet = draw_sheet([section(*size, panels)] * 2, "Heading " * 9, "word " * 200)
    assert sheet.shape[1] < 2600 and sheet.shape[0] < 8000
    assert (sheet[:, -20:] == drawing.PAPER).all()  # nothing runs out of the sheet


def test_names_in_any_script_and_of_any_length_fit():
    for name in ("中文.png", "é" * 300, "", "caf\udce9.jpg"):  # the last one as Python reads bytes that are no UTF-8
        assert draw_sheet([section(64, 64, name=name)], "x").size


def test_text_is_wrapped_and_cut_to_its_width():
    words = "one two three four five six seven"
    lines = drawing.wrap(words, 120, 15)
    assert len(lines) > 1 and " ".join(lines) == words
    assert all(drawing.text_width(line, 15) <= 120 for line in lines)
    cut = drawing.ellipsis("x" * 100 + "end", 120, 15)
    assert drawing.text_width(cut, 15) <= 120 and "…" in cut and cut.endswith("end")
    assert drawing.ellipsis("short", 120, 15) == "short"


def test_text_goes_where_it_should():
    sheet = drawing.canvas(60, 200)
    drawing.draw_text(sheet, 190, 40, "right", align="right")
    marked = np.nonzero((sheet != drawing.PAPER).any(axis=(0, 2)))[0]
    assert marked.min() > 100 and marked.max() <= 192
