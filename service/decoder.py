"""Uploaded pictures are decoded in processes of their own: one that a decoder's fault ends takes nothing with it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from service.pictures import InvalidPicture
from service.process import METHOD

T = TypeVar("T")
DECODERS = 2  # pictures decoded at a time: each may take a gigabyte for a moment
SECONDS = 60.0


def _decode(pipe: Connection) -> None:
    """The process's life: answer calls until the server is gone."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # who stops the server stops us by closing the pipe
    with contextlib.suppress(EOFError, OSError):
        while True:
            call, arguments = pipe.recv()
            try:
                pipe.send((True, call(*arguments)))
            except Exception as error:
                pipe.send((False, error))


class _Decoder:
    """One process, started when first needed and after each loss."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, call: Callable[..., T], arguments: tuple[object, ...]) -> T:
        """`call(*arguments)` there, in a thread here. Raises what it raises, InvalidPicture where it never answers."""
        try:
            pipe = self._pipe or self._start()
            pipe.send((call, arguments))
            if not pipe.poll(self._seconds):
                raise TimeoutError
            done, result = pipe.recv()
        except TimeoutError:
            self.close()
            raise InvalidPicture(f"the picture could not be decoded within {self._seconds:g} s") from None
        except (EOFError, OSError):
            self.close()
            raise InvalidPicture("the picture made its decoder crash; it is damaged in an unusual way") from None
        if not done:
            raise result
        made: T = result
        return made

    def _start(self) -> Connection:
        context: Any = multiprocessing.get_context(METHOD)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_decode, args=(theirs,), name="decoder", daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join(5)
        self._pipe = self._process = None


class Decoders:
    """A few such processes, for one event loop."""

    def __init__(self, number: int = DECODERS, seconds: float = SECONDS) -> None:
        self._all = [_Decoder(seconds) for _ in range(number)]
        self._free = list(self._all)
        self._places = asyncio.Semaphore(number)

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """`call(*arguments)` in one of the processes, once it is free. Both, and what comes of it, must be picklable.

        Raises what the call raises, and InvalidPicture where the process ends in it or takes too long.
        """
        async with self._places:
            decoder = self._free.pop()
            work = asyncio.create_task(asyncio.to_thread(decoder.run, call, arguments))
            try:
                return await asyncio.shield(work)
            finally:
                if not work.done():  # nobody waits any more, but the answer must be taken all the same
                    await asyncio.wait({work})
                    work.exception()
                self._free.append(decoder)

    def close(self) -> None:
        """End the processes."""
        for decoder in self._all:
            decoder.close()
