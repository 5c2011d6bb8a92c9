"""Memory: how much a model takes, and that it does not grow with the number of requests."""

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from models import manifest
from models.manifest import Manifest, ModelFile
from tests import tiny
from tests.server.running import RunningServer, red_image, until

WARM_UP, REQUESTS = 8_000, 10_000
ROUNDS = 3
"""A leak grows in every round; arenas that reach their size late, on a busy machine, grow in only one."""
CONNECTIONS = 16
ALLOWED_GROWTH_BYTES = 6 * 2**20
"""For all processes together: as much as a leak of 600 bytes for each request."""


BALLAST_BYTES = 160 * 2**20


def write_heavy(repository: Path) -> None:
    """Write the tiny model with parameters of BALLAST_BYTES, of which it looks one up for each batch."""
    found = tiny.write(repository, "heavy")
    folder = repository / "heavy" / "1"
    model = onnx.load(folder / found.file.name)
    graph = model.graph
    (subtraction,) = (node for node in graph.node if node.op_type == "Sub")
    subtraction.output[0] = "light"
    lookups = [
        helper.make_node("Shape", [manifest.INPUT_NAME], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["size"]),
        helper.make_node("Gather", ["ballast", "size"], ["nothing"]),
        helper.make_node("Add", ["light", "nothing"], [manifest.LOGITS_NAME]),
    ]
    after = list(graph.node).index(subtraction) + 1
    nodes = [*graph.node[:after], *lookups, *graph.node[after:]]
    del graph.node[:]
    graph.node.extend(nodes)
    ballast = np.zeros(BALLAST_BYTES // 4, np.float32)
    graph.initializer.extend(
        [numpy_helper.from_array(ballast, "ballast"), numpy_helper.from_array(np.array(0, np.int64), "first")]
    )
    content = model.SerializeToString()
    file = ModelFile(name=found.file.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    (folder / file.name).write_bytes(content)
    (folder / manifest.FILE_NAME).write_text(Manifest(**dict(found) | {"file": file}).model_dump_json())


@pytest.mark.parametrize(("instances", "copies"), [(1, 1), (2, 2), (4, 2)])
def test_an_engine_holds_a_models_parameters_once_or_for_batches_at_one_time_twice(
    tmp_path: Path, instances: int, copies: int
) -> None:
    tiny.write(tmp_path / "light")
    write_heavy(tmp_path / "heavy")
    held = []
    for name in ("light", "heavy"):
        with RunningServer(tmp_path / name, instances=instances, inference_threads=4) as server:
            held.append(psutil.Process(server.pid("engine")).memory_full_info().uss)
    assert held[1] - held[0] < 1.2 * copies * BALLAST_BYTES


def resident_bytes(server: RunningServer) -> int:
    """Private memory of all processes: shared memory, such as the slots, would be counted several times."""
    return sum(process.memory_full_info().uss for process in server.tree())


async def post_all(url: str, bodies: list[bytes], count: int) -> dict[int, int]:
    """Post `bodies` in turn, `count` requests in all, over keep-alive connections; returns how many got each status.

    Every 50th time the client disconnects in the middle of a request, without reading the answer.
    """
    address = urlsplit(url)
    statuses: dict[int, int] = {}
    turns = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for turn in turns:
            body = bodies[turn % len(bodies)]
            writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            if turn % 50 == 0:
                writer.close()
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                continue
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            status = int(head[9:12])
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return statuses


@pytest.mark.slow
def test_memory_is_flat_over_many_requests_good_and_bad(tmp_path: Path) -> None:
    tiny.write(tmp_path, crop=224)
    photos = sorted(Path("export/photos").glob("*.jpg"))
    bodies = (
        [red_image(n) for n in range(40)] + [p.read_bytes() for p in photos] + [b"not an image", red_image(1)[:-40]]
    )
    with RunningServer(tmp_path) as server:
        asyncio.run(post_all(server.url, bodies, WARM_UP))  # caches, pools and arenas reach their size
        grown: list[int] = []
        while len(grown) < ROUNDS and not (grown and grown[-1] < ALLOWED_GROWTH_BYTES):
            before = resident_bytes(server)
            statuses = asyncio.run(post_all(server.url, bodies, REQUESTS))
            until(lambda: server.metric("serving_pending_requests") == 0)
            grown.append(resident_bytes(server) - before)
            assert set(statuses) == {200, 415, 422}
            assert sum(statuses.values()) == REQUESTS * 49 // 50
    assert grown[-1] < ALLOWED_GROWTH_BYTES, f"{grown} bytes more after {REQUESTS} requests each"
