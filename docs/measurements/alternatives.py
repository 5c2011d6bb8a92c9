"""Compares the libraries and settings that the server uses with alternatives; prints the tables of alternatives.md.

    pip install simplejpeg==1.9.0 granian==2.8.7      # neither is used by the server
    python docs/measurements/alternatives.py decode ../shared/data/imagenet-sample
    python docs/measurements/alternatives.py onnx model_repository/resnet50/1/model.onnx
    python docs/measurements/alternatives.py http ../shared/data/imagenet-sample
    python docs/measurements/alternatives.py upload ../shared/data/imagenet-sample

Variants are measured in turns, so that noise hits all alike; CPU time is that of all threads and processes.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import onnxruntime as ort
import psutil
import simplejpeg
import uvloop
from numpy.typing import NDArray
from PIL import Image

from loadtest import loops, machine, photos, processes
from loadtest.connection import connect, request
from loadtest.loops import Photo, Target
from loadtest.responses import Answer
from loadtest.results import Figures
from models.manifest import INPUT_NAME, Preprocessing
from server.images.decode import decode
from server.images.preprocess import resample, windows

PREPROCESSING = Preprocessing(resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
PHOTOS, ROUNDS, BATCHES, CONNECTIONS, SECONDS = 50, 9, (1, 4, 8), 32, 4.0
PORT = 18765
PAUSE_S = 0.1
"""Pause before each call: threads of the previous one may still spin for a while."""
Pixels = NDArray[np.uint8]

APP = """
ANSWER = b'{"predictions": [' + b'{"class_id": 281, "label": "tabby", "probability": 0.5}, ' * 5 + b']}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]

async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})
"""
FASTAPI_APP = """
from fastapi import FastAPI, Request, Response, UploadFile

app = FastAPI()
ANSWER = b'{"predictions": [' + b'{"class_id": 281, "label": "tabby", "probability": 0.5}, ' * 5 + b']}'

@app.post("/stream")
async def stream(request: Request) -> Response:
    async for _ in request.stream():
        pass
    return Response(ANSWER, media_type="application/json")

@app.post("/body")
async def body(request: Request) -> Response:
    await request.body()
    return Response(ANSWER, media_type="application/json")

@app.post("/form")
async def form(file: UploadFile) -> Response:
    await file.read()
    return Response(ANSWER, media_type="application/json")
"""
UPLOADS = {"Request.stream()": "stream", "Request.body()": "body", "UploadFile, a form": "form"}
SERVERS = {
    "uvicorn, httptools, uvloop": "uvicorn --http httptools --loop uvloop --no-access-log --log-level warning",
    "uvicorn, h11, uvloop": "uvicorn --http h11 --loop uvloop --no-access-log --log-level warning",
    "uvicorn, httptools, asyncio": "uvicorn --http httptools --loop asyncio --no-access-log --log-level warning",
    "granian, uvloop": "granian --interface asginl --http 1 --loop uvloop --no-ws --log-level warning",
}


def main() -> None:
    """Measure one kind of alternatives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("decode", "onnx", "http", "upload"))
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    {"decode": _decoders, "onnx": _sessions, "http": _servers, "upload": _uploads}[asked.kind](asked.path)


def _photos(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())[:PHOTOS] if path.suffix.lower() in (".jpeg", ".jpg")]


def _in_turn(variants: Mapping[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Medians of wall and CPU milliseconds of a call."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, call in variants.items():
            time.sleep(PAUSE_S)
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            call()
            found[name].append((1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)))
    return {name: (median(wall for wall, _ in of), median(cpu for _, cpu in of)) for name, of in found.items()}


def _decoders(folder: Path) -> None:
    photos = _photos(folder)
    out = np.empty((*PREPROCESSING.crop, 3), np.uint8)

    def ours(data: bytes) -> Pixels:
        decode(data, PREPROCESSING, [out], max_pixels=2**26)
        return out

    def simple(data: bytes, *, fast: bool) -> Pixels:
        """Decode with simplejpeg, without orientation, other formats, limits and checks."""
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=fast, fastupsample=fast))
        window, *_ = windows(picture.size, PREPROCESSING)
        return np.asarray(resample(picture, window.box, window.size, PREPROCESSING.interpolation))

    def pillow_alone(data: bytes) -> Pixels:
        with mock.patch("server.images.preprocess.simd", None):
            return ours(data)

    variants: dict[str, Callable[[bytes], Pixels]] = {
        "Pillow and cykooz_resizer (the server's `decode`)": ours,
        "Pillow alone": pillow_alone,
        "simplejpeg": partial(simple, fast=False),
        "simplejpeg, fast DCT and upsampling": partial(simple, fast=True),
    }
    exact = [ours(data).astype(int) for data in photos]
    times = _in_turn(
        {name: partial(lambda call: [call(data) for data in photos], call) for name, call in variants.items()}
    )
    print("| decoder | CPU-ms an image | of ours | mean pixel difference |\n| --- | --- | --- | --- |")
    for name, call in variants.items():
        away = np.mean([np.abs(call(data) - pixels).mean() for data, pixels in zip(photos, exact, strict=True)])
        cpu_ms = times[name][1] / len(photos)
        print(f"| {name} | {cpu_ms:.2f} | {times[name][1] / next(iter(times.values()))[1]:.2f} | {away:.2f} |")


