"""The alert rules and the dashboard, in a real Prometheus that scrapes real servers."""

import json
import re
import shutil
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from server.errors import Code
from server.http.problems import STATUS
from tests import processes, tiny
from tests.server.running import PATIENCE_S, ROOT, GatedServer, RunningServer, red_image, until

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "serving.json").read_text())
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
EXPOSED = re.compile(r"# TYPE (serving_\w+?)(?:_total)? ")
SCRAPES = 3
"""A rate needs two; one more, as the first may fall into Prometheus's start."""


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if not found or not shutil.which("prometheus"):
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    return found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[RunningServer, RunningServer]]:
    """One that answers some requests and refuses others, and one that answers none in time."""
    slow, quick = tmp_path_factory.mktemp("slow"), tmp_path_factory.mktemp("quick")
    for repository in (slow, quick):
        tiny.write(repository)
    with GatedServer(slow, queue_size=1) as full, RunningServer(quick, timeout_ms=0.001) as late:
        with ThreadPoolExecutor(1) as aside, full.hold(1):
            answered = aside.submit(full.classify, red_image(1))
            until(lambda: full.pending() == 1)
            assert {answer.status_code for answer in full.classify_all([red_image(1)] * 8, 8)} == {429}
        assert answered.result().status_code == 200
        assert {answer.status_code for answer in full.classify_all([red_image(2)] * 8, 1)} == {200}
        assert late.classify(red_image(1)).status_code == 504
        yield full, late


@pytest.fixture(scope="module")
def prometheus(
    promtool: str, servers: tuple[RunningServer, RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Generator[httpx.Client]:
    """A Prometheus that has scraped both, with our configuration except for addresses and interval."""
    assert promtool
    folder = tmp_path_factory.mktemp("prometheus")
    targets = [server.url.removeprefix("http://") for server in servers]
    ours = (MONITORING / "prometheus.yml").read_text().replace("15s", "1s")
    head, _, _ = ours.partition("    dns_sd_configs:")
    config = folder / "prometheus.yml"
    config.write_text(f"{head}    static_configs: [{{targets: {json.dumps(targets)}}}]\n")
    shutil.copy(MONITORING / "alerts.yml", folder)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    command += ["--web.listen-address=127.0.0.1:0"]
    with processes.started(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        address = next(
            found[1] for line in process.stderr if (found := re.search(r'"Listening on" address=(\S+)', line))
        )
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as client:
            scraped = f"min(count_over_time(serving_engine_ready[1m])) >= {SCRAPES}"
            until(lambda: len(ask(client, scraped)) == 1 and len(ask(client, "up == 1")) == len(servers))
            yield client


def ask(client: httpx.Client, expression: str) -> list[Any]:
    """The series that an expression yields now."""
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


def test_the_configuration_is_valid(promtool: str) -> None:
    subprocess.run([promtool, "check", "config", MONITORING / "prometheus.yml"], check=True)


def test_each_alert_is_raised_when_it_must_be_and_not_before(promtool: str) -> None:
    subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=MONITORING, check=True)


def test_every_code_that_is_not_the_clients_fault_counts_in_an_alert() -> None:
    patterns = re.findall(r'code=~"([^"]+)"', (MONITORING / "alerts.yml").read_text())
    ours = {code for code, status in STATUS.items() if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS}
    ours.remove(Code.RATE_LIMITED)  # the client's own limit
    assert ours
    assert [code for code in ours if sum(bool(re.fullmatch(pattern, code)) for pattern in patterns) != 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_of_the_dashboard_has_data(prometheus: httpx.Client, expression: str) -> None:
    if "serving_gpu" in expression and not ask(prometheus, "serving_gpu_memory_total_bytes"):
        pytest.skip("this machine has no NVIDIA GPU")
    expression = re.sub(r"\$(?:model|job|instance)\b", ".*", expression.replace("$__rate_interval", "1m"))
    assert "$" not in expression
    assert ask(prometheus, expression)


def test_every_expression_of_the_dashboard_is_of_the_job_and_the_instances_that_are_chosen() -> None:
    chosen = 'job=~"$job",instance=~"$instance"'
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            selected = re.findall(r"\b(?:serving|process)_\w+(?:\{(.*?)\})?", target["expr"])
            assert selected
            assert [labels for labels in selected if not labels.startswith(chosen)] == [], panel["title"]


@pytest.mark.slow
def test_every_alert_looks_at_data_that_there_is(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}
    assert rules
    for name, expression in rules.items():
        compared, found = re.subn(r"(==|>) ([\d.]+)$", r"\1 bool \2", expression)  # `bool`: a value in any case
        assert found == 1, name
        assert ask(prometheus, compared), name


@pytest.mark.slow
def test_the_dashboard_shows_every_metric(servers: tuple[RunningServer, RunningServer]) -> None:
    exposed = set(EXPOSED.findall(servers[0].client.get("/metrics").text))
    shown = json.dumps(DASHBOARD["panels"])
    assert exposed
    assert {name for name in exposed if name not in shown} == set()


def test_the_dashboard_shows_every_metric_of_gpus() -> None:
    names = re.findall(r'"(serving_gpu_\w+)"', (ROOT / "server" / "metrics.py").read_text())
    shown = json.dumps(DASHBOARD["panels"])
    assert names
    assert [name for name in names if name not in shown] == []


def test_the_dashboard_is_one_by_grafanas_own_schema() -> None:
    """Grafana's library drops whatever its schema lacks, so what it gives back is all that Grafana understands."""
    plugins.register_default_plugins()
    read = Dashboard.from_json(json.loads(json.dumps(DASHBOARD)))
    assert _without(json.loads(json.dumps(read, cls=JSONEncoder)), DASHBOARD) == []


def _without(back: Any, written: Any, path: str = "") -> list[str]:
    """The paths of what was written but does not come back the same."""
    if isinstance(written, dict) and isinstance(back, dict):
        return [one for key, value in written.items() for one in _without(back.get(key), value, f"{path}.{key}")]
    if isinstance(written, list) and isinstance(back, list) and len(written) == len(back):
        pairs = zip(back, written, strict=True)
        return [one for at, (found, value) in enumerate(pairs) for one in _without(found, value, f"{path}[{at}]")]
    return [] if back == written else [path]


def test_the_dashboard_fits_its_grid_and_its_data_source() -> None:
    panels = DASHBOARD["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    provisioned = (MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    sources = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert sources == {"${datasource}"}
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert [*variables] == ["datasource", "job", "instance", "model"]
    assert f"type: {variables['datasource']['query']}" in provisioned
