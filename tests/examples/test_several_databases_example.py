"""`examples/several-databases`, whose app runs in tests/stories/test_several_databases.py."""

import json
import subprocess

import jsonschema
import pytest
import yaml

import pages
import readme

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

EXAMPLE = "several-databases"
FOLDER = readme.EXAMPLES / EXAMPLE
COMPOSE = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
SCHEDULE = """
from fleet import app
print(*sorted({entry["options"]["queue"] for entry in app.conf.beat_schedule.values()}), len(app.conf.beat_schedule))
"""


def test_each_queue_of_the_schedule_has_the_workers_of_one_database(db, redis_url):
    """In the compose file and in the README; a worker has no other database's URL, and beat has none."""
    printed = readme.run(EXAMPLE, f"python -c '{SCHEDULE}'", readme.environment(db, redis_url))
    assert printed.split() == ["mail-eu", "mail-us", "6"]
    services = COMPOSE["services"]
    for region in ("eu", "us"):
        command, worker = readme.command(EXAMPLE, "worker", f"-Q mail-{region}").text, services[f"worker-{region}"]
        assert f"-n {region}@%h" in command
        assert worker["command"][-4:] == ["-Q", f"mail-{region}", "-n", f"{region}@%h"]
        assert worker["networks"] == [region, "redis"]
        for name in ("migrate", "worker", "web"):
            service = services[f"{name}-{region}"]
            assert service["environment"]["MAILGLASS_DATABASE_URL"] == f"@/run/secrets/url-{region}"
            assert f"url-{region}" in service["secrets"]
            assert f"migrate-{region}" in service["depends_on"] or name == "migrate"
    assert (services["beat"]["networks"], services["beat"]["secrets"]) == (["redis"], ["redis-url"])


def test_the_compose_file_conforms_to_the_specification_and_has_the_images_of_the_other_one():
    schema = json.loads((pages.ROOT / "tests/support/compose_schema.json").read_text())
    assert list(jsonschema.Draft7Validator(schema).iter_errors(COMPOSE)) == []
    images, of_root = (
        {
            service["image"]
            for service in yaml.safe_load((folder / "docker-compose.yml").read_text())["services"].values()
        }
        for folder in (FOLDER, pages.ROOT)
    )
    assert images == of_root
    assert (FOLDER / COMPOSE["services"]["beat"]["build"]).resolve() == pages.ROOT


def test_the_head_of_the_compose_file_makes_each_secret(tmp_path):
    """The commands are run as shown; a URL has its database's password."""
    head = (FOLDER / "docker-compose.yml").read_text().split("\nname:")[0]
    lines = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ")]
    script = "\n".join(line for line in lines if not line.startswith("docker "))
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True)
    written = {path.name: path.read_text().strip() for path in (tmp_path / "secrets").iterdir()}
    assert set(written) == set(COMPOSE["secrets"])
    for region in ("eu", "us"):
        password = written[f"postgres-{region}"]
        assert written[f"url-{region}"] == f"postgresql://postgres:{password}@postgres-{region}:5432/mail"
