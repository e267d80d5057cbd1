"""The rules, the dashboard and the runbook belong together, and to what a scrape has."""

import json
import re

import pytest

import scraping
from mailglass_reconcile import exposition
from mailglass_reconcile.receiver import metrics as receivers
from mailglass_reconcile.web import metrics
from timeline import MONITORING, RULES, needs_promtool, promtool, rules

NAME = re.compile(rf"\b{exposition.PREFIX}\w+")
RUNBOOK = (MONITORING.parent / "runbook.md").read_text()
OF_RECEIVERS = set(re.findall(r"^# TYPE (\w+)", receivers.scrape({}).decode(), re.MULTILINE))
"""The page does not receive webhooks; OpenTelemetry's exporter for Prometheus names the format's counter so, too."""
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]


def expressions():
    """Return all expressions of rules and panels."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + panels


@pytest.mark.slow
def test_every_metric_in_a_rule_or_a_panel_is_in_a_scrape_and_in_the_table(db):
    """And what a scrape has is described."""
    there = {name if name.startswith("mailglass_") else exposition.PREFIX + name for name, _ in scraping.scrape(db)}
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used - there <= OF_RECEIVERS
    described = set(re.findall(r"^\| `(\w+)` \|", (MONITORING.parent / "monitoring.md").read_text(), re.MULTILINE))
    assert described == there | OF_RECEIVERS


def test_every_alert_has_a_section_of_the_runbook_in_four_parts():
    """By the anchor that its URL names; and no section is without its alert."""
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules())
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        section = RUNBOOK.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == SECTIONS


def test_an_alert_says_the_same_whatever_the_value_and_then_says_it():
    """`summary` groups notifications; `description` is made of labels and values."""
    for rule in rules():
        assert "{{" not in rule["annotations"]["summary"]
        assert "{{" in rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.slow
@needs_promtool
def test_promtool_takes_the_rules_and_passes_their_tests():
    """Which have steps that must not fire."""
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("test", "rules", str(MONITORING / "alerts.test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_promtool
def test_promtool_takes_every_expression_of_the_dashboard(tmp_path):
    """As the expressions of rules, with a job in the place of Grafana's variable."""
    panels = [one.replace("$job", "mailglass") for one in expressions()[len(rules()) :]]
    named = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(panels)]
    (tmp_path / "panels.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": named}]}))
    done = promtool("check", "rules", str(tmp_path / "panels.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(panels)} rules found" in done.stdout


@pytest.mark.slow
@needs_promtool
def test_promtool_takes_the_configuration_of_the_page(tmp_path):
    """With the rules beside it."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (MONITORING.parent / "monitoring.md").read_text(), re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    done = promtool("check", "config", "--syntax-only", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_promtool
def test_promtool_takes_a_real_scrape(db):
    """Also what it would have named otherwise."""
    done = promtool("check", "metrics", input=metrics.scrape(db.database).decode())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
