"""The page in a real Chromium: drawing, watching, comparing, enlarging, cancelling, errors; by keyboard; on a phone."""

import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import Image

from service.claims import Claims
from service.database import database_url, open_database, workers
from service.jobs import Jobs, PictureState
from service.plan import plan
from tests.service_fakes import Running, serving, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    with serving(tmp_path_factory.mktemp("fake"), step_seconds=0.03, data_dir=data, job_workers=0) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()
    playwright.stop()


@pytest.fixture(params=[(1280, 860), (390, 844)], ids=["desk", "phone"])
def page(browser: Any, server: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    context.set_default_timeout(60_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    hosts: set[str] = set()
    page.on(
        "request", lambda sent: hosts.add(re.sub(r"^(\w+://[^/]*|blob:|data:).*", r"\1", sent.url, flags=re.DOTALL))
    )
    page.goto(server.url)
    page.wait_for_selector("#server.ready")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    expected = [each for each in complaints if "status of 4" not in each and "status of 5" not in each]
    assert expected == []
    assert hosts <= {server.url, "blob:", "data:"}
    context.close()


def encoded(format: str, width: int = 12, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, format)
    return buffer.getvalue()


def png(width: int = 12, height: int = 10) -> bytes:
    return encoded("PNG", width, height)


def finished(page: Any) -> None:
    page.wait_for_selector("#tools:not([hidden])")


def test_prompt_to_picture_with_the_keyboard_alone(page: Any, server: Running) -> None:
    server.hold()
    page.focus("#prompt")
    page.keyboard.type("a red apple")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#progress:not([hidden])")
    server.go()
    finished(page)
    assert page.evaluate("document.getElementById('after').naturalWidth") == 32
    assert page.get_attribute("#after", "alt") == "a red apple"
    assert "a red apple" in page.inner_text("#facts")
    page.focus("#slider")
    before = page.evaluate("document.getElementById('before').style.clipPath")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.getElementById('before').style.clipPath") != before
    page.focus("#view")
    small = page.evaluate("document.getElementById('after').style.transform")
    page.keyboard.press("+")
    assert page.evaluate("document.getElementById('after').style.transform") != small
    page.keyboard.press("0")
    assert page.evaluate("document.getElementById('after').style.transform") == small


def test_seed_is_shown_and_makes_the_picture_again_and_downloads(page: Any, server: Running) -> None:
    page.fill("#prompt", "again")
    page.click("#go")
    finished(page)
    seed = re.search(r"Seed\s+(\d+)", page.inner_text("#facts"))
    assert seed
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == f"again-{seed[1]}.png"
    first = Path(download.value.path()).read_bytes()
    server.hold()
    page.click("#again")
    page.wait_for_selector("#tools[hidden]", state="attached")
    server.go()
    finished(page)
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_bytes() == first


def test_what_is_typed_while_a_picture_is_drawn_is_not_taken_for_its_own(page: Any, server: Running) -> None:
    server.hold()
    page.fill("#prompt", "the first")
    page.click("#go")
    page.wait_for_selector("#progress:not([hidden])")
    page.fill("#prompt", "the next")
    page.check("input[name=mode][value=enlarge]", force=True)
    server.go()
    finished(page)
    server.hold()
    page.click("#again")
    page.wait_for_selector("#tools[hidden]", state="attached")
    server.go()
    finished(page)
    assert page.input_value("#prompt") == "the first"
    assert "the first" in page.inner_text("#facts")


def test_history_outlives_the_page_and_can_be_cleared(page: Any) -> None:
    page.fill("#prompt", "kept")
    page.click("#go")
    finished(page)
    page.reload()
    page.wait_for_selector("#history button")
    page.click("#history button")
    finished(page)
    assert "kept" in page.inner_text("#facts")
    page.click("#forget")
    page.wait_for_selector("#past[hidden]", state="attached")


def test_what_was_typed_and_set_outlives_a_reload(page: Any) -> None:
    page.fill("#prompt", "a long prompt,\nnot sent yet")
    page.check("input[name=upscale][value='16']", force=True)
    page.click("summary")
    page.fill("[name=steps]", "9")
    page.select_option("[name=scheduler]", index=1)
    scheduler = page.input_value("[name=scheduler]")
    page.check("input[value=enlarge]")
    page.reload()
    page.wait_for_selector("#server.ready")
    assert page.inner_text("#go") == "Enlarge"
    page.check("input[value=draw]")
    assert page.input_value("#prompt") == "a long prompt,\nnot sent yet"
    assert page.is_checked("input[name=upscale][value='16']")
    assert (page.input_value("[name=steps]"), page.input_value("[name=scheduler]")) == ("9", scheduler)


def test_a_reload_asks_before_it_ends_what_is_being_drawn(page: Any, server: Running) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    server.hold()
    page.fill("#prompt", "nearly done")
    page.click("#go")
    page.wait_for_selector("#progress:not([hidden])")
    page.evaluate("void location.reload()")
    wait_until(lambda: page.evaluate("1") and asked)
    server.go()
    finished(page)
    assert asked == ["beforeunload"]
    assert page.get_attribute("#after", "alt") == "nearly done"


def test_picture_chosen_is_enlarged_and_compared(page: Any) -> None:
    page.check("input[value=enlarge]")
    page.set_input_files("#file", {"name": "teal.png", "mimeType": "image/png", "buffer": png()})
    page.wait_for_selector("#dropped img")
    assert "48 × 40 pixels" in page.inner_text("#size")
    page.click("summary")
    page.fill("[name=views]", "2")
    with page.expect_request("**/upscale?*") as sent:
        page.click("#go")
    assert "views=2" in sent.value.url
    finished(page)
    assert page.evaluate("document.getElementById('after').naturalWidth") == 48
    assert page.is_visible("#before") and page.is_visible("#compare")
    page.click("#toggle")
    assert not page.is_visible("#before")


def test_several_pictures_are_offered(page: Any) -> None:
    page.fill("#prompt", "several")
    page.click("summary")
    page.fill("[name=num_images]", "3")
    page.fill("[name=seed]", "5")
    page.click("#go")
    finished(page)
    assert page.locator("#several button").count() == 3
    page.locator("#several button").nth(2).click()
    wait_until(lambda: re.search(r"Seed\s+7\b", page.inner_text("#facts")))


def test_cancel_stops_the_work(page: Any, server: Running) -> None:
    page.click("summary")
    page.fill("[name=steps]", "100")
    page.fill("#prompt", "never mind")
    server.hold()
    page.click("#go")
    wait_until(lambda: "begun never mind" in server.log())
    page.click("#stop")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "Cancelled."
    server.go()
    wait_until(lambda: server.log()[-1] == "stopped never mind by Stop")
    (server.place / "log").unlink()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "Type what to draw"),
        ("refuse", "99 tokens; the base model reads at most 77"),
        ("fail", "the models failed"),
        ("a" * 1001, "at most 1000 characters"),
    ],
)
def test_errors_are_said_in_words(page: Any, prompt: str, words: str) -> None:
    page.fill("#prompt", prompt)
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert words in page.inner_text("#error")
    page.wait_for_selector("#go:not([aria-disabled=true])")


