"""Every alert leads to a section of the runbook that says what to do."""

import re
from typing import Any

import yaml
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule

from tests.server.running import ROOT

RUNBOOK = (ROOT / "docs" / "operations" / "runbook.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]


def test_each_alert_links_to_its_own_section_and_each_section_is_of_an_alert() -> None:
    sections = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    links = [rule["annotations"]["runbook_url"] for rule in RULES]
    assert links == [f"docs/operations/runbook.md#{name.lower()}" for name in sections]


def test_the_alerts_are_what_the_prometheus_operator_takes() -> None:
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    rule = {**kind, "metadata": {"name": "resnet-serving"}, "spec": ALERTS}
    model: Any = PrometheusRule
    assert model.model_validate(rule).model_dump(mode="json", by_alias=True, exclude_unset=True) == rule
