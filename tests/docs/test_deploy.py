"""The manifests: valid for Kubernetes, with existing commands and settings, and with the names that the pages use."""

import json
import re
import subprocess

import click
import kubernetes_validate
import pytest
import yaml

import commands
import pages
from mailglass_reconcile.cli import serve
from mailglass_reconcile.providers import registry
from mailglass_reconcile.receiver import app
from mailglass_reconcile.settings import ENV_PREFIX, Settings
from mailglass_reconcile.store.schema import revision

pytestmark = pytest.mark.version_independent

FILE = pages.ROOT / "docs" / "deploy" / "kubernetes.yml"
OBJECTS = list(yaml.safe_load_all(FILE.read_text()))
VERSIONS = ("1.30", "1.37")
PODS = {
    item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in OBJECTS if "template" in item.get("spec", {})
}
SECRETS = {"owner-url", "worker-url", "recorder-url", "reader-url", "redis-url", "webhooks", "web-token"}
SERVICES = {row["metadata"]["name"]: row["spec"]["ports"][0]["port"] for row in OBJECTS if row["kind"] == "Service"}
CONFIGURATION = next(row["data"] for row in OBJECTS if row["kind"] == "ConfigMap")
COMPOSE = yaml.safe_load((pages.ROOT / "docker-compose.yml").read_text())["services"]
PAGES = {page.name: page.read_text() for page in [*pages.PAGES, pages.ROOT / "docker-compose.yml"]}
TEXT = "\n".join(PAGES.values())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", OBJECTS, ids=lambda manifest_object: f"{manifest_object['kind']} {manifest_object['metadata']['name']}"
)
def test_kubernetes_accepts_a_manifest(manifest, version):
    """Validation is strict: unknown properties are errors."""
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_container_starts_an_existing_command(name):
    """Its options exist; Celery's app is the bundled one, and beat keeps the schedule in memory."""
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
def test_a_container_has_settings_that_exist_and_reads_mounted_secrets(name):
    """No shell or password is needed: each file in a setting is a mounted key of the Secret."""
    (container,) = PODS[name]["containers"]
    assert "command" not in container
    environment = {row["name"]: row["value"] for row in container.get("env", ())}
    if "envFrom" in container:
        environment |= CONFIGURATION
    assert {setting.removeprefix(ENV_PREFIX).lower() for setting in environment} <= set(Settings.model_fields)
    (volume,) = [volume["secret"] for volume in PODS[name]["volumes"] if "secret" in volume]
    mounted = [f"@/run/secrets/mailglass/{item['path']}" for item in volume["items"]]
    assert sorted(mounted) == sorted(value for value in environment.values() if value.startswith("@"))
    assert all(item["path"] == item["key"] for item in volume["items"])
    assert set(environment.values()) <= {*mounted, *CONFIGURATION.values()}


@pytest.mark.parametrize("name", ["mailglass-worker", "mailglass-receive", "mailglass-web"])
def test_each_process_that_needs_key_rules_or_handlers_imports_them(name):
    """In Kubernetes the ConfigMap does it, in Compose `.env`; beat and the migration need neither."""
    (container,) = PODS[name]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "mailglass"}}]
    assert "MAILGLASS_IMPORTS" in CONFIGURATION
    assert "MAILGLASS_IMPORTS" in COMPOSE[name.removeprefix("mailglass-")]["environment"]


@pytest.mark.parametrize("name", ["receive", "web"])
def test_both_processes_with_metrics_have_their_token(name):
    """Without one the receiver answers 404, and its two alerts could never fire."""
    (container,) = PODS[f"mailglass-{name}"]["containers"]
    assert "MAILGLASS_WEB_TOKEN" in {row["name"] for row in container["env"]}
    assert "MAILGLASS_WEB_TOKEN" in COMPOSE[name]["environment"]


