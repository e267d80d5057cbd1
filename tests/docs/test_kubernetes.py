"""The page on Kubernetes: its steps in order, with the manifests' containers as processes."""

import re
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml
from sqlalchemy.engine import make_url

import catalog
import pages
import processes
from machine import normalize_output
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.testing.servers import free_port
from processes import Process

pytestmark = pytest.mark.slow

PAGE = pages.ROOT / "docs" / "kubernetes.md"
MANIFESTS = PAGE.parent / "deploy" / "kubernetes.yml"
ROLES = ("mailglass_worker", "mailglass_sweeper", "mailglass_dispatcher", "mailglass_recorder", "mailglass_reader")
MOUNTED = "/run/secrets/mailglass"


class Cluster(ExitStack):
    """Runs what `kubectl` would start: each container's command, with its environment and its keys of the Secret."""

    def __init__(self, folder: Path, places: dict[str, str]) -> None:
        """Begin in the reader's clone; the files of the Secret are in a folder of it that nobody else can read."""
        super().__init__()
        self.folder, self.places = folder, places
        self.secrets, self.secrets_shell = folder / "secrets", ":"
        self.ports = {name: free_port() for name in ("mailglass-receive", "mailglass-web")}
        self.started: dict[str, Process] = {}
        self.finished: set[str] = set()
        self.secret: set[str] = set()
        self.objects: list[dict] = []

    def run(self, command: str) -> str:
        """Run a command of the page, and return its output; it must succeed, and so must each part of it."""
        if " &&\n" in command:
            return "".join(self.run(part.strip()) for part in command.split(" &&\n"))
        if command.startswith("kubectl "):
            return self._kubectl(shlex.split(command)[1:])
        if command.startswith("umask "):
            self.secrets_shell = command
        elif command == "cd ..":
            self.secrets_shell = ":"
        for address, real in self.places.items():
            command = command.replace(address, real)
        script = f"{self.secrets_shell}\n{command}"
        return self._process(["bash", "-euo", "pipefail", "-c", script], {"PATH": f"/usr/bin:/bin:{BIN}"})

    def _kubectl(self, arguments: list[str]) -> str:
        match arguments:
            case ["create", "secret", "generic", "mailglass", *words]:
                *files, _, _, _ = words[: words.index("|")]
                assert words[len(files) :] == shlex.split("--dry-run=client -o yaml | kubectl apply -f -")
                self.secret = {file.removeprefix("--from-file=") for file in files}
                assert all((self.secrets / name).read_text().strip() for name in self.secret)
            case ["apply", "-f", "docs/deploy/kubernetes.yml", *selector]:
                self._apply(selector[1] if selector else "")
            case ["delete", "job", name, "--ignore-not-found"]:
                self.finished.remove(name)
                self.objects = [row for row in self.objects if row["metadata"]["name"] != name]
            case ["rollout", "status", "deployment", "-l", selector, _]:
                for name in self.started:
                    assert _selects(selector, self._object(name))
                    assert self.started[name].poll() is None
            case ["wait", "--for=condition=complete", "job/mailglass-migrate", _]:
                assert "mailglass-migrate" in self.finished
            case ["wait", "--for=condition=available", *deployments, _]:
                for deployment in deployments:
                    self._wait_until_ready(deployment.removeprefix("deploy/"))
            case ["exec", deployment, "--", *command]:
                name = deployment.removeprefix("deploy/")
                assert self.started[name].poll() is None
                return self._process(self._replace_ports(command), self._environment(name))
            case _:
                pytest.fail(f"the page has a new command: {arguments}")
        return ""

    def _apply(self, selector: str) -> None:
        """Run the Job, and start a process for each Deployment; the ConfigMap must exist before."""
        for manifest_object in yaml.safe_load_all(MANIFESTS.read_text()):
            if _selects(selector, manifest_object) and manifest_object not in self.objects:
                self.objects.append(manifest_object)
                if manifest_object["kind"] == "Job":
                    name = manifest_object["metadata"]["name"]
                    self._process(self._container(name)["args"], self._environment(name))
                    self.finished.add(name)
                elif manifest_object["kind"] == "Deployment":
                    self._start(manifest_object["metadata"]["name"])

    def _object(self, name: str) -> dict:
        (result,) = [
            item for item in self.objects if item["metadata"]["name"] == name and "template" in item.get("spec", {})
        ]
        return result

    def _container(self, name: str) -> dict:
        (container,) = self._object(name)["spec"]["template"]["spec"]["containers"]
        return container

    def _environment(self, name: str) -> dict[str, str]:
        container = self._container(name)
        forker = processes.forker()
        environment = {"PATH": f"{forker.commands}:{BIN}:/usr/bin:/bin", "HOME": str(self.folder), **forker.variables}
        for source in container.get("envFrom", ()):
            (map_,) = [
                row["data"]
                for row in self.objects
                if row["kind"] == "ConfigMap" and row["metadata"]["name"] == source["configMapRef"]["name"]
            ]
            environment |= map_
        for variable in container.get("env", ()):
            if variable["value"].startswith(f"@{MOUNTED}/"):
                assert variable["value"].removeprefix(f"@{MOUNTED}/") in self.secret
            environment[variable["name"]] = variable["value"].replace(MOUNTED, str(self.secrets))
        return environment

    def _start(self, name: str) -> None:
        command = self._replace_ports(self._container(name)["args"], name)
        starting = processes.start(command, self._environment(name), cwd=self.folder)
        self.started[name] = self.enter_context(starting)

    def _wait_until_ready(self, name: str) -> None:
        probe = self._container(name).get("readinessProbe")

        def ready() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{self.ports[name]}{probe['httpGet']['path']}").is_success
            except httpx.TransportError:
                return False

        self.started[name].wait_for(ready if probe else " ready.")

    def _replace_ports(self, arguments: list[str], name: str = "") -> list[str]:
        """Replace the ports of containers and of a Service's name by this machine's."""
        words = []
        for word in arguments:
            if name in self.ports and word == str(self._container(name)["ports"][0]["containerPort"]):
                words.append(str(self.ports[name]))
            else:
                host = f"127.0.0.1:{self.ports['mailglass-receive']}"
                words.append(word.replace("http://mailglass-receive/", f"http://{host}/"))
        return words

    def _process(self, command: list[str], environment: dict[str, str]) -> str:
        result = processes.run(command, environment, cwd=self.folder)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout


