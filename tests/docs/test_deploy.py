"""The manifests of docs/deploy/: valid for Kubernetes, with commands and settings that there are."""

import re
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml

import commands
import pages
from mailglass_reconcile.settings import ENV_PREFIX, Settings

FILE = pages.ROOT / "docs" / "deploy" / "kubernetes.yml"
OBJECTS = list(yaml.safe_load_all(FILE.read_text()))
VERSIONS = ("1.30", "1.37")
PODS = {
    one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in OBJECTS if "template" in one.get("spec", {})
}
SECRETS = {"owner", "worker", "recorder", "reader", "redis-url", "webhooks", "web-token"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_accepts_a_manifest(manifest, version):
    """Strictly: no property that its schema does not know."""
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_container_starts_a_command_that_there_is(name):
    """With options that it has; Celery's is the bundled app, and its beat keeps the schedule in memory."""
    (container,) = PODS[name]["containers"]
    program, *arguments = container["args"]
    if program == "celery":
        assert arguments[:3] == ["-A", "mailglass_reconcile", name.removeprefix("mailglass-")]
        assert ("celery.beat.Scheduler" in arguments) is (name == "mailglass-beat")
        return
    assert program == "mailglass-reconcile"
    subcommand = commands.SUBCOMMANDS[arguments[0]]
    subcommand.make_context(arguments[0], arguments[1:], parent=click.Context(commands.command))


@pytest.mark.parametrize("name", PODS)
def test_a_container_has_settings_that_there_are_and_reads_mounted_secrets(name):
    """A password is in no manifest; each file that the command reads is among the mounted keys of the Secret."""
    (container,) = PODS[name]["containers"]
    shell = " ".join(container["command"])
    given = {one["name"] for one in container.get("env", ())} | set(re.findall(r"\b(MAILGLASS_\w+)=", shell))
    assert {one.removeprefix(ENV_PREFIX).lower() for one in given} <= set(Settings.model_fields)
    for one in container.get("env", ()):
        assert not re.search(r"://[^/]*:[^/]*@", one.get("value", "")), "a password"
    (volume,) = [one["secret"] for one in PODS[name]["volumes"] if "secret" in one]
    mounted = {item["path"] for item in volume["items"]}
    read = {Path(path).name for path in re.findall(r"\$\$\(cat (\S+)\)", shell)}
    read |= {"webhooks"} if "MAILGLASS_WEBHOOK_SECRETS" in given else set()
    assert mounted == read <= SECRETS


def test_the_page_makes_the_secret_that_the_manifests_read():
    """By one command, with a file for each key."""
    text = (pages.ROOT / "docs" / "deploy.md").read_text()
    assert set(re.findall(r"--from-file=([\w-]+)", text)) == SECRETS
    mounted = {
        item["key"]
        for pod in PODS.values()
        for one in pod["volumes"]
        for item in one.get("secret", {}).get("items", ())
    }
    assert mounted == SECRETS


def test_a_worker_has_time_to_end_a_sweep_and_there_is_one_beat():
    """More than a sweep's deadline; and no probe restarts a process because another one is down."""
    assert PODS["mailglass-worker"]["terminationGracePeriodSeconds"] > Settings.model_fields["sweep_seconds"].default
    (beat,) = [one for one in OBJECTS if one["metadata"]["name"] == "mailglass-beat"]
    assert (beat["spec"]["replicas"], beat["spec"]["strategy"]) == (1, {"type": "Recreate"})
    probes = {
        name: {kind: container[kind]["httpGet"]["path"] for kind in container if kind.endswith("Probe")}
        for name, pod in PODS.items()
        for container in pod["containers"]
    }
    alive = {"readinessProbe": "/healthz", "livenessProbe": "/healthz"}
    assert {name: probe for name, probe in probes.items() if probe} == {
        "mailglass-receive": alive,
        "mailglass-web": alive,
    }
