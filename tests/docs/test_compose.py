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
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import jsonschema
import pytest
import redis
import yaml
from sqlalchemy.engine import make_url

import granting
import processes
from catalog import client, installation, live, url_of
from faults.redis_servers import needs_debians_redis
from history import DELIVERY, ORPHAN
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.testing.servers import free_port
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SCHEMA = "${MAILGLASS_DATABASE_SCHEMA:-public}"
OUR_SERVICES = ("migrate", "worker", "beat", "receive", "web")
IMPORTS = "${MAILGLASS_IMPORTS:-}"
LOGINS = ("mailglass_owner", "mailglass_worker", "mailglass_recorder", "mailglass_reader")
GRANTED = ("mailglass_sweeper", "mailglass_dispatcher", "mailglass_recorder", "mailglass_reader")
ROLES = tuple(dict.fromkeys((*LOGINS, *GRANTED)))


def test_the_file_conforms_to_the_compose_specification():
    """The specification's schema refuses unknown properties."""
    schema = json.loads((ROOT / "tests/support/compose_schema.json").read_text())
    check = jsonschema.Draft7Validator(schema)
    assert list(check.iter_errors(COMPOSE)) == []
    broken = {**COMPOSE, "services": {"worker": {"restart": "unless-stopped", "helthcheck": {}}}}
    assert list(check.iter_errors(broken)) != []


def test_every_service_restarts_and_is_waited_for_until_it_is_healthy():
    """A service that is waited for as healthy has a health check; one without ends by itself."""
    services = COMPOSE["services"]
    ending = ["migrate", "grants"]
    assert set(services) == {"postgres", "redis", "grants", *OUR_SERVICES}
    assert all(service["restart"] in {"unless-stopped", "on-failure"} for service in services.values())
    assert [name for name, service in services.items() if "healthcheck" not in service] == ending
    for service in services.values():
        for dependency, condition in service.get("depends_on", {}).items():
            needed = "service_completed_successfully" if dependency in ending else "service_healthy"
            assert condition["condition"] == needed
    assert all(services[name]["build"] == "." for name in OUR_SERVICES)


def test_a_service_can_write_to_its_volume_only_and_gain_no_privilege():
    """It has no capabilities except those of Postgres's entry point, a read-only root, and no new privileges."""
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ("cap_add" in service) == (name == "postgres")


def test_each_service_has_a_limit_of_memory_and_of_processes():
    """A runaway service does not affect the others."""
    for service in COMPOSE["services"].values():
        assert megabytes(service["mem_limit"]) <= 1024
        assert 0 < service["pids_limit"] <= 200


def megabytes(limit: str) -> int:
    """Return a memory limit in megabytes."""
    return int(limit[:-1]) * {"m": 1, "g": 1024}[limit[-1]]


def test_beat_cannot_reach_the_database_and_the_page_cannot_reach_redis():
    """Redis's network has no way out, that of the database only because of the dashboard's port."""
    networks = {name: service["networks"] for name, service in COMPOSE["services"].items()}
    assert networks == {
        "postgres": ["database"],
        "redis": ["redis"],
        "migrate": ["database"],
        "grants": ["database"],
        "worker": ["database", "redis"],
        "beat": ["redis"],
        "receive": ["database", "redis"],
        "web": ["database"],
    }
    assert COMPOSE["networks"] == {"database": None, "redis": {"internal": True}}


def test_every_image_is_named_by_its_full_version_or_digest():
    """Tomorrow's start uses what was tested today."""
    images = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    images += re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"[a-z]+(:\d+\.\d+(\.\d+)?-[a-z-]+|.*@sha256:[0-9a-f]{64})", image)
    python = re.search(r"python:(\d+\.\d+)", " ".join(images))[1]
    assert f"Programming Language :: Python :: {python}" in (ROOT / "pyproject.toml").read_text()


