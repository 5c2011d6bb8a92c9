"""The manifests, as kubectl's kustomize builds them, checked against Kubernetes' own schemas and against the server.

No cluster is needed. With `CRDS=FOLDER`, custom resources are also checked against the definitions in FOLDER/*.yaml, as
written by `kubectl get crd --output yaml`; without it, only against the models in Python packages.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

from server.child import STOP_S
from server.images.bounds import PIXEL_BYTES
from server.settings import Settings
from tests import tiny
from tests.server.running import ROOT, RunningServer, red_image, until

KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSION = "1.31"
"""The oldest supported version."""
CUSTOM: dict[str, Any] = {
    "ScaledObject": ScaledObject,
    "ServiceMonitor": ServiceMonitor,
    "PrometheusRule": PrometheusRule,
}
BUILDS = ("overlays/cpu", "overlays/gpu", "kserve")
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}
PROCESSES_BYTES = 2**30
"""Memory of the supervisor, two HTTP workers and the engine with a model (a ResNet-152 has 240 MB, twice in memory)."""

Manifest = dict[str, Any]


def kubectl(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("kubectl")), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def build(folder: str) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(kubectl("kustomize", str(KUBERNETES / folder))))


BUILT = {folder: build(folder) for folder in BUILDS}
OBJECTS = {f"{folder}-{one['kind']}": one for folder, objects in BUILT.items() for one in objects}
DEFINED = ("keda.sh/", "monitoring.coreos.com/", "serving.kserve.io/")
CUSTOM_OBJECTS = {name: one for name, one in OBJECTS.items() if one["apiVersion"].startswith(DEFINED)}


def the(folder: str, kind: str) -> Manifest:
    (found,) = (one for one in BUILT[folder] if one["kind"] == kind)
    return found


def pod(folder: str) -> Manifest:
    """The spec of a server's pod; KServe puts the containers of both of its objects into one."""
    if folder != "kserve":
        found: Manifest = the(folder, "Deployment")["spec"]["template"]["spec"]
        return found
    spec, predictor = the(folder, "ServingRuntime")["spec"], the(folder, "InferenceService")["spec"]["predictor"]
    return {key: {**spec, **predictor}[key] for key in ("containers", "volumes", "terminationGracePeriodSeconds")}


def server(folder: str) -> Manifest:
    (found,) = pod(folder)["containers"]
    return dict(found)


def environment(folder: str) -> dict[str, str]:
    """The server's settings, by their names in the environment."""
    return {one["name"]: one["value"] for one in server(folder)["env"] if one["name"].startswith("SERVER_")}


def settings(folder: str) -> Settings:
    """The settings as the server reads them in its pod."""
    cpus = math.ceil(amount(server(folder)["resources"]["limits"]["cpu"]))
    given = {name.removeprefix("SERVER_").lower(): value for name, value in environment(folder).items()}
    given["models"] = "tiny"
    with mock.patch("server.settings.available_cpus", return_value=cpus):
        return Settings.model_validate(given)


def amount(quantity: str) -> float:
    """The number that a quantity in Kubernetes' notation stands for."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def volume_bytes(folder: str, mounted_at: str) -> float:
    """The size of a volume in memory."""
    (name,) = (one["name"] for one in server(folder)["volumeMounts"] if one["mountPath"] == mounted_at)
    (volume,) = (one["emptyDir"] for one in pod(folder)["volumes"] if one["name"] == name)
    assert volume["medium"] == "Memory"
    return amount(volume["sizeLimit"])


def closed(schema: Any) -> Any:
    """The same schema, but unknown fields are errors: a cluster would drop them silently."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
    return schema


@pytest.mark.parametrize("found", OBJECTS.values(), ids=OBJECTS)
def test_every_object_follows_its_schema(found: Manifest) -> None:
    if model := CUSTOM.get(found["kind"]):
        known = model.model_validate(found).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == found  # no field is unknown to the definition
    elif found["kind"] not in ("InferenceService", "ServingRuntime"):
        kubernetes_validate.validate(found, VERSION, strict=True)


@pytest.mark.parametrize("found", CUSTOM_OBJECTS.values(), ids=CUSTOM_OBJECTS)
def test_every_custom_object_follows_its_definition(found: Manifest) -> None:
    if not os.environ.get("CRDS"):
        pytest.skip("NOT CHECKED against its CustomResourceDefinition: set CRDS to a folder that has it")
    definitions = [yaml.load(path.read_text(), yaml.CSafeLoader) for path in Path(os.environ["CRDS"]).glob("*.yaml")]
    group, version = found["apiVersion"].split("/")
    schemas = [
        one["schema"]["openAPIV3Schema"]
        for definition in definitions
        if (definition["spec"]["group"], definition["spec"]["names"]["kind"]) == (group, found["kind"])
        for one in definition["spec"]["versions"]
        if one["name"] == version
    ]
    (schema,) = schemas
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(found, schema)


def test_what_kserve_makes_a_pod_of_is_one() -> None:
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made"}, "spec": pod("kserve")}
    kubernetes_validate.validate(made, VERSION, strict=True)


