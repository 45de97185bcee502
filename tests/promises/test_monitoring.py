"""What is written about the numbers is so: the page that lists them, the dashboard, and the alerts."""

import json
import re
import shutil
import subprocess
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from app import metrics
from app.clock import utc_now
from app.intake.router import _RECEIVED, _REFUSED
from app.scrape import Ledger, LedgerCollector

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/metrics.md").read_text()
MONITORING = (ROOT / "docs/operations/monitoring.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/operations/grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs/operations/alert-rules.yml").read_text())["groups"][0][
    "rules"
]

OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:jasper_receiver|process)_[a-z_]+|\bup\b")


def families() -> list[Metric]:
    """Everything that `/metrics` tells of ourselves, with at least one series each."""
    now = utc_now()
    row: Any = SimpleNamespace(
        name="search",
        position=0,
        oldest=now,
        entity_type="product",
        state="registered",
        pending_since=None,
        last_callback_at=now - timedelta(seconds=1),
        retry_policy="linear",
        minimum_retry_interval=300,
        retry_limit=5,
        status="succeeded",
        succeeded_at=now,
        has_missed=False,
    )
    ledger = Ledger(
        position=1,
        quarantined=0,
        unproven=0,
        parked=0,
        consumers=1,
        farthest_behind=[row],
        registrations=[row],
        removed_up_to=0,
        reconciliations=[row],
        attendance=[row],
    )
    collector = LedgerCollector(ledger, now, kept_for=timedelta(days=30), knows_secret=lambda _: True)
    return [*metrics.registry().collect(), *collector.collect()]


FAMILIES = families()


def shown_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> list[str]:
    """Its labels, in the order of their first appearance."""
    return list(dict.fromkeys(name for sample in family.samples for name in sample.labels if name != "le"))


def described(family: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in labels_of(family)) or "–"
    return f"| `{shown_name(family)}` | {family.type} | {labels} | {family.documentation} |"


OURS = [family for family in FAMILIES if family.name.startswith(metrics.PREFIX)]


@pytest.mark.parametrize("family", OURS, ids=shown_name)
def test_every_metric_is_described_as_it_describes_itself(family: Metric) -> None:
    assert described(family) in REFERENCE.splitlines()


def test_no_metric_is_described_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `(jasper_receiver_[a-z_]+)` \|", REFERENCE, re.MULTILINE)
    assert documented == [shown_name(family) for family in OURS]


def test_every_outcome_of_a_callback_is_described() -> None:
    outcomes = {str(status) for _, status in _RECEIVED} | {name for _, name in _REFUSED}
    [paragraph] = [text for text in REFERENCE.split("\n\n") if text.startswith("`outcome` is")]
    assert set(re.findall(r"`([a-z-]+)`", paragraph)) - {"outcome"} == outcomes


def test_labels_are_few_and_their_values_are_ours() -> None:
    """A label that came from outside could hold a secret, or grow without end. Consumers' names are bounded in number."""
    bounded = {"collection", "outcome", "reason", "status", "state", "version", "python", "entity_type", "consumer"}
    assert {label for family in OURS for label in labels_of(family)} == bounded
    assert max(len(family.samples) for family in OURS) <= 100


def existing() -> set[str]:
    found = set(OF_PROMETHEUS)
    for family in FAMILIES:
        found |= {shown_name(family), *(sample.name for sample in family.samples)}
    return found


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_asks_for_numbers_that_exist(panel: dict[str, Any]) -> None:
    assert panel["description"] or panel["type"] == "row"
    assert panel["targets"]
    for target in panel["targets"]:
        asked = set(NAME.findall(target["expr"]))
        assert asked
        assert asked <= existing()
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert 'job="$job", instance=~"$instance"' in target["expr"]


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    asked = {name for panel in PANELS for target in panel["targets"] for name in NAME.findall(target["expr"])}
    unseen = {
        family.name for family in OURS if not asked & {shown_name(family), *(sample.name for sample in family.samples)}
    }
    assert unseen == set()


def test_the_dashboard_is_laid_out_without_overlaps_and_defines_what_it_uses() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for one, other in combinations(DASHBOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])
        assert a["x"] + a["w"] <= 24
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == {variable["name"] for variable in DASHBOARD["templating"]["list"]}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_numbers_that_exist_and_is_explained(rule: dict[str, Any]) -> None:
    asked = set(NAME.findall(rule["expr"]))
    assert asked
    assert asked <= existing()
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert f"\n### {rule['alert']}\n" in MONITORING


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_values_of_labels_that_alerts_name_exist(rule: dict[str, Any]) -> None:
    values = {value for family in FAMILIES for sample in family.samples for value in sample.labels.values()}
    values |= {"jasper-receiver"}  # the job, as Prometheus is to call it
    for given in re.findall(r'=~?"([^"]+)"', rule["expr"]):
        assert set(given.split("|")) <= values


def test_no_alert_is_explained_that_does_not_exist() -> None:
    assert re.findall(r"^### (JasperReceiver\w+)$", MONITORING, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_every_alert_is_tried_on_a_bad_and_on_a_good_day() -> None:
    tried = yaml.safe_load((ROOT / "docs/operations/alert-rules-test.yml").read_text())["tests"][:2]
    alerts = [rule["alert"] for rule in RULES]
    assert [[one["alertname"] for one in day["alert_rule_test"]] for day in tried] == [alerts, alerts]
    assert all(one["exp_alerts"] for one in tried[0]["alert_rule_test"])
    assert not any(one["exp_alerts"] for one in tried[1]["alert_rule_test"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_itself_finds_that_alerts_come_when_they_should() -> None:
    place = ROOT / "docs/operations"
    for command in (("check", "rules", "alert-rules.yml"), ("test", "rules", "alert-rules-test.yml")):
        done = subprocess.run(["promtool", *command], cwd=place, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
