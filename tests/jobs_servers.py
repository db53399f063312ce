"""Real servers for the tests of jobs: a Postgres cluster of Debian's in a temporary folder, and moto's S3."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Postgres:
    """A cluster in a folder of its own, owned by the postgres user where the tests run as root, on loopback.

    Without `sync`, what is committed is left to the operating system, which outlives it, and the disk not waited for.
    """

    def __init__(self, sync: bool = False) -> None:
        self._sync = sync
        places = [
            *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
            Path("/usr/bin"),
            Path("/usr/local/bin"),
        ]
        found = [place for place in places if (place / "initdb").exists()]
        if not found:
            pytest.skip("Postgres is not installed: apt-get install postgresql")
        folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest keeps its folders to their owner
        self._bin, self._data, self.port = found[0], folder / "cluster", free_port()
        self._user: dict[str, object] = {}
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--pgdata", self._data, "--auth", "trust", "--username", "postgres", "--no-sync")
        self.start()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait for it."""
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self._data}", "max_connections=200"]
        settings += [] if self._sync else ["fsync=off"]
        options = " ".join([f"-p {self.port}", *(f"-c {each}" for each in settings)])
        log = self._data / "log"
        self._run("pg_ctl", "--pgdata", self._data, "--wait", "--log", log, "--options", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "--pgdata", self._data, "--wait", "--mode", "immediate", "stop")

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self._data.parent, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        null = subprocess.DEVNULL
        done = subprocess.run(command, cwd=self._data.parent, stdin=null, stdout=null, stderr=-1, **self._user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr.decode()


class S3:
    """moto's server in a process of its own; a proxy in front fails one request in `one_in` where asked to."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        command = [sys.executable, "-W", "ignore", "-c", code, "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 180  # its import alone has taken a minute on a busy machine
        while True:
            try:
                httpx.get(self.url)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and self._process.poll() is None, "moto's server did not start"
                time.sleep(0.1)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """The variables that lead obstore there."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        httpx.put(f"{self.url}/{name}").raise_for_status()

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait(10)


@contextmanager
def failing_proxy(url: str, one_in: int) -> Iterator[str]:
    """A server that passes requests on to `url`, but answers 503 to one in so many."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    count = iter(range(1, 10**9))

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _pass_on(self) -> None:
            length = self.headers.get("content-length")
            if "chunked" in self.headers.get("transfer-encoding", ""):
                raise AssertionError("chunked requests are not passed on")
            body = self.rfile.read(int(length)) if length else b""
            if next(count) % one_in == 0:
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.request(self.command, url + self.path, content=body, headers=headers, timeout=30)
            kept = ("etag", "last-modified", "content-type", "content-range", "accept-ranges")
            headers = {name: value for name, value in answer.headers.items() if name.lower() in kept}
            if self.command == "HEAD":
                headers["content-length"] = answer.headers.get("content-length", "0")
            self._answer(answer.status_code, headers, answer.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, format: str, *values: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