@pytest.mark.parametrize("folder", BUILDS)
def test_settings_are_settings_and_images_are_targets_of_the_dockerfile(folder: str) -> None:
    names = {f"SERVER_{name.upper()}" for name in Settings.model_fields}
    assert set(environment(folder)) <= names
    assert settings(folder)
    dockerfile = (ROOT / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    containers = [*pod(folder)["containers"], *pod(folder).get("initContainers", [])]
    assert {one["image"].partition(":")[2] for one in containers} <= targets
    assert set(re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)) == {"10001"}
    for one in containers:
        context = {**pod(folder).get("securityContext", {}), **one["securityContext"]}
        assert (context["runAsUser"], context["runAsNonRoot"]) == (10001, True)
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context["allowPrivilegeEscalation"]


@pytest.mark.parametrize("folder", BUILDS)
def test_the_port_is_the_images(folder: str) -> None:
    (port,) = server(folder)["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in (ROOT / "Dockerfile").read_text()
    assert port["containerPort"] == Settings.model_fields["port"].default
    if folder != "kserve":
        named = the(folder, "Service")["spec"]["ports"][0]["targetPort"]
        rule = the(folder, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"]
        assert {named, rule, the(folder, "ServiceMonitor")["spec"]["endpoints"][0]["port"]} == {port["name"]}


@pytest.mark.parametrize("folder", BUILDS)
def test_a_pod_is_given_the_time_that_its_server_takes_to_drain(folder: str) -> None:
    found, patience_s = settings(folder), pod(folder)["terminationGracePeriodSeconds"]
    stop_s = STOP_S * (1 + found.http_workers + 1)  # until it gives up, then for each process
    assert patience_s >= (found.drain_delay_ms + found.drain_timeout_ms) / 1e3 + stop_s
    probe = server(folder)["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe.get("timeoutSeconds", 1)
    assert found.drain_delay_ms / 1e3 > noticed_s


@pytest.mark.parametrize("folder", BUILDS)
def test_the_server_has_mended_itself_before_its_pod_is_killed(folder: str) -> None:
    probe = server(folder)["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > settings(folder).stall_timeout_ms / 1e3


@pytest.mark.parametrize("folder", BUILDS)
def test_the_worst_that_a_server_may_hold_fits_its_memory_and_its_threads_their_cpus(folder: str) -> None:
    found, resources = settings(folder), server(folder)["resources"]
    slots = found.queue_size * 224 * 224 * 3
    assert volume_bytes(folder, "/dev/shm") >= 2 * slots
    volumes = volume_bytes(folder, "/dev/shm") + volume_bytes(folder, "/tmp")
    worst = found.http_workers * (found.max_buffered_bytes + found.decode_threads * PIXEL_BYTES * found.max_pixels)
    assert amount(resources["limits"]["memory"]) >= volumes + worst + PROCESSES_BYTES
    assert amount(resources["limits"]["cpu"]) % 1 == 0  # threads are rounded up: a fraction would throttle them
    assert {**resources["limits"], **resources["requests"]} == resources["limits"]
    assert not {"SERVER_INFERENCE_THREADS", "SERVER_DECODE_THREADS"} & set(environment(folder))


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu"])
def test_what_scales_is_the_deployment_and_owns_its_number(folder: str) -> None:
    assert (
        the(folder, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == the(folder, "Deployment")["metadata"]["name"]
    )
    assert "replicas" not in the(folder, "Deployment")["spec"]


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu"])
def test_everything_selects_the_servers(folder: str) -> None:
    labels = the(folder, "Deployment")["spec"]["template"]["metadata"]["labels"]
    spread = [one["labelSelector"] for one in pod(folder)["topologySpreadConstraints"]]
    selectors = [
        the(folder, "Deployment")["spec"]["selector"],
        the(folder, "PodDisruptionBudget")["spec"]["selector"],
        the(folder, "NetworkPolicy")["spec"]["podSelector"],
        *spread,
    ]
    assert [one["matchLabels"] for one in selectors] == [labels] * len(selectors)
    assert the(folder, "Service")["spec"]["selector"] == labels
    monitored = the(folder, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= the(folder, "Service")["metadata"]["labels"].items()
    job = the(folder, "Service")["metadata"]["name"]  # the Prometheus operator names the job after it
    assert f'job="{job}"' in (ROOT / "deploy" / "monitoring" / "alerts.yml").read_text()


def test_a_server_with_these_settings_answers_every_probe_and_has_the_metrics_that_scale_it(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    given = settings("overlays/cpu").model_dump(include={name[7:].lower() for name in environment("overlays/cpu")})
    with RunningServer(tmp_path, **{**given, "models": "tiny"}) as running:
        for folder in BUILDS:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert running.client.get(server(folder)[probe]["httpGet"]["path"]).status_code == 200, (folder, probe)
        assert running.classify(red_image(7)).json()["predictions"][0]["class_id"] == 7
        path = the("overlays/cpu", "ServiceMonitor")["spec"]["endpoints"][0]["path"]
        queries = [one["metadata"]["query"] for one in the("overlays/cpu", "ScaledObject")["spec"]["triggers"]]
        asked = {name for query in queries for name in re.findall(r"serving_\w+", query)}
        assert len(asked) == len(queries) == 2
        until(lambda: asked <= set(re.findall(r"^\w+", running.client.get(path).text, re.MULTILINE)))
