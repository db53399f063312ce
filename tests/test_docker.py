"""The image's and the compose file's promises, as far as they show without a Docker daemon."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import BadSettings, Settings, load_settings
from tests.jobs_servers import Postgres, free_port
from tests.service_fakes import Running, serving

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's (instruction, arguments) pairs, stage by stage."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").split("\n")
    pairs = [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]
    starts = [index for index, (instruction, _) in enumerate(pairs) if instruction == "FROM"]
    return [pairs[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def arguments(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in stage if name == instruction]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or Path(sys.executable).with_name("hadolint")
    report = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (report.returncode, report.stdout, report.stderr) == (0, "", "")


def test_image_runs_the_service_for_everyone_as_nobody_special(stages: list[list[tuple[str, str]]]) -> None:
    final = stages[-1]
    assert len(stages) == 2
    assert arguments(final, "CMD") == ['["python", "-m", "service"]']
    assert arguments(final, "USER") == ["10001"]
    assert [name for name, _ in final].index("USER") > [name for name, _ in final].index("RUN")
    assert arguments(final, "EXPOSE") == [str(Settings.model_fields["port"].default)]


def test_variables_of_the_image_are_settings(
    stages: list[list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in re.findall(r"(SERVICE_\w+)=(\S+)", " ".join(arguments(stages[-1], "ENV"))):
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match="others can reach this address"):
        load_settings([])
    assert load_settings(["--allow-anonymous"]).host == "0.0.0.0"


def test_what_is_copied_exists_and_is_let_through(stages: list[list[tuple[str, str]]]) -> None:
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    copied = [source for rest in arguments(stages[0], "COPY") for source in rest.split()[:-1]]
    assert [f"!{source}" for source in copied if f"!{source}" not in allowed] == []
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {"sr3", "ldm", "service", "degradation"} <= set(copied)


def test_dependencies_are_read_from_the_project_file(stages: list[list[tuple[str, str]]], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2", "pillow ; os_name != \'x\'"]\n')
    (step,) = (rest for rest in arguments(stages[0], "RUN") if "tomllib" in rest)
    python = step.split("&&")[0].replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", python], cwd=tmp_path, check=True)
    assert (tmp_path / "requirements.txt").read_text() == "torch>=2\npillow ; os_name != 'x'\n"


def test_dependencies_need_no_system_library_that_the_slim_image_lacks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w-]", each)[0] for each in project["dependencies"]]
    assert "opencv-python" not in names, "it needs libGL; opencv-python-headless does not"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("fake")) as running:
        yield running


def test_health_check_passes_where_only_other_names_are_allowed_and_there_is_a_proxy(
    stages: list[list[tuple[str, str]]], tmp_path: Path
) -> None:
    (check,) = arguments(stages[-1], "HEALTHCHECK")
    command = json.loads(check.split("CMD", 1)[1])
    with serving(tmp_path, allowed_hosts="pictures.example") as server:
        # Docker hands its proxies to containers; nothing listens on port 9, discard.
        proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        environ = {**os.environ, **proxy, "SERVICE_PORT": server.url.rpartition(":")[2]}
        result = subprocess.run([sys.executable, *command[1:]], env=environ, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        assert server.client.get("/healthz", headers={"host": "localhost"}).status_code == 421


@pytest.mark.parametrize("alive", [True, False])
def test_health_check_tells_a_live_server_from_none(
    stages: list[list[tuple[str, str]]], server: Running, alive: bool
) -> None:
    (check,) = arguments(stages[-1], "HEALTHCHECK")
    command = json.loads(check.split("CMD", 1)[1])
    port = server.url.rpartition(":")[2] if alive else "9"  # nothing listens on port 9, discard
    environ = {**os.environ, "SERVICE_PORT": port}
    result = subprocess.run([sys.executable, *command[1:]], env=environ, capture_output=True, check=False)
    assert (result.returncode == 0) is alive
    assert "/healthz" in command[2]


def test_compose_builds_this_dockerfile_and_keeps_to_this_machine(compose: dict[str, Any]) -> None:
    cascade = compose["services"]["cascade"]
    context = (DOCKER / cascade["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / cascade["build"]["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert cascade["ports"] == ["127.0.0.1:8000:8000"]
    assert cascade["read_only"] is True
    assert {volume.split(":")[0] for volume in cascade["volumes"]} == set(compose["volumes"])


def test_variables_of_compose_are_settings(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in compose["services"]["cascade"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([\w.,]*)\}", r"\1", value))
    settings = load_settings(["--host", "0.0.0.0"])
    assert settings.allow_anonymous, "the port is published on this machine alone"
    assert settings.allowed_hosts == "localhost,127.0.0.1"


def test_compose_gives_running_requests_the_time_that_the_service_gives_them(compose: dict[str, Any]) -> None:
    seconds = int(compose["services"]["cascade"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings().shutdown_seconds


def test_arguments_of_compose_are_declared(compose: dict[str, Any], stages: list[list[tuple[str, str]]]) -> None:
    declared = {name.split("=")[0] for stage in stages for name in arguments(stage, "ARG")}
    assert set(compose["services"]["cascade"]["build"]["args"]) <= declared


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "jobs.yaml").read_text())


def test_workers_and_service_of_jobs_share_database_and_pictures(
    jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, worker, postgres = (jobs["services"][name] for name in ("cascade", "worker", "postgres"))
    for service in (cascade, worker):
        assert service["volumes"] == ["${PICTURES:-pictures}:/pictures"]
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        settings = load_settings([])
        assert settings.storage_roots == ["/pictures"]
        password = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", postgres["environment"]["POSTGRES_PASSWORD"])
        assert settings.database_url == f"postgresql://sr3:{password}@postgres/sr3"
    assert worker["command"] == ["python", "-m", "service", "worker"]
    assert worker["read_only"] is True
    assert "ports" not in worker and "ports" not in postgres
    assert set(jobs["volumes"]) == {"pictures", "database"}


def test_postgres_is_healthy_once_it_listens_on_tcp(jobs: dict[str, Any], postgres: Postgres, tmp_path: Path) -> None:
    """While the image makes its cluster, a server for that listens on the socket alone."""
    _, program, *rest = jobs["services"]["postgres"]["healthcheck"]["test"]
    other = free_port()
    (tmp_path / f".s.PGSQL.{other}").symlink_to(postgres._data / f".s.PGSQL.{postgres.port}")
    for port, healthy in ((other, False), (postgres.port, True)):
        environ = {**os.environ, "PGHOST": str(tmp_path), "PGPORT": str(port)}
        done = subprocess.run([postgres._bin / program, *rest], env=environ, capture_output=True, check=False)
        assert (done.returncode == 0) is healthy, done
