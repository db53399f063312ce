"""The page is one file, fetches nothing, and cannot be broken by a file's name."""

import base64
import json
import re

import cv2
import numpy as np

from degradation.page import draw_page
from degradation.plan import Blur, Jpeg
from degradation.sheet import Panel, Section
from tests.degradation_measures import textured


def make_page(name="photo.jpg"):
    image, low = textured(0, 32, 48), textured(1, 8, 12)
    panels = (Panel("Original", image), Panel("bsr 1", low, (Blur(1.0), Jpeg(50))))
    section = Section(name, "about", image, (0, 0, 32, 48), panels)
    return draw_page([section, section], "Heading <&>"), image, low


def data_of(page):
    return json.loads(re.search(r"const pictures = (.*);\n", page)[1])


def test_the_pictures_are_inside_and_exact():
    page, image, low = make_page()
    versions = data_of(page)[0]["versions"]
    assert [version["title"] for version in versions] == ["Original", "bsr 1"]
    assert [step["text"] for step in versions[1]["steps"]] == ["Blur σ 1.00, 25 taps", "JPEG quality 50, 4:2:0"]
    for version, expected in zip(versions, (image, low), strict=True):
        data = base64.b64decode(version["image"].removeprefix("data:image/png;base64,"))
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(pixels, np.rint(expected * 255).astype(np.uint8))


def test_nothing_is_fetched():
    page, _, _ = make_page()
    assert not re.search(r"https?://|src=\"[^\"]|<link|@import|url\(|fetch\(", page)


def test_names_cannot_break_out():
    page, _, _ = make_page('</script><script>alert(1)</script>"; x')
    assert page.count("<script>") == page.count("</script>") == 1
    assert data_of(page)[0]["name"] == '</script><script>alert(1)</script>"; x'
    assert "<title>Heading &lt;&amp;&gt;</title>" in page