def test_pages_name_the_objects_of_the_manifests():
    """A reader's `kubectl` commands refer to the shipped file."""
    used = set(re.findall(r"\b((?:deploy|job)/mailglass[\w-]*)", TEXT)) | set(
        re.findall(r"\bdeploy/[\w-]+(?= --)", TEXT)
    )
    kinds = {"Deployment": "deploy", "Job": "job"}
    assert used <= {f"{kinds[row['kind']]}/{row['metadata']['name']}" for row in OBJECTS if row["kind"] in kinds}
    assert {"deploy/mailglass-worker", "job/mailglass-migrate"} <= used


@pytest.mark.parametrize("version", VERSIONS)
def test_the_doctor_s_page_makes_a_pod_like_the_worker_s(version):
    """Where no worker runs there is no pod for `kubectl exec`; this one has the worker's settings and secrets."""
    (program,) = re.findall(r"kubectl get deploy/mailglass-worker -o json \| jq '(.*?)' \|", TEXT, re.DOTALL)
    (worker,) = [row for row in OBJECTS if (row["kind"], row["metadata"]["name"]) == ("Deployment", "mailglass-worker")]
    jq = subprocess.run(["jq", program], input=json.dumps(worker), capture_output=True, text=True, check=True)
    pod = json.loads(jq.stdout)
    kubernetes_validate.validate(pod, version, strict=True)
    (expected,) = PODS["mailglass-worker"]["containers"]
    assert pod["spec"] == {
        **PODS["mailglass-worker"],
        "restartPolicy": "Never",
        "containers": [{**expected, "args": ["mailglass-reconcile", "doctor"]}],
    }


def test_pages_name_the_services_of_the_compose_file():
    commands_shown = re.findall(r"docker compose (?:run|exec|logs|up)((?: [^\s#`|]+)+)", TEXT)
    services = [[word for word in words.split() if not word.startswith("-")] for words in commands_shown]
    assert len(services) >= 4
    for words in services:
        upto = words.index("mailglass-reconcile") if "mailglass-reconcile" in words else len(words)
        upto = words.index("psql") if "psql" in words else upto
        assert set(words[:upto]) - {"1h"} <= set(COMPOSE)


