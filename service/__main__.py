"""`python -m service`: read the settings, take the port, load the models, answer."""

import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from service.app import create_app
from service.cascade import load_cascade
from service.logs import set_up_logging
from service.process import warm_up
from service.settings import PREFIX, BadSettings, Settings, load_settings
from service.worker import CascadeFactory

BAD_START = 2


def main(argv: Sequence[str], cascade_factory: CascadeFactory = load_cascade) -> int:
    """Serve until stopped. Status 2, after one line on stderr, for what keeps it from starting.

    `worker` as the first word starts a worker for jobs instead.
    """
    if argv[:1] == ["worker"]:
        from service import job_worker

        return job_worker.main(argv[1:])
    try:
        settings = load_settings(argv)
        listener = listen(settings.host, settings.port)
    except BadSettings as error:
        return _fail(str(error))
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror  # which is a resolver's
        return _fail(f"cannot listen on {place}: {reason or error}; choose with SERVICE_HOST, SERVICE_PORT")
    with listener:
        return _serve(settings, listener, cascade_factory)


class _Server(uvicorn.Server):
    """uvicorn, which at the first signal to stop also has what waits refused while what runs is finished."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called where the signal arrives, in the main thread, between two steps of the event loop."""
        app: Any = self.config.app
        app.state.pool.drain()
        super().handle_exit(sig, frame)


def _serve(settings: Settings, listener: socket.socket, cascade_factory: CascadeFactory) -> int:
    set_up_logging(settings)
    os.environ.pop(f"{PREFIX}API_KEYS", None)  # no child or crash report needs them
    if not settings.allow_download:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub asks the hub at loading, whatever it is told of files
    if cascade_factory is load_cascade:
        warm_up()
    app = create_app(settings, cascade_factory)
    patience = settings.shutdown_seconds
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=patience))
    address = _address(listener)
    print(f"{address} is loading its models …", flush=True)
    problem: list[str] = []

    def on_loaded(failure: str | None) -> None:
        app.state.pool.on_loaded = lambda again: None
        if failure is None:
            print(_welcome(address), flush=True)
        else:
            problem.append(failure)
            server.should_exit = True

    app.state.pool.on_loaded = on_loaded
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return 130
    return _fail(f"cannot load the models: {problem[0]}") if problem else 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # For every connection: without it an answer's last packet waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(address: str) -> str:
    return f"""{address} is ready; open it in a browser. {address}/docs describes the API:
  curl -X POST '{address}/generate?upscale=4' -H 'content-type: application/json' \\
    -d '{{"prompt": "a red apple", "seed": 7}}' -o apple.png"""


def _fail(message: str) -> int:
    print(f"python -m service: error: {message}", file=sys.stderr)
    return BAD_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
