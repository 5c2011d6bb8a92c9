"""What a request is: resolved once, from the ask, the catalogue and the settings."""

import json
import math

import pytest

from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.repository import Catalogue, scan
from server.serving.plan import Ask, Plan
from server.settings import Settings
from tests import tiny

SETTINGS = Settings(timeout_ms=4000, max_batch=16)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Models `plain` (versions 1 and 2), `own` with its own settings, and the ensemble `both`."""
    repository = tmp_path_factory.mktemp("repository")
    members = [tiny.write(repository, "plain", 1), tiny.write(repository, "own")]
    tiny.write(repository, "plain", 2)
    own = {"timeout_ms": 500, "max_batch": 2, "priority": "high"}
    (repository / "own" / "serving.json").write_text(json.dumps(own))
    tiny.write_ensemble(repository, "both", members)
    return scan(repository, default_model="plain")


def plan(catalogue: Catalogue, ask: Ask) -> Plan:
    return Plan.of(ask, catalogue, SETTINGS)


def test_without_names_it_is_the_newest_default_model(catalogue: Catalogue) -> None:
    planned = plan(catalogue, Ask())
    assert (planned.entry.name, planned.entry.version) == ("plain", 2)
    assert (planned.permits, planned.averages) == (1, False)
    assert (planned.priority, planned.timeout_s, planned.max_batch) == (Priority.NORMAL, 4.0, 16)


def test_what_the_model_says_goes_before_the_server_and_the_client_before_both(catalogue: Catalogue) -> None:
    planned = plan(catalogue, Ask(model="own"))
    assert (planned.priority, planned.timeout_s, planned.max_batch) == (Priority.HIGH, 0.5, 2)
    assert plan(catalogue, Ask(model="own", priority=Priority.LOW)).priority is Priority.LOW


@pytest.mark.parametrize(("patience_s", "deadline_s"), [(math.inf, 10.5), (10.25, 10.25), (99.0, 10.5)])
def test_the_deadline_is_whichever_ends_first(catalogue: Catalogue, patience_s: float, deadline_s: float) -> None:
    assert plan(catalogue, Ask(model="own", patience_s=patience_s)).deadline_s(10.0) == deadline_s


def test_each_crop_that_a_member_looks_at_takes_a_permit(catalogue: Catalogue) -> None:
    assert plan(catalogue, Ask(model="plain", crops=10)).permits == 10
    both = plan(catalogue, Ask(model="both", crops=10))
    assert [member.manifest.name for member in both.members] == ["plain", "own"]
    assert (both.permits, both.averages) == (20, True)
    assert (both.timeout_s, both.priority) == (4.0, Priority.NORMAL)  # an ensemble has no settings of its own


def test_what_is_not_served_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ServiceError) as error:
        plan(catalogue, Ask(model="missing"))
    assert error.value.code is Code.UNKNOWN_MODEL