def test_prometheus_scrapes_ports_that_are_open():
    """The page's targets are Services of the manifest with their port, those in its text services of Compose."""
    page = PAGES["monitoring.md"]
    (configuration,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    jobs = {job["job_name"]: job for job in yaml.safe_load(configuration)["scrape_configs"]}
    targets = {
        job: job_settings["static_configs"][0]["targets"]
        for job, job_settings in jobs.items()
        if "static_configs" in job_settings
    }
    assert targets == {"mailglass-reconcile": [f"mailglass-web:{SERVICES['mailglass-web']}"]}
    (relabel,) = jobs["mailglass-receive"]["relabel_configs"]
    labels = {row["metadata"]["name"]: row["metadata"]["labels"] for row in OBJECTS if "labels" in row["metadata"]}
    names = [f"app.kubernetes.io/{name}" for name in ("name", "component")]
    assert relabel["source_labels"] == [f"__meta_kubernetes_pod_label_{re.sub('[./]', '_', name)}" for name in names], (
        "another application may have a receiver"
    )
    assert relabel["regex"] == ";".join(labels["mailglass-receive"][name] for name in names)
    for name in re.findall(r"`((?:web|receive):\d+)`", page):
        service, port = name.split(":")
        assert COMPOSE[service]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert {"web:8080", "receive:8081"} <= set(re.findall(r"`(\w+:\d+)`", page))


INGRESS, POD_MONITOR = (
    yaml.safe_load(block.text)
    for block in pages.blocks(pages.ROOT / "docs" / "kubernetes.md")
    if block.language == "yaml"
)
"""What the page gives to paste."""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_ingress_of_the_page_is_valid_and_exposes_webhooks_only(version):
    """`/metrics` of the receiver stays inside."""
    kubernetes_validate.validate(INGRESS, version, strict=True)
    (rule,) = INGRESS["spec"]["rules"]
    for path in rule["http"]["paths"]:
        assert (path["pathType"], path["path"].removeprefix("/") in registry.PROVIDERS) == ("Exact", True)
        service = path["backend"]["service"]
        (port,) = [
            row["spec"]["ports"][0]
            for row in OBJECTS
            if (row["kind"], row["metadata"]["name"]) == ("Service", service["name"])
        ]
        assert (service["name"], service["port"]["name"]) == ("mailglass-receive", port["name"])


def test_the_pod_monitor_of_the_page_gives_receivers_and_dashboards_the_jobs_that_alerts_expect():
    """It scrapes exactly the pods with metrics, with the key of the Secret that they have."""
    (endpoint,) = POD_MONITOR["spec"]["podMetricsEndpoints"]
    deployed = [row for row in OBJECTS if "template" in row.get("spec", {})]
    templates = {row["metadata"]["name"]: row["spec"]["template"] for row in deployed}
    selected = {
        name: template["metadata"]["labels"]
        for name, template in templates.items()
        if POD_MONITOR["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        if any(port["name"] == endpoint["port"] for port in template["spec"]["containers"][0].get("ports", ()))
    }
    assert set(selected) == {"mailglass-receive", "mailglass-web"}
    component = "app.kubernetes.io/component"
    jobs = {}
    for relabel in endpoint["relabelings"]:
        assert relabel["sourceLabels"] == [f"__meta_kubernetes_pod_label_{re.sub('[./]', '_', component)}"]
        (name,) = [name for name, labels in selected.items() if re.fullmatch(relabel["regex"], labels[component])]
        jobs[name] = (relabel["targetLabel"], relabel["replacement"])
    assert jobs == {
        "mailglass-receive": ("job", "mailglass-receive"),
        "mailglass-web": ("job", "mailglass-reconcile"),
    }
    rules = (pages.ROOT / "docs/monitoring/alerts.yml").read_text()
    assert set(re.findall(r'job="([\w-]+)"', rules)) == {job for _, job in jobs.values()}
    assert endpoint["authorization"]["credentials"] == {"name": "mailglass", "key": "web-token"}


def test_the_page_has_the_connections_of_all_objects_together():
    """Two for each process of a worker, eight threads and one more for a receiver, and those of the dashboard."""
    (worker,) = PODS["mailglass-worker"]["containers"]
    processes = int(worker["args"][worker["args"].index("--concurrency") + 1])
    replicas = {row["metadata"]["name"]: row["spec"]["replicas"] for row in OBJECTS if row["kind"] == "Deployment"}
    total = (
        replicas["mailglass-worker"] * processes * 2
        + replicas["mailglass-receive"] * (app.THREADS + 1)
        + replicas["mailglass-web"] * serve.CONNECTIONS
    )
    assert f"at most {total} [connections]" in PAGES["kubernetes.md"]


def test_a_worker_that_exits_at_its_start_stops_a_rollout():
    """Without a probe a pod is available at once, unless it must run for a while."""
    specs = {row["metadata"]["name"]: row["spec"] for row in OBJECTS if row["kind"] == "Deployment"}
    unprobed = [name for name in specs if "readinessProbe" not in PODS[name]["containers"][0]]
    assert unprobed == ["mailglass-worker", "mailglass-beat"]
    assert specs["mailglass-worker"]["minReadySeconds"] >= 10


@pytest.mark.parametrize(
    ("name", "retries"),
    [
        ("mailgun", "none for `delivered`"),
        ("mailersend", "2, after 10 and 100 seconds"),
        ("ses", "3, after 20 seconds each, unless the subscription has another delivery policy"),
    ],
)
def test_the_providers_that_soon_stop_repeating_are_named(name, retries):
    """The page says which webhooks an upgrade could lose; Brevo's rule is no count of retries."""
    definition = registry.get_provider(name)
    (block,) = re.findall(rf"^## {definition.title}$.*?(?=^## |\Z)", PAGES["providers.md"], re.M | re.S)
    assert "- **retries**: " in block
    assert retries in block
    (exceptions,) = re.findall(r"most providers\s+\[repeat.*?\n- ", PAGES["kubernetes.md"], re.DOTALL)
    assert definition.title in exceptions
    assert "Brevo" in exceptions


def test_pages_alerts_and_dashboard_name_metrics_and_tables_that_exist():
    """Another test compares the table of monitoring.md with a scrape; this one compares all other pages."""
    metrics = set(re.findall(r"^\| `(\w+)` \|", PAGES["monitoring.md"], re.MULTILINE))
    of_prometheus = [(pages.ROOT / "docs/monitoring" / name).read_text() for name in ("alerts.yml", "dashboard.json")]
    assert set(re.findall(r"\bmailglass_reconcile_\w+", "".join(of_prometheus))) <= metrics
    matches = set(re.findall(r"`(mailglass_reconcile_\w+)[`{]", TEXT))
    assert matches - metrics <= {*revision.TABLES, revision.VERSION_TABLE}, "neither metric nor table"


def test_the_page_makes_the_secret_that_the_manifests_read():
    """One command does it, with a file for each key."""
    text = (pages.ROOT / "docs" / "kubernetes.md").read_text()
    (command,) = re.findall(r"^ *\$ kubectl create secret .*", text, re.M)
    assert set(re.findall(r"--from-file=([\w-]+)", command)) == SECRETS
    mounted = {
        item["key"]
        for pod in PODS.values()
        for volume in pod["volumes"]
        for item in volume.get("secret", {}).get("items", ())
    }
    assert mounted == SECRETS


def test_a_drained_node_leaves_a_receiver():
    """Its two pods are on different nodes if possible, and one stays while another is evicted."""
    (budget,) = [row["spec"] for row in OBJECTS if row["kind"] == "PodDisruptionBudget"]
    (constraint,) = PODS["mailglass-receive"]["topologySpreadConstraints"]
    (receive,) = [
        row for row in OBJECTS if (row["kind"], row["metadata"]["name"]) == ("Deployment", "mailglass-receive")
    ]
    selector = receive["spec"]["selector"]
    assert (budget["minAvailable"], budget["selector"], constraint["labelSelector"]) == (1, selector, selector)
    assert receive["spec"]["replicas"] > budget["minAvailable"]


def test_a_worker_has_time_to_end_a_sweep_and_there_is_one_beat():
    """The grace period exceeds a sweep's deadline; no probe restarts a process because another one is down."""
    assert PODS["mailglass-worker"]["terminationGracePeriodSeconds"] > Settings.model_fields["sweep_seconds"].default
    (beat,) = [row for row in OBJECTS if row["metadata"]["name"] == "mailglass-beat"]
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


def test_the_page_has_the_replicas_and_the_resources_of_the_manifests():
    """The memory that was measured is below what is requested."""
    rows = re.findall(r"^\| (?:Job )?`(mailglass-\w+)` \| ([^|]*) \| (\w+) \| ([^|]*) \| (\d+) MiB \|", TEXT, re.M)
    assert {name for name, *_ in rows} == set(PODS)
    deployed = [row for row in OBJECTS if "template" in row.get("spec", {})]
    replicas = {row["metadata"]["name"]: row["spec"].get("replicas", "one") for row in deployed}
    for name, count, login, resources, used in rows:
        (container,) = PODS[name]["containers"]
        requests, limit = container["resources"]["requests"], container["resources"]["limits"]["memory"]
        cpu = int(requests["cpu"].removesuffix("m")) / 1000
        assert resources == re.sub(r"(\d)([GM]i)", r"\1 \2", f"{cpu:g}, {requests['memory']}, {limit}")
        assert count.startswith(str(replicas[name]))
        assert int(used) < int(requests["memory"].removesuffix("Mi"))
        files = [item["key"] for volume in PODS[name]["volumes"] for item in volume.get("secret", {}).get("items", ())]
        assert [key for key in files if key in SECRETS - {"redis-url", "web-token"} and key.endswith("-url")] == [
            f"{login}-url" for _ in range(login != "none")
        ]