def test_a_wrong_field_out_of_sight_is_shown_and_said_in_words(page: Any) -> None:
    page.fill("#prompt", "a")
    page.click("summary")
    page.fill("[name=seed]", "99999999999")
    page.click("summary")
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert re.match(r"Seed: .*4294967295", page.inner_text("#error"))
    assert page.is_visible("[name=seed]")
    assert page.evaluate("document.activeElement.name") == "seed"
    page.fill("[name=seed]", "7")
    page.focus("#go")
    page.wait_for_selector("#error", state="hidden")
    page.click("#go")
    finished(page)


def test_what_only_drawing_takes_does_not_keep_from_enlarging(page: Any) -> None:
    page.click("summary")
    page.fill("[name=num_images]", "99")
    page.check("input[value=enlarge]")
    page.set_input_files("#file", {"name": "teal.png", "mimeType": "image/png", "buffer": png()})
    page.wait_for_selector("#dropped img")
    page.click("#go")
    finished(page)
    page.check("input[value=draw]")
    page.fill("#prompt", "a")
    page.fill("[name=num_images]", "1")
    page.fill("[name=guidance_scale]", "7.3")
    page.click("#go")
    wait_until(lambda: re.search(r"Guidance scale\s+7\.3", page.inner_text("#facts")))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_however_they_are_cut(page: Any, size: int) -> None:
    events = ': a comment\n\nevent: status\ndata: {\ndata: }\n\n\nevent: done\ndata: "a picture"\n\n'
    heard = page.evaluate(
        """async ([text, size]) => {
            const { follow } = await import("/page/api.js");
            const parts = text.match(new RegExp(`[^]{1,${size}}`, "g")).map((part) => new TextEncoder().encode(part));
            const fetch = window.fetch, heard = [];
            window.fetch = async () => new Response(new ReadableStream({
                pull: (stream) => parts.length ? stream.enqueue(parts.shift()) : stream.close(),
            }));
            const on = (name) => (data) => heard.push([name, data]);
            await follow("generate", {}, { status: on("status"), done: on("done") });
            window.fetch = fetch;
            return heard;
        }""",
        [events, size],
    )
    assert heard == [["status", {}], ["done", "a picture"]]