def _selects(selector: str, manifest_object: dict) -> bool:
    """Return True if a selector with `=`, `!=` or nothing selects an object."""
    name, equals, value = selector.partition("=")
    matches = manifest_object["metadata"].get("labels", {}).get(name.removesuffix("!")) == value
    return matches is not name.endswith("!") if equals else True


BIN = Path(sys.executable).parent
SAMPLE = (
    "kubectl exec deploy/mailglass-receive -- mailglass-reconcile trigger postmark delivered --message-id m-1"
    " --to http://mailglass-receive/postmark"
)


def test_kubernetes_from_the_readme_to_a_recorded_webhook(
    empty_database_url: str, redis_url: str, tmp_path: Path, server_roles: Callable[..., None]
) -> None:
    """It covers roles, Secret, migration, grants, all processes, the doctor, an upgrade, and a linked webhook."""
    assert "docs/production.md" in pages.links(pages.README)
    assert "kubernetes.md" in pages.links(PAGE.with_name("production.md"))
    url = make_url(empty_database_url)
    server_roles(empty_database_url, *ROLES, "mailglass_owner")
    places = {
        "postgresql://postgres@postgres:5432/app": empty_database_url,
        "postgresql://mailglass_$role:$(cat $role-password)@postgres:5432/app": empty_database_url.replace(
            f"//{url.username}", "//mailglass_$role"
        ),
        "redis://redis:6379/0": redis_url,
        "mailglass_reconcile/store/migration/grants.sql": str(
            pages.ROOT / "mailglass_reconcile/store/migration/grants.sql"
        ),
        "kubectl get secret mailglass -o jsonpath='{.data.owner-url}' | base64 -d": "cat secrets/owner-url",
    }
    with Cluster(tmp_path, places) as cluster:
        for block in pages.blocks(PAGE):
            if block.language == "console" and not block.not_run.startswith("it needs"):
                for command in pages.commands_with_output(block):
                    printed = cluster.run(command.text)
                    assert not command.output or normalize_output(command.output) == normalize_output(printed), (
                        command.text
                    )
        assert cluster.run(SAMPLE) == "postmark: delivered for m-1 was answered with 200\n"
        tables = catalog.installation(empty_database_url)
        assert tables.values("SELECT state FROM mailglass_open_orphans") == ["unmatched"]
        with tables.engine.begin() as connection:
            record_send(connection, provider="postmark", sent=[Sent(recipient="ann@example.org", message_id="m-1")])
        assert tables.values("SELECT last_event_type FROM mailglass_deliveries") == ["delivered"]
        assert all(path.stat().st_mode & 0o077 == 0 for path in (cluster.secrets, *cluster.secrets.iterdir()))
        token = {"authorization": f"Bearer {(cluster.secrets / 'web-token').read_text().strip()}"}
        for name in ("mailglass-receive", "mailglass-web"):  # the pods that Prometheus scrapes
            answer = httpx.get(f"http://127.0.0.1:{cluster.ports[name]}/metrics", headers=token)
            assert "\nmailglass_reconcile_" in answer.text
        (forwarded,) = re.findall(r"port-forward service/([\w-]+) \d+:(\d+)", PAGE.read_text())
        (service,) = [
            row for row in cluster.objects if (row["kind"], row["metadata"]["name"]) == ("Service", forwarded[0])
        ]
        assert service["spec"]["ports"][0]["port"] == int(forwarded[1])