def test_each_service_has_the_password_that_it_needs_and_no_other():
    """It is a file, never an environment variable; beat does not reach the database at all."""
    services = COMPOSE["services"]
    secrets = {name: service.get("secrets", []) for name, service in services.items()}
    assert secrets == {
        "postgres": ["postgres", "owner", "worker", "recorder", "reader"],
        "redis": ["redis"],
        "migrate": ["owner-url"],
        "grants": ["owner"],
        "worker": ["worker-url", "redis-url"],
        "beat": ["redis-url"],
        "receive": ["recorder-url", "redis-url", "webhooks", "web"],
        "web": ["reader-url", "web"],
    }
    assert set(COMPOSE["secrets"]) == {name for names in secrets.values() for name in names}
    for name in OUR_SERVICES:
        environment = services[name]["environment"]
        assert "entrypoint" not in services[name]
        assert environment.get("MAILGLASS_DATABASE_SCHEMA", SCHEMA) == SCHEMA
        assert ("MAILGLASS_DATABASE_SCHEMA" in environment) == ("MAILGLASS_DATABASE_URL" in environment)
        files = [value for value in environment.values() if value.startswith("@")]
        assert sorted(files) == sorted(f"@/run/secrets/{secret}" for secret in secrets[name])
        assert set(environment.values()) <= {*files, SCHEMA, IMPORTS}
    importing = [name for name, service in services.items() if IMPORTS in service.get("environment", {}).values()]
    assert importing == ["worker", "beat", "receive", "web"]


def test_the_head_of_the_file_makes_each_secret(tmp_path):
    """The commands are run as shown; a URL has its role's password."""
    head = (ROOT / "docker-compose.yml").read_text().split("\nname:")[0]
    lines = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ")]
    script = "\n".join(line for line in lines if not line.startswith("docker "))
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True)
    written = {path.name: path.read_text().strip() for path in (tmp_path / "secrets").iterdir()}
    assert set(written) == set(COMPOSE["secrets"])
    for login in LOGINS:
        name = login.removeprefix("mailglass_")
        assert written[f"{name}-url"] == f"postgresql://{login}:{written[name]}@postgres:5432/mailglass"
    assert written["redis-url"] == f"redis://:{written['redis']}@redis:6379/0"


def test_each_role_may_use_the_schema():
    """The owner of the tables cannot grant this."""
    for role in GRANTED:
        usage = granting.STATEMENTS[role][0]
        assert usage in COMPOSE["configs"]["roles"]["content"].replace(':"schema"', "public")


def test_only_dashboard_and_receiver_can_be_reached_and_from_this_machine_only():
    """The dashboard requires a token, the receiver a signature; their containers listen on every address."""
    services = COMPOSE["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "receive": ["127.0.0.1:8081:8081"],
        "web": ["127.0.0.1:8080:8080"],
    }
    assert services["receive"]["environment"]["MAILGLASS_WEBHOOK_SECRETS"] == "@/run/secrets/webhooks"
    assert "@/run/secrets/web" in services["web"]["environment"].values()


def test_the_image_runs_as_a_plain_user_and_holds_no_secret():
    """The last USER is a number other than root's."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert int(re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)[-1]) > 0
    assert not re.search("password|secret|token|ARG ", dockerfile, re.IGNORECASE)
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_image_is_built_from_the_files_that_are_not_ignored(tmp_path):
    """The package, with its migrations, is built from these files alone."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / line[1:])
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1


HANDLERS = """
from mailglass_reconcile import on_event

@on_event("opened")
def note(connection, event):
    pass
"""