def _session(path: Path, **entries: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(entries.pop("threads", psutil.cpu_count() or 1))
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = entries.pop("arena", "1") == "1"
    options.add_session_config_entry("session.intra_op.allow_spinning", entries.pop("spinning", "0"))
    if optimised := entries.pop("optimised", None):
        options.optimized_model_filepath = optimised
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "layout": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }[entries.pop("level", "all")]
    options.log_severity_level = 3
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _sessions(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimised.onnx"
        _session(path, optimised=str(saved))
        starts = _in_turn({"as exported": lambda: _session(path), "saved": lambda: _session(saved, level="none")})
        print("| graph | ms to a session |\n| --- | --- |")
        print("".join(f"| {name} | {wall_ms:.0f} |\n" for name, (wall_ms, _) in starts.items()))
        sessions = {
            "no spinning": _session(path),
            "spinning": _session(path, spinning="1"),
            "one thread": _session(path, threads="1"),
            "spinning within a run": _session(path, spinning="1", **{"session.force_spinning_stop": "1"}),
            "spinning for 50 microseconds": _session(path, spinning="1", **{"session.intra_op.spin_duration_us": "50"}),
            "without the memory arena": _session(path, arena="0"),
            "without the layout for the CPU (NCHWc)": _session(path, level="layout"),
            "denormals as zero": _session(path, **{"session.set_denormal_as_zero": "1"}),
            "saved": _session(saved, level="none"),
        }
    print("| session | " + " | ".join(f"batch {size}: ms, CPU-ms an image" for size in BATCHES) + " |")
    print("| --- |" + " --- |" * len(BATCHES))
    rows: dict[str, list[str]] = {name: [] for name in sessions}
    for size in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), np.uint8)
        runs = {name: partial(session.run, None, {INPUT_NAME: images}) for name, session in sessions.items()}
        _in_turn(runs)  # warm
        for name, (wall_ms, cpu_ms) in _in_turn(runs).items():
            rows[name].append(f"{wall_ms / size:.1f}, {cpu_ms / size:.1f}")
    print("\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()))


def _servers(folder: Path) -> None:
    url = f"http://127.0.0.1:{PORT}/"
    sent = [Photo(request(url, photo), 0) for photo in _photos(folder)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SERVERS}
    for _ in range(3):
        for name, command in SERVERS.items():
            found[name].append(_serve(command.split(), APP, url, sent))
    _show("server", found)


def _uploads(folder: Path) -> None:
    images = _photos(folder)
    command = next(iter(SERVERS.values())).split()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in UPLOADS}
    for _ in range(3):
        for name, path in UPLOADS.items():
            url = f"http://127.0.0.1:{PORT}/{path}"
            kind = photos.FORM_TYPE if path == "form" else "image/jpeg"
            bodies = map(photos.form, images) if path == "form" else images
            sent = [Photo(request(url, body, {"Content-Type": kind}), 0) for body in bodies]
            found[name].append(_serve(command, FASTAPI_APP, url, sent))
    _show("FastAPI route", found)


def _show(what: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    print(f"| {what} | requests/s | CPU-ms a request |\n| --- | --- | --- |")
    for name, rounds in found.items():
        print(f"| {name} | {median(per_s for per_s, _ in rounds):.0f} | {median(ms for _, ms in rounds):.3f} |")


def _serve(command: Sequence[str], app: str, url: str, sent: list[Photo]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare.py").write_text(app)
        program = [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(PORT), "bare:app"]
        with subprocess.Popen(program, cwd=folder) as process:  # noqa: S603
            try:
                return uvloop.run(_load(psutil.Process(process.pid), url, sent))
            finally:
                process.terminate()


async def _load(process: psutil.Process, url: str, sent: list[Photo]) -> tuple[float, float]:
    def parse(status: int, body: bytes) -> Answer:
        return Answer("", 0, int(status == 200 and len(body) > 100))

    while process.status() != psutil.STATUS_ZOMBIE:
        try:
            async with connect(url) as connection:
                await connection.ask(sent[0].request)
            break
        except OSError:
            await asyncio.sleep(0.05)
    target = Target(url, parse=parse)
    window = await loops.closed_loop(
        target, sent, CONNECTIONS, 1, SECONDS, lambda: machine.read_meters(processes.tree(process))
    )
    figures = Figures.of(window)
    return figures.images_per_s, figures.server_cpu_ms or 0.0


if __name__ == "__main__":
    main()