def test_a_key_that_is_refused_is_tried_again_once_at_a_time(page: Any) -> None:
    page.clock.install()
    page.route("**/info", lambda route: route.fulfill(status=401, json={"detail": "not one of this server's"}))
    page.click("summary")
    for key in ("a", "b", "c"):
        with page.expect_request_finished(lambda request: request.url.endswith("/info")):
            page.fill("[name=key]", key)
            page.dispatch_event("[name=key]", "change")
        page.wait_for_selector("#server.bad")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    page.clock.run_for(2000)
    page.evaluate("fetch('healthz')")  # after those, if there are any
    wait_until(lambda: page.evaluate("1") and "healthz" in asked)
    assert asked[: asked.index("healthz")].count("info") == 1


def test_the_form_lies_over_nothing_however_far_the_page_is_scrolled(page: Any) -> None:
    page.fill("#prompt", "a")
    page.click("#go")
    finished(page)
    page.click("summary")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_until(lambda: page.evaluate("scrollY") > 0)
    assert page.locator("#ask").bounding_box()["y"] < 0
    edges = "[document.getElementById('ask').getBoundingClientRect().bottom, jobs.getBoundingClientRect().top]"
    form_ends, jobs_begin = page.evaluate(edges)
    assert form_ends <= jobs_begin


def test_a_picture_that_the_browser_cannot_show_is_enlarged_all_the_same(page: Any) -> None:
    page.check("input[value=enlarge]")
    page.set_input_files("#file", {"name": "teal.tiff", "mimeType": "image/tiff", "buffer": encoded("TIFF")})
    page.get_by_text("teal.tiff").wait_for()
    assert page.inner_text("#size") == ""
    page.click("#go")
    finished(page)
    page.get_by_text("This browser cannot show such a file").wait_for()
    assert not page.is_visible("#view") and not page.is_visible("#compare") and not page.is_visible("#toggle")
    with page.expect_download() as download:
        page.click("#download")
    with Image.open(download.value.path()) as picture:
        assert (picture.format, picture.size) == ("TIFF", (48, 40))
    page.check("input[value=draw]")
    page.fill("#prompt", "a")
    page.click("#go")
    page.wait_for_selector("#compare:not([hidden])")
    assert page.is_visible("#view") and not page.is_visible("#unseen")


SLOW = """() => {
    const decode = HTMLImageElement.prototype.decode;
    HTMLImageElement.prototype.decode = function () {
        HTMLImageElement.prototype.decode = decode;
        return new Promise((go) => { window.letGo = go; }).then(() => decode.call(this));
    };
}"""
"""The next picture takes until `letGo()` to be decoded, as a large one does."""


def choose(page: Any, name: str, width: int) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": png(width)})


def test_what_was_chosen_last_is_enlarged_though_it_is_not_shown_yet(page: Any) -> None:
    page.check("input[value=enlarge]")
    choose(page, "first.png", 12)
    page.wait_for_selector("#dropped img")
    page.evaluate(SLOW)
    choose(page, "large.png", 20)
    page.click("#go")
    finished(page)
    assert page.evaluate("document.getElementById('after').naturalWidth") == 80


