"""Decoding in another process: what it returns and raises arrives, and losing the process loses one picture."""

import asyncio
import io
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from service.decoder import Decoders
from service.pictures import InvalidPicture, decode_picture


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(1, seconds=20)
    yield made
    made.close()


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_and_a_refusal_arrive_as_they_are(decoders: Decoders) -> None:
    async def both() -> None:
        picture = await decoders.run(decode_picture, png(9), 1000)
        assert picture.pixels.shape == (9, 9, 3) and np.all(picture.pixels == (1, 2, 3))
        with pytest.raises(InvalidPicture, match="at most 0") as refused:
            await decoders.run(decode_picture, png(99), 1000)
        assert refused.value.too_large

    asyncio.run(both())


def test_a_crash_is_a_refusal_and_the_next_picture_is_decoded(decoders: Decoders) -> None:
    async def crash() -> None:
        with pytest.raises(InvalidPicture, match="decoder crash"):
            await decoders.run(os.abort)
        assert (await decoders.run(decode_picture, png(9), 1000)).pixels.shape == (9, 9, 3)

    asyncio.run(crash())


def test_a_decoder_that_does_not_end_is_ended() -> None:
    async def endless() -> None:
        decoders = Decoders(1, seconds=1)
        try:
            with pytest.raises(InvalidPicture, match="within 1 s"):
                await decoders.run(time.sleep, 600)
        finally:
            decoders.close()

    asyncio.run(endless())
