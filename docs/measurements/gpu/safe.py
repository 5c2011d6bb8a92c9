"""Safe: no answer is lost when an engine is killed, a GPU has no memory left, or a device is lost.

The steps on a CPU are the same. But memory does not run out there, and an image that would lose the device only fails
its batch.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from docs.measurements.gpu.part import Context, context
from docs.measurements.gpu.serving import Readiness, Server, serving, watched
from tests import tiny

CLIENTS = 32
LEFT_MIB = 4096
"""Of the GPU's memory, for an engine whose largest batches need several times that."""
HUGE_BATCH = 1024
POISONED = 255

_BALLAST = """
import sys, torch
left = int(sys.argv[1]) * 2**20
if torch.cuda.is_available():
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - left), dtype=torch.uint8, device="cuda")
else:
    held = torch.empty(2**20, dtype=torch.uint8)
print("held", held.numel(), flush=True)
sys.stdin.read()
"""


def main() -> int:
    """Do all; 0: nothing was lost."""
    ctx = context(("all",))
    ctx.result.check("killed engine", lambda: killed_engine(ctx))
    ctx.result.check("lost device", lambda: lost_device(ctx))
    ctx.result.check("no memory", lambda: no_memory(ctx))
    return ctx.result.exit_code()


def killed_engine(ctx: Context) -> str:
    """Kill the engine under load: each answer is right, and `/readyz` says 503 until the next engine is ready."""
    repository = _tiny(ctx)
    images = [red(value) for value in range(256)]
    flags = {"models": "tiny", "timeout_ms": 120_000, "http_workers": 2, "stall_timeout_ms": 120_000}
    with serving(repository, flags, patience_s=ctx.sizes.patience_s) as server:
        back_s: list[float] = []
        with watched(server.url) as readiness, _load(server.url, images) as answers:
            for _ in range(ctx.sizes.kills):
                _await_more(ctx, answers)
                back_s.append(_kill_engine(server))
            _await_more(ctx, answers)
        wrong = [answer for answer in answers if answer[1] != answer[0]]
    ctx.result.put("killed_engine", {"answers": len(answers), "back_after_s": back_s, "readyz": readiness.seen})
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} answers were wrong: {wrong[:3]}")
    _had_gaps(readiness, ctx.sizes.kills)
    return f"{len(answers)} answers, all right; ready again after {', '.join(f'{s:.2f} s' for s in back_s)}"


def lost_device(ctx: Context) -> str:
    """Send an image that loses the device: the server gives it up, and the next engine answers those beside it.

    On a CPU the error ends no process: that image gets it as its answer, and all others get theirs.
    """
    repository = _tiny(ctx)
    poison, images = red(7, green=POISONED), [red(value) for value in range(16)]
    flags: dict[str, object] = {
        "models": "poisonous",
        "max_batch": 8,
        "http_workers": 1,
        "timeout_ms": 120_000,
        "max_wait_ms": 200,
        "stall_timeout_ms": 120_000,
    }
    with serving(repository, flags, patience_s=ctx.sizes.patience_s) as server, httpx.Client(timeout=120) as client:
        first = server.engine()
        with watched(server.url) as readiness, ThreadPoolExecutor(CLIENTS) as pool:
            url = f"{server.url}/classify"
            wanted = [*images[:8], poison, *images[8:]] if ctx.on_gpu else [poison]
            answers = list(pool.map(lambda image: client.post(url, content=image), wanted))
            answers += list(pool.map(lambda image: client.post(url, content=image), images))
        engines = sum(role == "engine" for role in server.pids().values())
        changed = server.engine() != first
    codes = [answer.json().get("code", "answered") for answer in answers]
    found = {"codes": {code: codes.count(code) for code in codes}, "engines": engines, "readyz": readiness.seen}
    ctx.result.put("lost_device", found)
    given_up = "engine_crashed" if ctx.on_gpu else "inference_failed"
    if codes.count(given_up) != 1 or codes.count("answered") != len(codes) - 1:
        raise RuntimeError(f"one image is to be {given_up} and all others answered: {found}")
    wrong = [
        a.text
        for a, red_ in zip(answers[-16:], range(16), strict=True)
        if a.json()["predictions"][0]["class_id"] != red_
    ]
    if wrong:
        raise RuntimeError(f"wrong classes: {wrong[:2]}")
    if changed != ctx.on_gpu:
        raise RuntimeError(f"the engine {'changed' if changed else 'is the same'}: {found}")
    if ctx.on_gpu:
        _had_gaps(readiness, 1)
    return str(found)


