"""Hundreds of kinds of bad pictures, bodies and headers: always an answer, never a 500, never a dead worker."""

import io
import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.pictures import encode_picture
from sr3.images import Picture
from tests.service_fakes import Running, problem, serving, wait_until

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"max_input_pixels": 10_000, "max_pixels": 16 * 10_000, "max_upload_bytes": 200_000}
    with serving(tmp_path_factory.mktemp("fake"), **limits) as running:
        yield running
        assert "service_worker_restarts_total 0.0" in running.client.get("/metrics").text


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"", *more: bytes, wrong: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header, wrong) + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bad_pictures() -> Iterator[bytes]:
    for format in FORMATS:
        whole = picture(format)
        for share in (1, 2, 4, 8, 13, 20, 30, 40, 60, 80, 95):
            yield whole[: len(whole) * share // 100]
        rng = np.random.default_rng(len(whole))
        for _ in range(16):
            spoiled = np.frombuffer(whole, np.uint8).copy()
            where = rng.integers(2, len(spoiled), 12)
            spoiled[where] = rng.integers(0, 256, 12)
            yield spoiled.tobytes()
        yield whole[:20] + whole[40:]
        yield whole * 2
        yield b"\0" + whole
        for other in FORMATS:  # the head of one, the body of another
            yield whole[:12] + picture(other)[12:]
    for width, height in (
        (0, 0),
        (0, 9),
        (9, 0),
        (2**31 - 1, 2**31 - 1),
        (2**31, 9),
        (40_000, 40_000),
        (10**6, 1),
        (7, 9),
    ):
        yield png(width, height)
    for depth in (0, 1, 2, 3, 4, 7, 16, 32, 255):
        for colour in (0, 1, 2, 3, 4, 6, 7):
            yield png(9, 9, depth, colour, b"\0" * 10)
    yield png(9, 9, wrong=1)
    yield png(9, 9, 8, 2, b"\xff" * 252)
    bomb = zlib.compress(b"a" * 50_000_000)[:60_000]
    yield png(9, 9, 8, 2, b"", chunk(b"iCCP", b"x\0\0" + bomb), chunk(b"zTXt", b"x\0\0" + bomb))
    yield png(9, 9, 8, 2, b"", chunk(b"iTXt", b"x\0\1\0\0\0" + bomb))
    yield png(9, 9, 8, 2, b"", chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 100))
    yield png(9, 9, 8, 2, b"", chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))
    for mode, format in (
        ("1", "PNG"),
        ("P", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("F", "TIFF"),
        ("I", "TIFF"),
        ("LAB", "TIFF"),
    ):
        yield picture(format, mode, (5, 5))
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for format in ("PNG", "WEBP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        yield buffer.getvalue()
    for format in ("GIF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "DDS", "ICNS", "JPEG2000"):
        yield picture(format, size=(16, 16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 99, "x" * 60_000
    yield picture("JPEG", exif=exif, size=(4, 4))
    yield b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield b"%PDF-1.7\n"
    yield b"PK\x03\x04" + b"\0" * 60
    yield b"\x7fELF" + b"\0" * 60
    yield b"\x80\x04\x95" + b"cos\nsystem\n(S'x'\ntR."
    yield b"\0" * 1000
    yield b"\xff" * 1000
    yield b"http://169.254.169.254/latest"


PICTURES = list(bad_pictures())


def check(answer: httpx.Response) -> None:
    """A client's error in words, or a picture where what looked bad was none."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert problem(answer).detail
        assert "Traceback" not in answer.text and "/work" not in answer.text


def test_there_are_hundreds_of_kinds() -> None:
    assert len(set(PICTURES)) >= 250


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of these, in the server's own thread
@pytest.mark.parametrize(("path", "every"), [("/upscale", 1), ("/inspect", 3)])
def test_bad_pictures_are_answered(server: Running, path: str, every: int) -> None:
    kinds = ("image/png", "image/jpeg", "application/octet-stream")
    for index, data in enumerate(PICTURES[::every]):
        check(server.client.post(path, content=data, headers={"content-type": kinds[index % 3]}))
    assert server.client.get("/readyz").status_code == 200


@pytest.mark.filterwarnings("ignore")  # Starlette leaves the file of a form that ends too soon to the collector
def test_bad_bodies_and_headers_are_answered(server: Running) -> None:
    whole = encode_picture(Picture(np.zeros((9, 9, 3), np.uint8)))
    form = "multipart/form-data; boundary=x"
    bodies = [
        b"",
        b"--x",
        b"--x--",
        b"--x\r\n\r\n\r\n--x--",
        b"--y\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
    ]
    bodies += [b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + b"a" * n for n in (0, 10, 20_000)]
    bodies += [b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../a"\r\n\r\n' + whole]
    foreign = b'--x\r\nContent-Disposition: form-data; name="image\xff"; filename="\xff.png"\r\n\r\n1\r\n--x--\r\n'
    for charset in ("undefined", "idna", "punycode", "utf-7", "utf-16", "unicode_escape", "hex", "nothing", "\xff"):
        head = {b"content-type": f"{form}; charset={charset}".encode("latin-1")}
        for path in ("/upscale", "/inspect"):
            check(server.client.post(path, content=foreign, headers=head))
    for path in ("/upscale", "/inspect", "/generate", "/v1/images/generations"):
        for body in (*bodies, whole, b"{", b"[" * 5000, b"\xff\xfe", b'{"a":' * 900, b"null", b"1e999", b'"\\ud800"'):
            for kind in (form, "application/json", "image/png; charset=\xff"):
                check(server.client.post(path, content=body, headers={b"content-type": kind.encode("latin-1")}))
    for name, value in (
        ("accept", "\xff"),
        ("accept", "image/png;q=nan"),
        ("accept", "," * 3000),
        ("prefer", "respond-async;;;=,"),
        ("idempotency-key", "k" * 256),
        ("idempotency-key", "\xe9"),
        ("x-request-id", "\r"[:0] + "é"),
        ("authorization", "Bearer"),
        ("content-encoding", "gzip"),
    ):
        head = {**{k.encode(): v.encode() for k, v in JSON.items()}, name.encode(): value.encode("latin-1")}
        check(server.client.post("/generate", content=b'{"prompt": "a"}', headers=head))
    for path in (
        "/requests/..%2f..",
        "/requests/" + "a" * 3000,
        "/page/../settings.py",
        "/page/%2e%2e/app.py",
        "//",
        "/%00",
    ):
        check(server.client.get(path))
        check(server.client.delete(path))


@given(
    path=st.sampled_from(["/generate", "/v1/images/generations"]),
    body=st.dictionaries(
        st.sampled_from(
            [
                "prompt",
                "seed",
                "num_images",
                "steps",
                "width",
                "height",
                "scheduler",
                "format",
                "quality",
                "n",
                "size",
                "stream",
            ]
        ),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers()),
    ),
)
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_options_are_answered(server: Running, path: str, body: dict[str, object]) -> None:
    check(server.client.post(path, content=json.dumps(body), headers=JSON))


@schemathesis.serializer("application/zip")
def _as_it_is(context: object, value: bytes) -> bytes:
    return value


@pytest.mark.filterwarnings("ignore")  # schemathesis' own
def test_openapi_and_the_server_agree(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def agree(case: schemathesis.Case) -> None:
            answer = case.call(timeout=30)
            assert answer.status_code < 500, answer.text
            documented = case.operation.definition.raw["responses"]
            assert str(answer.status_code) in documented or answer.status_code in (404, 405), answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] in ("application/problem+json", ["application/problem+json"])

        agree()
        tried += 1
    assert tried >= 10
    wait_until(lambda: server.pool.running == 0)
