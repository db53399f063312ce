"""`python -m service`: read the settings, take the port, load the models, answer."""

import logging
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import Future

import uvicorn

from service.app import CascadeFactory, create_app
from service.cascade import load_cascade
from service.settings import BadSettings, Settings, load_settings

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
        listener = _listen(settings.host, settings.port)
    except BadSettings as error:
        return _fail(str(error))
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        return _fail(f"cannot listen on {place}: {error.strerror or error}; choose with SERVICE_HOST, SERVICE_PORT")
    with listener:
        return _serve(settings, listener, cascade_factory)


def _serve(settings: Settings, listener: socket.socket, cascade_factory: CascadeFactory) -> int:
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    app = create_app(settings, cascade_factory)
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=settings.shutdown_seconds)
    server = uvicorn.Server(config)
    address = _address(listener)
    print(f"{address} is loading its models …", flush=True)
    problem: list[BaseException] = []

    def on_loaded(loaded: Future[None]) -> None:
        if (error := loaded.exception()) is None:
            print(_welcome(address), flush=True)
        else:
            problem.append(error)
            server.should_exit = True

    app.state.worker.loaded.add_done_callback(on_loaded)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return 130
    return _fail_to_load(problem[0]) if problem else 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(address: str) -> str:
    return f"""{address} is ready; {address}/docs describes it. Try:
  curl -X POST '{address}/generate?upscale=4' -H 'content-type: application/json' \\
    -d '{{"prompt": "a red apple", "seed": 7}}' -o apple.png"""


def _fail_to_load(error: BaseException) -> int:
    logging.getLogger("service").debug("loading failed", exc_info=error)
    reason = " ".join(str(error).split()) or "no reason given"
    return _fail(f"cannot load the models: {type(error).__name__}: {reason}")


def _fail(message: str) -> int:
    print(f"python -m service: error: {message}", file=sys.stderr)
    return BAD_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