def test_a_picture_that_is_decoded_late_does_not_take_the_place_of_a_later_one(page: Any) -> None:
    page.check("input[value=enlarge]")
    page.evaluate(SLOW)
    choose(page, "large.png", 20)
    choose(page, "last.png", 12)
    page.wait_for_selector("#dropped img")
    page.evaluate("letGo()")
    page.evaluate("new Promise((go) => setTimeout(go, 100))")
    assert page.inner_text("#dropped") == "last.png, 12 × 10"


@pytest.mark.parametrize(("text", "mode"), [("", "enlarge"), ("words", "draw")])
def test_a_picture_pasted_is_taken_unless_it_comes_with_text_for_the_prompt(page: Any, text: str, mode: str) -> None:
    page.focus("#prompt")
    page.evaluate(
        """([text, bytes]) => {
            const pasted = new DataTransfer();
            for (const kind of ["text/plain", "text/html"]) if (text) pasted.setData(kind, text);
            pasted.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            const told = { clipboardData: pasted, bubbles: true, cancelable: true };
            document.activeElement.dispatchEvent(new ClipboardEvent("paste", told));
        }""",
        [text, list(png())],
    )
    assert page.evaluate("document.getElementById('ask').elements.mode.value") == mode


@pytest.mark.parametrize("number", [1, 2])
def test_of_several_pictures_dropped_it_is_said_which_one_was_taken(page: Any, number: int) -> None:
    page.evaluate(
        """([number, bytes]) => {
            const dropped = new DataTransfer();
            for (const name of ["a.png", "b.png"].slice(0, number))
                dropped.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            const told = { dataTransfer: dropped, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("drop", told));
        }""",
        [number, list(png())],
    )
    page.wait_for_selector("#dropped img")
    assert page.inner_text("#dropped").startswith("a.png")
    said = "One picture at a time: a.png was taken." if number > 1 else ""
    assert page.inner_text("#error") == said


