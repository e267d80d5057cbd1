"""The rules, the dashboard and the doctor's page agree with each other and with a scrape."""

import json
import re

import pytest

import commands
import pages
import scraping
from mailglass_reconcile import exposition
from mailglass_reconcile.ops import checks
from mailglass_reconcile.receiver import metrics as receivers
from mailglass_reconcile.web import metrics
from timeline import MONITORING, RULES, needs_promtool, promtool, rules

pytestmark = pytest.mark.version_independent

NAME = re.compile(rf"\b{exposition.PREFIX}\w+")
PAGE = (MONITORING.parent / "doctor.md").read_text()
OF_RECEIVERS = set(re.findall(r"^# TYPE (\w+)", receivers.scrape().decode(), re.MULTILINE))
"""The page does not receive webhooks; OpenTelemetry's exporter for Prometheus names the format's counter so, too."""


def expressions():
    """Return the expressions of all rules and panels."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + panels


@pytest.mark.slow
def test_every_metric_in_a_rule_or_a_panel_is_in_a_scrape_and_in_the_table(db):
    scraped = {name if name.startswith("mailglass_") else exposition.PREFIX + name for name, _ in scraping.scrape(db)}
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used - scraped <= OF_RECEIVERS
    described = set(re.findall(r"^\| `(\w+)` \|", (MONITORING.parent / "monitoring.md").read_text(), re.MULTILINE))
    assert described == scraped | OF_RECEIVERS


def test_every_incident_has_a_section_that_its_alert_names():
    """The section has the check's or the alert's name; no section is without its incident."""
    cheap = list(dict.fromkeys(check.name for check in checks.CHECKS if check.is_fast))
    other_alerts = [rule["alert"] for rule in rules() if rule["alert"] != "MailglassReconcileFinding"]
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted([*cheap, *other_alerts])
    for rule in rules():
        anchor = rule["annotations"]["runbook_url"].removeprefix("docs/doctor.md#")
        assert anchor == (rule["alert"].lower() if rule["alert"] in other_alerts else "{{ $labels.check }}")


def test_every_incident_names_a_command_that_exists():
    """It stands in its section, or in the one above it, where all of the sections say to run what is printed."""
    programs = {"docker compose", "createdb", "curl"} | {f"mailglass-reconcile {name}" for name in commands.SUBCOMMANDS}
    without = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        above, *sections = re.split(r"^### ", part, flags=re.MULTILINE)
        said = above if "`->`" in above else ""
        spans = [(section.partition("\n")[0], re.findall(r"`([^`\n]+)`", section + said)) for section in sections]
        without += [name for name, texts in spans if not any(text.startswith(tuple(programs)) for text in texts)]
    assert without == []


def test_the_lines_that_an_incident_searches_the_log_for_are_logged():
    """Each is a text of the package."""
    package = "".join(path.read_text() for path in (pages.ROOT / "mailglass_reconcile").rglob("*.py"))
    searched = re.findall(r"grep (?:-e )?'([^']+)'(?: -e '([^']+)')?", PAGE)
    assert len(searched) == 5
    for text in filter(None, (text for pair in searched for text in pair)):
        assert text.rstrip(":") in package, text


def test_a_summary_has_no_value_and_a_description_has_one():
    """Of the labels, only the check is in a summary: the pager shows no more, and the runbook has a section of it."""
    for rule in rules():
        labels = re.findall(r"{{(.*?)}}", rule["annotations"]["summary"])
        is_finding = rule["alert"] == "MailglassReconcileFinding"
        assert labels == ([" $labels.check ", " $labels.status "] if is_finding else [])
        assert "{{" in rule["annotations"]["description"]
        finding = '{{ if eq $labels.status "error" }}critical{{ else }}warning{{ end }}'
        assert rule["labels"]["severity"] in ("critical", "warning", finding)


@pytest.mark.slow
@needs_promtool
def test_promtool_accepts_the_rules_and_passes_their_tests():
    """The tests have steps that must not fire."""
    process = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert process.returncode == 0, process.stdout + process.stderr
    process = promtool("test", "rules", str(MONITORING / "alerts.test.yml"))
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
@needs_promtool
def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path):
    """They are tested as rules, with a job instead of Grafana's variable."""
    panels = [expression.replace("$job", "mailglass") for expression in expressions()[len(rules()) :]]
    panel_rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(panels)]
    (tmp_path / "panels.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": panel_rules}]}))
    process = promtool("check", "rules", str(tmp_path / "panels.json"))
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{len(panels)} rules found" in process.stdout


@pytest.mark.slow
@needs_promtool
def test_promtool_accepts_the_configuration_of_the_page(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (MONITORING.parent / "monitoring.md").read_text(), re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    process = promtool("check", "config", "--syntax-only", str(tmp_path / "prometheus.yml"))
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
@needs_promtool
def test_promtool_accepts_a_real_scrape(db):
    """Its lint of names passes, too."""
    process = promtool("check", "metrics", input=metrics.scrape(db.database).decode())
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
