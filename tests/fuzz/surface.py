"""Fuzzing of the HTTP surface: `python -m tests.fuzz.surface --requests 200000`.

Mutated requests go over raw sockets to a real server. No answer may be 500, no connection may stay open for ever, no
process may end or grow, and in the end the server must still classify a red image. Whatever goes wrong is printed with
the bytes that were sent; the same seed sends the same bytes again.
"""

import argparse
import asyncio
import gzip
import json
import random
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from tests import tiny
from tests.server.running import RunningServer, red_image, until

CONNECTIONS = 200
TIMEOUT_MS = 300
"""For heads and bodies that never end, which many mutations cause."""
HANG_S = 30.0
ALLOWED_GROWTH_BYTES = 24 * 2**20
WARM_UP = 0.2
_TOKENS = (
    *(b"\r\n", b"\r\n\r\n", b":", b" ", b"\0", b"\xff", b"%00", b"%", b"../", b"chunked", b"gzip", b"deflate"),
    *(b"identity", b"-1", b"0", b"1e9", b"18446744073709551616", b"Content-Length: 5\r\n", b"nan", b"inf"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n", b"HTTP/0.9"),
    *(b"Connection: close\r\n", b"X-Request-Timeout: 0.001\r\n", b"?top_k=100&crops=10", b"[" * 500, b'{"a":' * 500),
)


def requests() -> list[bytes]:
    """One valid request of every kind."""
    image = red_image(77)
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + image + b"\r\n--b--\r\n"
    pixels = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}
    tensors = json.dumps({"inputs": [pixels]}).encode()
    raw = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 3072}}
    head = json.dumps({"inputs": [raw], "parameters": {"binary_data_output": True}}).encode()
    binary = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (image[:40], image[40:])) + b"0\r\n\r\n"
    gets = ("/models", "/livez", "/readyz", "/", "/openapi.json", "/v2", "/v2/models/tiny", "/v2/models/tiny/stats")
    return [
        _post(b"/classify", image),
        _post(b"/classify?top_k=3&model=tiny&version=1&crops=10&priority=high", image),
        _post(b"/classify", form, b"Content-Type: multipart/form-data; boundary=b\r\n"),
        _post(b"/classify", gzip.compress(image), b"Content-Encoding: gzip\r\nX-Request-ID: mine\r\n"),
        b"POST /classify HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        _post(b"/classify", image) + _post(b"/classify", image),
        _post(b"/v2/models/tiny/infer", tensors),
        _post(b"/v2/models/tiny/infer", head + bytes(3072), binary),
        _post(b"/v2/repository/index", b"{}"),
        *(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode() for path in gets),
    ]


def _post(target: bytes, body: bytes, fields: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: here\r\n%bContent-Length: %d\r\n\r\n%b" % (target, fields, len(body), body)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Up to four changes, mostly one; a third of them in the head, whose mistakes hide those in the body."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        end = len(data) if chance.random() < 0.7 else data.find(b"\r\n\r\n") + 4
        at = chance.randrange(max(1, end))
        match chance.randrange(7):
            case 0:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[at + chance.randint(1, 40) :]
            case 2:
                data = data[:at] + data[at : at + chance.randint(1, 40)] * chance.randint(1, 9) + data[at:]
            case 3:
                data = data[:at] + chance.choice(_TOKENS) + data[at:]
            case 4:
                data = data[:at] + chance.choice(_TOKENS) + data[at + chance.randint(1, 12) :]
            case 5:
                data = data[: max(1, at)]
            case 6:
                other = chance.choice(others)
                data = data[:at] + other[chance.randrange(len(other)) :]
    return data


async def send(server: RunningServer, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Send `count` requests; returns their outcomes, and the faults among them."""
    chance, seeds = random.Random(seed), requests()
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    turns = iter(range(count))

    async def client() -> None:
        for _ in turns:
            data = mutated(chance.choice(seeds), seeds, chance)
            try:
                outcome = await asyncio.wait_for(_answer(server.url, data), HANG_S)
            except TimeoutError:
                outcome = "hangs"
            outcomes[outcome] += 1
            if outcome in ("hangs", "500", "unreadable") and len(faults) < 10:
                faults.append(f"{outcome}: {data!r}")

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return outcomes, faults


async def _answer(url: str, data: bytes) -> str:
    """The first answer's status, or how the connection ended without one."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE)
        if status is None:
            return "unreadable"
        await reader.readexactly(int(length[1]) if length and not data.startswith(b"HEAD") else 0)
        return status[1].decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return "closed"
    finally:
        writer.close()


def run(count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Fuzz a server of our own: how the requests ended, and everything that is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.write(Path(folder))
        limits = {"header_timeout_ms": TIMEOUT_MS, "body_timeout_ms": TIMEOUT_MS, "max_body_bytes": 2**20}
        with RunningServer(Path(folder), **limits) as server:
            pids = {process.pid for process in server.tree()}
            outcomes, faults = uvloop.run(send(server, int(WARM_UP * count), seed))
            before = _private_bytes(server)
            more, more_faults = uvloop.run(send(server, count, seed + 1))
            until(lambda: server.metric("serving_pending_requests") == 0)
            grown = _private_bytes(server) - before
            faults += more_faults
            if grown > ALLOWED_GROWTH_BYTES:
                faults.append(f"{grown / 2**20:.1f} MiB more after {count} requests")
            if {process.pid for process in server.tree()} != pids:
                faults.append("a process has ended")
            if server.classify(red_image(9)).json()["predictions"][0]["class_id"] != 9:
                faults.append("red is no longer red")
            faults += [line for line in server.lines if re.search("Traceback|ERROR|has ended", line)][:10]
    return outcomes + more, faults


def _private_bytes(server: RunningServer) -> int:
    return sum(process.memory_full_info().uss for process in server.tree())


def main() -> int:
    """Print how requests ended; 1: something is wrong."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.surface", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes, faults = run(options.requests, options.seed)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