def drawn(page: Any, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.click("#go")
    page.wait_for_selector(f"#after[alt='{prompt}']")
    finished(page)


def test_an_older_picture_is_looked_at_while_the_next_is_drawn(page: Any, server: Running) -> None:
    drawn(page, "older")
    page.click("summary")
    page.fill("[name=steps]", "100")
    page.fill("#prompt", "newer")
    page.click("#go")
    page.wait_for_selector("#after[alt='newer, not finished']")
    server.hold()
    page.click("#history button")
    page.wait_for_selector("#after[alt='older']")
    before = page.inner_text("#step")
    server.go()
    wait_until(lambda: page.inner_text("#step") != before)
    server.hold()
    page.evaluate("new Promise((go) => setTimeout(go, 300))")
    assert page.get_attribute("#after", "alt") == "older"
    assert page.get_attribute("#download", "download").startswith("older")
    assert page.is_visible("#progress") and page.is_disabled("#again")
    server.go()
    page.wait_for_selector("#after[alt='newer']")
    assert page.get_attribute("#download", "download").startswith("newer")


def test_the_picture_clicked_last_is_the_one_that_stays(page: Any) -> None:
    drawn(page, "slow")
    drawn(page, "fast")
    page.evaluate(
        """() => {
            const real = window.createImageBitmap;
            window.createImageBitmap = (blob) => {
                window.createImageBitmap = real;
                return new Promise((go) => { window.letGo = () => go(real(blob)); });
            };
        }"""
    )
    page.click("#history button[title=slow]")
    page.click("#history button[title=fast]")
    page.wait_for_selector("#history [title=fast][aria-current=true]")
    page.evaluate("letGo()")
    page.evaluate("new Promise((go) => setTimeout(go, 100))")
    assert page.get_attribute("#after", "alt") == "fast"
    assert page.get_attribute("#download", "download").startswith("fast")


def test_the_history_says_which_picture_is_shown(page: Any) -> None:
    drawn(page, "one")
    drawn(page, "two")
    page.wait_for_selector("#history [title=two][aria-current=true]")
    assert page.locator("#history [aria-current=true]").count() == 1


def test_zoom_is_kept_from_preview_to_preview(page: Any) -> None:
    page.evaluate(
        """async () => {
            const { show } = await import("/page/viewer.js");
            window.showOne = (side, name) => {
                const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
                return show(canvas.toDataURL(), null, name);
            };
        }"""
    )

    def shown(side: int, name: str = "a preview") -> tuple[float, float]:
        page.evaluate("([side, name]) => showOne(side, name)", [side, name])
        box = page.locator("#after").bounding_box()
        return pytest.approx(box["width"], abs=0.5), pytest.approx(box["x"], abs=0.5)

    fitted = shown(8)
    assert shown(32) == fitted
    page.focus("#view")
    for key in ("+", "+", "ArrowLeft"):
        page.keyboard.press(key)
    zoomed = shown(32)
    assert zoomed != fitted
    assert shown(64) == zoomed
    assert shown(8, "another") == fitted


def test_the_keyboard_keeps_its_place_and_the_end_is_said(page: Any, server: Running) -> None:
    focused = "document.activeElement.id"
    page.evaluate(
        """() => {
            window.heard = [];
            const hear = (changes) => changes.forEach(({ target }) => {
                const region = target.parentElement?.closest("[role=status]") ?? target.closest?.("[role=status]");
                if (region && !region.closest("[hidden]")) heard.push(region.textContent);
            });
            const what = { subtree: true, childList: true, characterData: true };
            new MutationObserver(hear).observe(document.body, what);
        }"""
    )
    page.fill("#prompt", "a red apple")
    page.focus("#go")
    server.hold()
    page.keyboard.press("Enter")
    page.wait_for_selector("#progress:not([hidden])")
    assert page.evaluate(focused) == "go"
    server.go()
    finished(page)
    assert page.evaluate(focused) == "go"
    heard = page.evaluate("heard")
    assert heard[-1] == "Done: a red apple, 32 × 32 pixels"
    assert len(heard) == len(set(heard)) and not any("step" in each for each in heard), heard
    page.focus("#again")
    server.hold()
    page.keyboard.press("Enter")
    page.wait_for_selector("#tools[hidden]", state="attached")
    server.go()
    finished(page)
    assert page.evaluate(focused) == "go"
    server.hold()
    page.keyboard.press("Enter")
    page.focus("#stop")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop", state="hidden")
    server.go()
    assert page.evaluate(focused) == "go"


def test_a_server_that_went_away_is_not_said_to_be_ready(page: Any) -> None:
    for path in ("**/info", "**/generate?*"):
        page.route(path, lambda route: route.fulfill(status=503, json={"detail": "the models are still loading"}))
    page.fill("#prompt", "a")
    page.click("#go")
    page.wait_for_selector("#server.bad")
    assert page.inner_text("#server") == "the models are still loading"
    page.unroute_all()
    page.wait_for_selector("#server.ready")


def test_a_key_that_is_wanted_has_a_place_in_sight(page: Any) -> None:
    for path in ("**/info", "**/generate?*"):
        page.route(path, lambda route: route.fulfill(status=401, json={"detail": "this server wants an API key"}))
    page.reload()
    page.wait_for_selector("#server.bad")
    assert page.is_visible("[name=key]")
    page.click("summary")
    page.fill("#prompt", "a")
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert page.evaluate("document.activeElement.name") == "key"
    assert page.is_visible("[name=key]")


def test_when_to_come_back_is_said_once(page: Any) -> None:
    problem = {"detail": "the queue is full; try again in 6 s"}
    full = {"status": 429, "headers": {"retry-after": "6"}, "json": problem}
    page.route("**/generate?*", lambda route: route.fulfill(**full))
    page.fill("#prompt", "a")
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == problem["detail"]


def test_before_does_not_shine_through_after_nor_the_other_way(page: Any, server: Running) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (12, 12), (200, 0, 0, 128)).save(buffer, "PNG")
    page.check("input[value=enlarge]")
    page.set_input_files("#file", {"name": "glass.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.wait_for_selector("#dropped img")
    page.click("#go")
    finished(page)
    with Image.open(io.BytesIO(page.locator("#view").screenshot())) as picture:
        width, height = picture.size
        left, right = (picture.getpixel((width // 2 + by, height // 2)) for by in (-30, 30))
    assert left == right
    page.click("#toggle")
    with Image.open(io.BytesIO(page.locator("#view").screenshot())) as picture:
        assert picture.getpixel((width // 2 - 30, height // 2)) == right
    page.click("#toggle")
    server.hold()
    page.click("#go")
    page.wait_for_selector("#progress:not([hidden])")
    assert page.evaluate("document.getElementById('after').style.clipPath") == ""
    server.go()


@pytest.mark.parametrize("density", [1, 2])
def test_one_for_one_is_of_the_screens_own_pixels(browser: Any, server: Running, density: int) -> None:
    context = browser.new_context(device_scale_factor=density)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(server.url)
    drawn(page, "sharp")
    page.click("[data-zoom=one]")
    assert page.locator("#after").bounding_box()["width"] * density == 32
    context.close()


def test_every_control_has_a_name(page: Any) -> None:
    unnamed = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button, a, progress")].filter((each) =>
            !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label")))
            .map((each) => each.outerHTML)"""
    )
    assert unnamed == []


@pytest.fixture
def jobs(server: Running) -> Iterator[Jobs]:
    jobs = Jobs(open_database(database_url(server.app.state.settings.data_dir, None)))
    yield jobs
    jobs.close()


def begun(server: Running, jobs: Jobs) -> str:
    """A job of four pictures, listed as by a worker that is named like it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("a.png", "b.png", "c.png", "d.png"):
            out.writestr(name, png())
    id = str(server.client.post("/jobs/zip", content=archive.getvalue()).json()["id"])
    plan(jobs, id)
    with jobs.engine.begin() as connection:
        connection.execute(sa.insert(workers), [{"id": id, "beat": 0}])
    return id


def do(jobs: Jobs, id: str, key: str, state: PictureState) -> None:
    """As that worker does with a picture."""
    assert Claims(jobs.engine).begin(id, 1, key, id)
    Claims(jobs.engine).record(id, key, id, state, {"source": key, "error": "it is damaged"})


def test_a_job_shows_how_far_it_is_and_is_cancelled_and_forgotten(page: Any, server: Running, jobs: Jobs) -> None:
    id = begun(server, jobs)
    for key, state in (("a.png", PictureState.DONE), ("b.png", PictureState.FAILED)):
        do(jobs, id, key, state)
    page.reload()
    job = page.locator(f"#job-{id}")
    job.get_by_text("running: 1 of 4, 1 failed").wait_for()
    assert "A ZIP of pictures" in job.inner_text()
    bar = job.locator("progress")
    assert bar.evaluate("bar => bar.value / bar.max") == 0.5
    assert bar.evaluate("bar => getComputedStyle(bar).backgroundColor") != "rgb(255, 255, 255)"
    job.get_by_role("button", name="Cancel").click()
    job.get_by_text("cancelled: 1 of 4, 1 failed").wait_for()
    job.get_by_text("What failed").click()
    job.get_by_text("b.png: it is damaged").wait_for()
    job.get_by_role("button", name="Forget").click()
    job.wait_for(state="detached")


def test_a_job_that_goes_on_keeps_the_keyboards_place_and_half_a_press(page: Any, server: Running, jobs: Jobs) -> None:
    id = begun(server, jobs)
    do(jobs, id, "a.png", PictureState.DONE)
    page.reload()
    job = page.locator(f"#job-{id}")
    job.get_by_text("running: 1 of 4").wait_for()
    cancel = job.get_by_role("button", name="Cancel")
    cancel.focus()
    page.keyboard.down("Space")
    do(jobs, id, "b.png", PictureState.DONE)
    job.get_by_text("running: 2 of 4").wait_for()
    assert job.locator("progress").evaluate("bar => bar.value / bar.max") == 0.5
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.up("Space")
    job.get_by_text("cancelled: 2 of 4").wait_for()
    server.client.delete(f"/jobs/{id}")


def test_the_keyboards_place_outlives_a_change_of_what_can_be_done(page: Any, server: Running, jobs: Jobs) -> None:
    id = begun(server, jobs)
    page.reload()
    job = page.locator(f"#job-{id}")
    job.get_by_text("running: 0 of 4").wait_for()
    job.get_by_role("button", name="Cancel").focus()
    do(jobs, id, "a.png", PictureState.DONE)
    job.get_by_text("Download").wait_for()  # there is something now
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    server.client.post(f"/jobs/{id}/cancel")
    job.get_by_text("cancelled: 1 of 4").wait_for()
    assert page.evaluate("document.activeElement.closest('li')?.id") == f"job-{id}"
    job.get_by_role("button", name="Forget").focus()
    page.keyboard.press("Enter")
    job.wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Enlarge a ZIP of pictures ×4"