class Surroundings:
    """The environment, secrets and roles of the services, in places of one test."""

    def __init__(self, database_url: str, directory: Path, schema: str) -> None:
        self.url, self.directory, self.schema = database_url, directory, schema
        self.psql = client("psql", installation(database_url))
        self.suffix = uuid.uuid4().hex[:12]
        self.port, self.receiver_port, self.redis_port = (str(free_port()) for _ in range(3))
        for name in COMPOSE["secrets"]:
            (directory / name).write_text(f"{name}-{self.suffix}\n")
        for login in LOGINS:
            url = make_url(database_url).set(username=self.replace_places(login)).render_as_string(hide_password=False)
            (directory / f"{login.removeprefix('mailglass_')}-url").write_text(f"{url}\n")
        (directory / "redis-url").write_text(f"redis://:redis-{self.suffix}@127.0.0.1:{self.redis_port}/0\n")
        (directory / "webhooks").write_text(f"postmark=me:{self.suffix}\n")

    def replace_places(self, text: str) -> str:
        """Substitute this test's places in a text of the compose file, like Compose with `.env`."""
        text = text.replace(SCHEMA, self.schema)
        text = text.replace("/tmp/", f"{self.directory}/").replace("/run/secrets", str(self.directory))  # noqa: S108
        text = text.replace("8081", self.receiver_port)
        text = text.replace("8080", self.port).replace("redis:6379", f"127.0.0.1:{self.redis_port}")
        text = text.replace("redis-server -", f"redis-server --port {self.redis_port} -")
        text = text.replace("redis-cli", f"redis-cli -p {self.redis_port}")
        for role in ROLES:
            text = text.replace(role, f"{role}_{self.suffix}")
        url = make_url(self.url)
        place = f"--dbname={url.database} --host={url.query.get('host', url.host)} --port={url.port or 5432}"
        text = text.replace("psql --no", f"{self.psql} --no")
        return text.replace("--dbname=mailglass", place).replace("$$", "$")

    def environment(self, name: str, commands: Path = Path(sys.executable).parent) -> dict[str, str]:
        """Return the environment of a service, with the commands in a folder."""
        path = f"{commands}:{os.environ['PATH']}"
        environment = COMPOSE["services"][name].get("environment", {})
        places = {**os.environ, "PATH": path, "HOSTNAME": socket.gethostname()}
        places |= {setting: self.replace_places(value) for setting, value in environment.items()}
        if environment.get("MAILGLASS_IMPORTS") == IMPORTS:
            (self.directory / "compose_handlers.py").write_text(HANDLERS)
            places |= {"MAILGLASS_IMPORTS": "compose_handlers", "PYTHONPATH": str(self.directory)}
        return places

    def command(self, name: str) -> list[str]:
        """Return the command of a service, with its entry point."""
        service = COMPOSE["services"][name]
        return [self.replace_places(part) for part in [*service.get("entrypoint", []), *service["command"]]]

    @property
    def owner(self) -> str:
        """Return the URL of the tables' owner."""
        return (self.directory / "owner-url").read_text().strip()

    def run(self, name: str, command: list[str]) -> str:
        """Run a command in a service's environment, and return its output; it must succeed."""
        result = self.run_unchecked(name, command)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def run_unchecked(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's environment, forked if it is Python, and return its result."""
        return processes.run(command, self.environment(name, processes.forker().commands))

    def grant(self) -> None:
        """Run the service `grants`."""
        script = self.directory / "grants.sql"
        grants = (ROOT / COMPOSE["configs"]["grants"]["file"]).read_text()
        script.write_text(granting.for_roles(grants, f"_{self.suffix}"))
        _psql, *options, _url = COMPOSE["services"]["grants"]["command"]
        owned = installation(self.owner)
        options = [option.replace("/grants.sql", str(script)).replace(SCHEMA, self.schema) for option in options]
        self.run("migrate", [client("psql", owned), *options, url_of(owned)])


@pytest.fixture
def schema() -> str:
    """The schema of an application without Mailglass, for which nobody sets the variable."""
    return "public"


@pytest.fixture
def surroundings(empty_database_url, tmp_path, schema) -> Iterator[Surroundings]:
    """Create roles by the file's own script, like the first start of Postgres."""
    created = Surroundings(empty_database_url, tmp_path, schema)
    script = created.replace_places(COMPOSE["configs"]["roles"]["content"])
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, capture_output=True, text=True)
    yield created
    for role in ROLES:
        installation(empty_database_url).run(created.replace_places(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}"))


@needs_debians_redis
@pytest.mark.slow
def test_each_of_our_commands_and_health_checks_works_as_a_process(surroundings, tmp_path):
    """Migrate succeeds; the others are healthy, use at most half of their memory, and end on SIGTERM."""
    services = COMPOSE["services"]

    def healthy(name: str) -> bool:
        how, *test = services[name]["healthcheck"]["test"]
        command = ["sh", "-c", *test] if how == "CMD-SHELL" else test
        checked = [surroundings.replace_places(part) for part in command]
        return surroundings.run_unchecked(name, checked).returncode == 0

    surroundings.run("migrate", surroundings.command("migrate"))
    surroundings.grant()
    assert not healthy("beat")
    assert not healthy("redis")
    started_lines = {"redis": "eady to accept", "worker": " ready.", "beat": "beat: Starting"}
    started_lines |= {"receive": "serving on", "web": "serving on"}
    with ExitStack() as stack:
        running = {}
        for name, until in started_lines.items():
            command, environment = surroundings.command(name), surroundings.environment(name)
            running[name] = stack.enter_context(processes.start(command, environment, until=until, cwd=tmp_path))
            running[name].wait_for(lambda name=name: healthy(name))
        with redis.Redis(port=int(surroundings.redis_port)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        arguments = [" ".join(member.cmdline()) for process in running.values() for member in process.family()]
        assert [line for line in arguments if surroundings.suffix in line.replace(str(tmp_path), "")] == []
        page = f"http://127.0.0.1:{surroundings.port}/"
        assert httpx.get(page).status_code == 401
        token = {"authorization": f"Bearer {(tmp_path / 'web').read_text().strip()}"}
        assert "Overview" in httpx.get(page, headers=token).text
        receiver = f"http://127.0.0.1:{surroundings.receiver_port}"
        assert "mailglass_reconcile_recording_failures_total" in httpx.get(f"{receiver}/metrics", headers=token).text
        tables = installation(surroundings.owner)
        wait_until(lambda: tables.values("SELECT type FROM mailglass_handled_types") == ["opened"], PATIENCE)
        with tables.engine.begin() as connection:
            record_send(connection, provider="postmark", sent=[Sent(recipient="ann@example.org", message_id="m-1")])
        payload = {"RecordType": "Open", "MessageID": "m-1", "Recipient": "ann@example.org"}
        for password, status in ((surroundings.suffix, 200), ("another", 401)):
            assert httpx.post(f"{receiver}/postmark", json=payload, auth=("me", password)).status_code == status
        wait_until(
            lambda: tables.values("SELECT state FROM mailglass_handler_outbox") == ["done"], PATIENCE
        )  # by the worker, with its own privileges
        surroundings.run("worker", SWEEP)
        for name, process in running.items():
            memory = sum(member.memory_info().rss for member in process.family()) / 1024**2
            assert memory < megabytes(services[name]["mem_limit"]) / 2, name
        in_order_of_stop = list(reversed(running.values()))  # like Compose, which stops dependencies last
        for process in in_order_of_stop:
            assert process.stop() == 0
        assert not healthy("beat")
        assert not healthy("worker")


@pytest.mark.slow
@pytest.mark.parametrize("schema", ["mailglass", "public"])
def test_mailglass_s_own_tables_are_migrated_granted_and_swept_in_their_schema(surroundings, schema):
    """Its migrations run as the owner; `.env` names the schema, which was `public` before 2.0."""
    mailglass = live(surroundings.owner, schema, {"mailglass": "2.x", "public": "0.1.1"}[schema])
    mailglass.run("CREATE TABLE IF NOT EXISTS mailglass_suppressions (id uuid PRIMARY KEY)")
    mailglass.run(DELIVERY)
    mailglass.run(ORPHAN.format(id=uuid.uuid4(), age="5 minutes"))
    assert "Mailglass's tables" not in surroundings.run("migrate", surroundings.command("migrate"))
    surroundings.grant()
    swept = surroundings.run("worker", SWEEP)
    assert json.loads(swept)["linked"] == 1
    read = "SELECT has_column_privilege(:role, 'mailglass_webhook_events', 'raw_payload', 'SELECT')"
    assert mailglass.values(read, role=surroundings.replace_places("mailglass_sweeper")) == [True]


SWEEP = ["mailglass-reconcile", "sweep", "--json"]
