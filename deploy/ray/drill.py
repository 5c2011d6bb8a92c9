"""Tests a Ray cluster of several nodes on this machine, and compares it with the plain server; prints JSON.

`python -m deploy.ray.drill REPOSITORY PHOTO [PHOTO ...]`, where Ray is installed: make ray-test
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.util.state
from ray import serve
from ray.cluster_utils import Cluster

from deploy.ray.app import Classifier, Options
from resnet_serving_client.clients import Client
from resnet_serving_client.errors import ClientError

PATIENCE_S = 120.0
ROOT = Path(__file__).parents[2]
PORT = 18431
URL = f"http://127.0.0.1:{PORT}"
REQUESTS = 100
ROUNDS = 3
CLIENTS = 8
APP, DEPLOYMENT = "resnet-serving", "Classifier"


def main() -> None:
    """Run all tests, with progress on standard error."""
    repository, photos = sys.argv[1], [Path(path).read_bytes() for path in sys.argv[2:]]
    found: dict[str, Any] = {}
    with cluster_of(nodes=3) as (cluster, nodes):
        deploy(repository, replicas=1, most=1)
        with plain_server(repository) as url:
            pairs = list(zip(answers(URL, photos), answers(url, photos), strict=True))
            rounds = [(speed(url, photos), speed(URL, photos)) for _ in range(ROUNDS)]
        found["answers_equal"] = all(got == expected for (got, _), (expected, _) in pairs)
        found["largest_difference"] = max(
            abs(a - b) for (_, got), (_, expected) in pairs for a, b in zip(got, expected, strict=True)
        )
        found["plain"], found["ray"] = ([each[place] for each in rounds] for place in (0, 1))
        deploy(repository, replicas=2, most=2)
        found["node_killed"] = under_load(photos, lambda: kill_a_node(cluster, nodes))
        deploy(repository, replicas=2, most=2, settings={"max_batch": 4})
        found["rolling_update"] = under_load(
            photos, lambda: deploy(repository, replicas=2, most=2, settings={"max_batch": 2})
        )
        deploy(repository, replicas=1, most=2)
        found["scaled_up"] = under_load(photos, lambda: until(lambda: running() == 2))
        started_s = time.monotonic()
        until(lambda: running() == 1)
        found["scaled_down_after_s"] = round(time.monotonic() - started_s, 1)
    print(json.dumps(found, indent=1))


@contextmanager
def plain_server(repository: str) -> Generator[str]:
    """The server as it is, with as many threads as one replica has."""
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", repository]
    command += ["--inference-threads", "1", "--decode-threads", "1"]
    with TemporaryDirectory() as folder:
        ready = Path(folder, "ready.json")
        process = subprocess.Popen([*command, "--ready-file", str(ready)], cwd=ROOT)  # noqa: S603
        try:
            until(ready.exists)
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            process.wait()


@contextmanager
def cluster_of(nodes: int) -> Generator[tuple[Cluster, list[Any]]]:
    """A head without CPUs, for the proxy and the controller, and nodes of one CPU for the replicas."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    workers = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(nodes)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": PORT},
        logging_config={"enable_access_log": False},
    )
    try:
        yield cluster, workers
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def deploy(repository: str, *, replicas: int, most: int, settings: dict[str, Any] | None = None) -> None:
    """Deploy as serve.yaml does, but with shorter delays."""
    scaling = {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": 2}
    scaling |= {"upscale_delay_s": 2, "downscale_delay_s": 2, "look_back_period_s": 4, "metrics_interval_s": 1}
    options = Options(settings={"repository": repository, **(settings or {})})
    bound = Classifier.options(  # type: ignore[attr-defined]
        autoscaling_config=scaling,
        max_ongoing_requests=64,
        graceful_shutdown_timeout_s=30,
        health_check_period_s=2,
        health_check_timeout_s=4,
        ray_actor_options={"num_cpus": 1},
    ).bind(options)
    serve.run(bound, name=APP, route_prefix="/")
    until(lambda: running() == replicas)
    say(f"{replicas} replicas are running")


def running() -> int:
    """The number of running replicas; -1 while any is in another state."""
    states = serve.status().applications[APP].deployments[DEPLOYMENT].replica_states
    return states.get("RUNNING", 0) if set(states) <= {"RUNNING"} else -1


def kill_a_node(cluster: Cluster, nodes: list[Any]) -> None:
    """One that has a replica, without a word to anybody; the spare one takes its place."""
    victim = next(node for node in nodes if node.node_id in nodes_of_replicas())
    nodes.remove(victim)
    say("killing a node")
    cluster.remove_node(victim, allow_graceful=False)
    until(lambda: running() == 2 and len(nodes_of_replicas() - {victim.node_id}) == 2)


def nodes_of_replicas() -> set[str]:
    """Ids of the nodes that have a living replica."""
    actors = ray.util.state.list_actors(filters=[("state", "=", "ALIVE")])
    return {actor["node_id"] for actor in actors if "ServeReplica" in actor["class_name"]}


def answers(url: str, photos: list[bytes]) -> list[tuple[list[int], list[float]]]:
    """Classes and probabilities of each photo."""
    with Client(url) as asked:
        found = [asked.classify(photo).predictions for photo in photos]
    return [([one.class_id for one in each], [one.probability for one in each]) for each in found]


def speed(url: str, photos: list[bytes]) -> dict[str, float]:
    """Milliseconds of lone requests, their part outside the routes, and requests a second of many clients."""
    with Client(url) as asked:
        lone, inside = [], []
        for turn in range(REQUESTS):
            started_s = time.monotonic()
            answer = asked.classify(photos[turn % len(photos)])
            lone.append((time.monotonic() - started_s) * 1e3)
            inside.append(answer.timings_ms.total)
        with ThreadPoolExecutor(CLIENTS) as pool:
            started_s = time.monotonic()
            list(pool.map(lambda turn: asked.classify(photos[turn % len(photos)]), range(2 * REQUESTS)))
            rate = 2 * REQUESTS / (time.monotonic() - started_s)
    outside = [whole - part for whole, part in zip(lone, inside, strict=True)]
    found = {"median_ms": statistics.median(lone), "outside_ms": statistics.median(outside), "per_second": rate}
    return {name: round(value, 2) for name, value in found.items()}


def under_load(photos: list[bytes], happening: Callable[[], None]) -> dict[str, float]:
    """Send requests while `happening` runs, and count their outcomes; `lost` ones failed despite retries."""
    over = threading.Event()
    answered, tried_again, lost, slowest_s = 0, 0, 0, 0.0
    lock = threading.Lock()

    def ask(number: int) -> None:
        nonlocal answered, tried_again, lost, slowest_s
        with Client(URL, deadline_s=60) as asked:
            pause = asked_again(asked)
            while not over.is_set():
                started_s = time.monotonic()
                try:
                    asked.classify(photos[number % len(photos)])
                    ok = True
                except ClientError as error:
                    say(f"lost: {error}")
                    ok = False
                with lock:
                    answered, lost = answered + ok, lost + (not ok)
                    slowest_s = max(slowest_s, time.monotonic() - started_s)
            with lock:
                tried_again += pause[0]

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            until(lambda: answered > CLIENTS)
            started_s = time.monotonic()
            happening()
            took_s = time.monotonic() - started_s
            enough = answered + 20 * CLIENTS
            until(lambda: answered > enough)
        finally:
            over.set()
        for each in clients:
            each.result()
    return {
        "answered": answered,
        "tried_again": tried_again,
        "lost": lost,
        "slowest_s": round(slowest_s, 2),
        "took_s": round(took_s, 1),
    }


def asked_again(client: Client) -> list[int]:
    """A count of answers other than 200, kept by a hook on the client's connections."""
    count = [0]

    def look(response: Any) -> None:
        count[0] += response.status_code != 200

    client._http.event_hooks["response"].append(look)
    return count


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds.

    Raises:
        TimeoutError: it does not within PATIENCE_S.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"never: {condition}")
        time.sleep(0.1)


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.monotonic():.0f} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
