"""`python -m service`: what it prints, what it returns, how it starts and ends."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import psutil
import pytest

from service.__main__ import listen, main
from tests.service_fakes import fake, wait_until

SERVE = """
import sys
from pathlib import Path
from service.__main__ import listen, main
from tests.service_fakes import fake, wait_until
sys.exit(main(sys.argv[2:], fake(Path(sys.argv[1]))))
"""
FACTORY = fake(Path("/nowhere"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SERVICE_PROT", "1", "SERVICE_PROT is not a setting; did you mean SERVICE_PORT?"),
        ("SERVICE_PORT", "x", "SERVICE_PORT or --port: "),
        ("SERVICE_SR_MODEL", "/no/such/place", "SERVICE_SR_MODEL or --sr-model: there is no such directory"),
        ("SERVICE_HOST", "127.0.0.999", "cannot listen on 127.0.0.999:8000: "),
        ("SERVICE_HOST", "0.0.0.0", "others can reach this address: set SERVICE_API_KEYS, or "),
        (
            "SERVICE_API_KEYS",
            "me:short",
            "SERVICE_API_KEYS or --api-keys: each must be NAME:KEY or NAME/REQUESTS",
        ),
    ],
)
def test_bad_start_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert main([], FACTORY) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m service: error: " + message)
    assert err.count("\n") == 1


def test_port_in_use_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)], FACTORY) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"python -m service: error: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert err.count("\n") == 1


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_models_that_do_not_load_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").touch()
    assert main(["--port", "0"], fake(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert "ready" not in out
    line = "cannot load the models: OSError: /secret/place is missing indeed\n"
    assert err == "python -m service: error: " + line


def test_wrong_start_of_the_real_program_ends_with_status_2() -> None:
    environ = {**os.environ, "SERVICE_PORT": "x"}
    run = subprocess.run([sys.executable, "-m", "service"], env=environ, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)


def test_nothing_is_said_while_the_models_frameworks_are_imported() -> None:
    command = [sys.executable, "-c", "import service.preload"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_how_to_try_it(end: signal.Signals, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's "&" has it ignored
    command = [sys.executable, "-W", "error", "-c", heed + SERVE, str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        found = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+) is ready; open it in a browser\. \1/docs describes the API:\n", lines[1]
        )
        assert found, lines
        assert lines[0] == f"{found[1]} is loading its models …\n"
        assert httpx.get(found[1] + "/readyz").status_code == 200
        curl = shlex.split("".join(lines[2:]).replace("\\\n", " "))
        assert curl[:4] == ["curl", "-X", "POST", f"{found[1]}/generate?upscale=4"]
        if shutil.which("curl"):
            subprocess.run(curl, cwd=tmp_path, check=True, capture_output=True)
            assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")
        process.send_signal(end)
        out, err = process.communicate(timeout=20)
    assert out == ""
    assert "Traceback" not in err
    assert process.returncode == (130 if end is signal.SIGINT else -signal.SIGTERM)


@pytest.mark.parametrize(("download", "offline"), [("false", "1"), ("true", None)])
def test_workers_ask_the_hub_nothing_unless_downloads_are_allowed(download: str, offline: str, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    environ |= {"SERVICE_ALLOW_DOWNLOAD": download}
    environ.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", SERVE, str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert "is ready" in [process.stdout.readline() for _ in range(2)][1]
        children = psutil.Process(process.pid).children(recursive=True)
        assert {child.environ().get("HF_HUB_OFFLINE") for child in children} == {offline}
        process.terminate()


def test_first_signal_refuses_what_waits_and_finishes_what_runs(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    command = [sys.executable, "-c", SERVE, str(tmp_path), "--port", "0", "--max-batch", "1", "--log-level", "error"]
    with subprocess.Popen(command, env=environ, stdout=-1, text=True) as process, ThreadPoolExecutor(2) as pool:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        url = lines[0].split()[0]
        (tmp_path / "hold").touch()
        ask = [
            pool.submit(httpx.post, url + "/generate", json={"prompt": name}, timeout=30) for name in ("runs", "waits")
        ]
        wait_until(lambda: "service_queue_depth 1.0" in httpx.get(url + "/metrics").text)
        process.send_signal(signal.SIGTERM)
        statuses = [next(as_completed(ask)).result().status_code]
        (tmp_path / "hold").unlink()
        statuses += [each.result().status_code for each in ask]
        process.communicate(timeout=30)
    assert statuses[0] == 503
    assert sorted(statuses[1:]) == [200, 503]
