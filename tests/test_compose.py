"""The compose file: what can be known of it without a Docker engine.

`compose_schema.json` is the compose specification's own schema, without its descriptions (Apache License 2.0).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest
import redis
import yaml

from conftest import wait_until
from installation import PATIENCE, end

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = ("migrate", "worker", "beat")


@pytest.mark.guard
def test_the_file_is_as_the_compose_specification_wants_it():
    """Checked against the specification's schema, which refuses what it does not know."""
    schema = json.loads((ROOT / "tests/compose_schema.json").read_text())
    check = jsonschema.Draft7Validator(schema)
    assert list(check.iter_errors(COMPOSE)) == []
    broken = {**COMPOSE, "services": {"worker": {"restart": "unless-stopped", "helthcheck": {}}}}
    assert list(check.iter_errors(broken)) != []


@pytest.mark.guard
def test_every_service_restarts_and_is_waited_for_until_it_is_healthy():
    """Whoever is waited for as healthy has a health check; whoever has none ends by itself."""
    services = COMPOSE["services"]
    assert set(services) == {"postgres", "redis", *OURS}
    assert all(service["restart"] in {"unless-stopped", "on-failure"} for service in services.values())
    assert [name for name, service in services.items() if "healthcheck" not in service] == ["migrate"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            needed = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert condition["condition"] == needed
    assert all(services[name]["build"] == "." for name in OURS)


@pytest.mark.guard
def test_neither_file_holds_a_secret_and_the_image_runs_as_a_plain_user():
    """The password comes from the environment, without a default; the last USER is a number that is not root's."""
    passwords = re.findall(
        r"//postgres:([^@\n]*)@|[^_]POSTGRES_PASSWORD: (.*)", (ROOT / "docker-compose.yml").read_text()
    )
    assert len(passwords) == 2
    assert all("".join(found).startswith("${MAILGLASS_POSTGRES_PASSWORD:?") for found in passwords)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert int(re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)[-1]) > 0
    assert not re.search("password|secret|token|ARG ", dockerfile, re.IGNORECASE)


def test_the_image_is_built_from_what_the_ignore_file_lets_through(tmp_path):
    """The package is built from these files alone, migrations and all."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / line[1:])
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1


@pytest.fixture
def surroundings(empty_database_url, redis_url) -> dict[str, str]:
    """The environment of our services here: the file's, with other places for Postgres and Redis."""
    url = f"{redis_url.rpartition('/')[0]}/14"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    places = {"MAILGLASS_DATABASE_URL": empty_database_url, "MAILGLASS_REDIS_URL": url}
    assert all(COMPOSE["services"][name]["environment"].keys() == places.keys() for name in OURS)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **places, "PATH": path, "HOSTNAME": socket.gethostname()}


def test_every_command_and_health_check_of_ours_does_its_work_as_a_process(surroundings, tmp_path):
    """Migrate ends well; worker and beat are unhealthy before they run, healthy while they do, and end on SIGTERM."""

    def here(text: str) -> str:
        return text.replace("/tmp/", f"{tmp_path}/").replace("$$", "$")  # noqa: S108 - the container's own /tmp

    def healthy(name: str) -> bool:
        how, *test = COMPOSE["services"][name]["healthcheck"]["test"]
        command = ["sh", "-c", *test] if how == "CMD-SHELL" else test
        checked = [here(part) for part in command]
        done = subprocess.run(checked, check=False, env=surroundings, capture_output=True, timeout=PATIENCE)
        return done.returncode == 0

    def start(name: str, log: Path) -> subprocess.Popen:
        command = [here(part) for part in COMPOSE["services"][name]["command"]]
        with log.open("wb") as output:
            return subprocess.Popen(command, env=surroundings, stdout=output, stderr=output, cwd=tmp_path)

    migrated = start("migrate", tmp_path / "migrate.log")
    assert migrated.wait(PATIENCE) == 0
    assert not healthy("beat")
    with ExitStack() as stack:
        running = {}
        for name, until in (("worker", " ready."), ("beat", "beat: Starting")):
            log = tmp_path / f"{name}.log"
            running[name] = start(name, log)
            stack.callback(end, running[name])
            wait_until(lambda log=log, until=until: until in log.read_text(), PATIENCE)
        assert healthy("worker")
        wait_until(lambda: healthy("beat"), PATIENCE)
        for process in running.values():
            process.terminate()
        assert [process.wait(PATIENCE) for process in running.values()] == [0, 0]
        assert not healthy("beat")
        assert not healthy("worker")
