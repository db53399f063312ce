"""A fake upscaler, the worker around it as a process of its own (`python -m tests.jobs_fakes`), and pictures to do."""

import hashlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from service.job_worker import main
from service.pictures import Picture
from service.plan import MANIFEST
from service.settings import Settings
from service.storage import Folder, Place, StorageTrouble, open_place
from service.upscale import UpscaleOptions

POISON = 13  # the red of a picture's first pixel that ends the process
BROKEN = 14  # … that the upscaler fails on
SIDE = 16


class FakeUpscaler:
    """Repeats pixels and adds the seed's noise. `JOBS_LOG` gets a line for each picture; `JOBS_SECONDS` for each."""

    on_cpu = True

    def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
        """See `device.Upscaler`."""
        for picture in pictures:
            if path := os.environ.get("JOBS_LOG"):
                with open(path, "a") as log:
                    digest = hashlib.sha256(picture.pixels.tobytes()).hexdigest()
                    log.write(f"{digest} {len(pictures)} {os.getpid()}\n")
            time.sleep(float(os.environ.get("JOBS_SECONDS", "0")))
            if picture.pixels[0, 0, 0] == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            if picture.pixels[0, 0, 0] == BROKEN:
                raise RuntimeError("the model failed")
        return [_large(*each, options.factor) for each in zip(pictures, seeds, strict=True)]

    def metadata(self, picture: Picture, seed: int, options: UpscaleOptions) -> dict[str, str]:
        """See `device.Upscaler`."""
        return {"parameters": f"Seed: {seed}"}


def _large(picture: Picture, seed: int, factor: int) -> Picture:
    pixels = picture.pixels.repeat(factor, 0).repeat(factor, 1)
    noise = np.random.default_rng(seed).integers(0, 4, pixels.shape, dtype=pixels.dtype)
    return replace(picture, pixels=pixels ^ noise)


def picture_bytes(index: int, side: int = SIDE, format: str = "PNG", first: int = 200) -> bytes:
    """A small picture, another for each index; `first` is the red of its first pixel."""
    pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[0, 0, 0] = first
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def fill(folder: Path, count: int, side: int = SIDE) -> None:
    """`count` pictures in a folder, of four sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index:05}.png").write_bytes(picture_bytes(index, side + 4 * (index % 4)))


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(settings: Settings) -> FakeUpscaler:
    """What `service.upscale.load_upscaler` does, at once."""
    return FakeUpscaler()


class Silent(Folder):
    """A folder that does not answer, as a bucket may not."""

    def list(self, recursive: bool = True, refused: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
        """See `Place`."""
        raise StorageTrouble("no answer")


class Full(Folder):
    """A folder without room for a manifest."""

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        """See `Place`."""
        if key == MANIFEST:
            raise StorageTrouble("no room")
        return super().write(key, parts, flush)


class Crammed(Folder):
    """A folder without room for a picture."""

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        """See `Place`."""
        if key != MANIFEST:
            raise StorageTrouble("no room")
        return super().write(key, parts, flush)


def place(url: str) -> Place:
    """`open_place`, but for folders that are called silent, full or crammed."""
    kinds = {"silent": Silent, "full": Full, "crammed": Crammed}
    return kinds[Path(url).name](Path(url)) if Path(url).name in kinds else open_place(url)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], load, (sys.executable, "-m", "tests.jobs_fakes"), place))