def no_memory(ctx: Context) -> str:
    """Leave little memory: the server gives up its largest batches, and answers."""
    flags: dict[str, object] = {"models": f"{ctx.sizes.network}-torch", "http_workers": 2, "stall_timeout_ms": 120_000}
    flags["max_batch"] = HUGE_BATCH if ctx.on_gpu else ctx.sizes.max_batch
    photos = [path.read_bytes() for path in ctx.photos()[:32]]
    with (
        _ballast() as held,
        serving(ctx.repository, flags, patience_s=ctx.sizes.patience_s) as server,
        httpx.Client(timeout=120) as client,
    ):
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda photo: client.post(f"{server.url}/classify", content=photo), photos))
        told = [line for line in server.lines if "runs batches of up to" in line]
    statuses = [answer.status_code for answer in answers]
    ctx.result.put("no_memory", {"held_bytes": held, "log": told, "statuses": {s: statuses.count(s) for s in statuses}})
    if set(statuses) != {200}:
        raise RuntimeError(f"not all are answered: {statuses}")
    if ctx.on_gpu and not told:
        raise RuntimeError(f"memory did not run out with {LEFT_MIB} MiB left: nothing was shown")
    return told[0] if told else f"{len(answers)} answers; memory does not run out on a CPU"


def red(value: int, green: int = 0) -> bytes:
    """An image that `tests.tiny` puts into class `value`: PNG, so that the value arrives exactly."""
    stream = BytesIO()
    Image.new("RGB", (32, 32), (value, green, 0)).save(stream, "PNG")
    return stream.getvalue()


def _tiny(ctx: Context) -> Path:
    repository = ctx.folder / "tiny_repository"
    if not repository.exists():
        tiny.write_torch(repository)
        tiny.write_torch(repository, "poisonous", poisonous=True)
    return repository


def _kill_engine(server: Server) -> float:
    """Kill the engine; returns the seconds until the next one is ready."""
    start, began_s = len(server.lines), time.monotonic()
    os.kill(server.engine(), signal.SIGKILL)
    server.wait_for(r"(engine) is ready", start)
    return round(time.monotonic() - began_s, 3)


@contextmanager
def _load(url: str, images: Sequence[bytes]) -> Generator[list[tuple[int, Any]]]:
    """Send from many clients while open; yields the number of each image that was sent, with its class or the error."""
    answers: list[tuple[int, Any]] = []
    end = threading.Event()

    def send(client_number: int) -> None:
        at = client_number
        with httpx.Client(timeout=120) as client:
            while not end.is_set():
                answer = client.post(f"{url}/classify", content=images[at])
                right = answer.status_code == 200
                answers.append((at, answer.json()["predictions"][0]["class_id"] if right else answer.text))
                at = (at + CLIENTS) % len(images)

    with ThreadPoolExecutor(CLIENTS) as pool:
        sending = [pool.submit(send, number) for number in range(CLIENTS)]
        try:
            yield answers
        finally:
            end.set()
        for one in sending:
            one.result()  # raises if a connection broke, which is a lost request


def _await_more(ctx: Context, answers: Sequence[object], count: int = 100) -> None:
    """Wait until there are so many more."""
    enough, give_up_s = len(answers) + count, time.monotonic() + ctx.sizes.patience_s
    while len(answers) < enough:
        if time.monotonic() > give_up_s:
            raise TimeoutError("no more answers")
        time.sleep(0.01)


def _had_gaps(readiness: Readiness, count: int) -> None:
    """Raise unless `/readyz` was 503 at least `count` times, and 200 at the end."""
    if readiness.seen.count(503) < count or readiness.seen[-1] != 200:
        raise RuntimeError(f"/readyz was {readiness.seen}, where {count} times 503 was due, and 200 at the end")


@contextmanager
def _ballast() -> Generator[int]:
    """Hold all of the GPU's memory but LEFT_MIB, in another process, while open; yields how many bytes."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _BALLAST, str(LEFT_MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("held"):
                raise RuntimeError("the process that is to hold the memory does not")
            yield int(line.split()[1])
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
