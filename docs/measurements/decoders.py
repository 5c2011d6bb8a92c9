"""Photos decoded by Pillow and by nvImageCodec (the setting `decoder`); prints the tables of decoders.md.

    python docs/measurements/decoders.py nvimagecodec PHOTOS --repository model_repository --model efficientnet_lite0

Without a GPU, `nvimagecodec-cpu` shows the answers. Both are measured in turns, so that noise hits both alike.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from loadtest import photos
from models.manifest import Preprocessing
from server import repository
from server.engine.loading import load
from server.images.decode import decode
from server.images.jpeg import JpegDecoder
from server.images.nvimagecodec import NvImageCodec
from server.settings import Settings

CALLERS, ROUNDS, LEAST_S, BATCH = (1, 4, 16, 64), 5, 2.0, 8
Pixels = NDArray[np.uint8]


def main() -> None:
    """Measure answers and speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", choices=("nvimagecodec", "nvimagecodec-cpu"))
    parser.add_argument("photos", type=Path)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="efficientnet_lite0")
    asked = parser.parse_args()
    images = [path.read_bytes() for path in photos.find(asked.photos)]
    outcomes: list[str] = []
    codec = NvImageCodec("cuda" if asked.decoder == "nvimagecodec" else "cpu", 4, outcomes.append)
    decoders: dict[str, JpegDecoder | None] = {"Pillow": None, asked.decoder: codec}
    _answers(asked.repository, asked.model, images, codec)
    print(f"\n{len(images)} photos, of which {asked.decoder} left {len(images) - outcomes.count('done')} to Pillow\n")
    _speed(images, decoders)


def _decoded(data: bytes, preprocessing: Preprocessing, decoder: JpegDecoder | None) -> Pixels:
    out = np.empty((*preprocessing.crop, 3), np.uint8)
    decode(data, preprocessing, [out], max_pixels=2**26, jpeg_decoder=decoder)
    return out


def _answers(folder: Path, name: str, images: Sequence[bytes], codec: JpegDecoder) -> None:
    """Compare the decoded photos, and a network's answers to them."""
    settings = Settings(max_batch=BATCH)
    (model,) = repository.scan(folder, (name,), name).models.values()
    backend = load(folder, model, settings).backend
    best: dict[bool, list[int]] = {True: [], False: []}
    means, largest = [], 0
    for at in range(0, len(images), BATCH):
        both = [
            [_decoded(data, model.manifest.preprocessing, decoder) for data in images[at : at + BATCH]]
            for decoder in (None, codec)
        ]
        for exact, found in zip(*both, strict=True):
            apart = np.abs(exact.astype(int) - found)
            means.append(apart.mean())
            largest = max(largest, int(apart.max()))
        for pixels, mine in zip(both, (True, False), strict=True):
            best[mine] += backend.run(pixels).indices[:, 0].tolist()
    same = sum(left == right for left, right in zip(*best.values(), strict=True))
    print("| photos | mean difference of a value, of 255 | largest | same best class |\n| --- | --- | --- | --- |")
    print(f"| {len(images)} | {np.mean(means):.3f} | {largest} | {same} ({same / len(images):.2%}) |")


def _speed(images: Sequence[bytes], decoders: dict[str, JpegDecoder | None]) -> None:
    """Images a second, and CPU time for an image, by the number of calling threads."""
    preprocessing = Preprocessing(resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    print("| threads that call | decoder | images/s | CPU-ms an image |\n| --- | --- | --- | --- |")
    for callers in CALLERS:
        with ThreadPoolExecutor(callers) as pool:
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
            for _ in range(ROUNDS):
                for name, decoder in decoders.items():
                    call: Callable[[bytes], Pixels] = partial(_decoded, preprocessing=preprocessing, decoder=decoder)
                    rates[name].append(_rate(pool, call, list(islice(cycle(images), 8 * callers))))
        for name, measured in rates.items():
            images_per_s, cpu_ms = (median(column) for column in zip(*measured, strict=True))
            print(f"| {callers} | {name} | {images_per_s:,.0f} | {cpu_ms:.2f} |", flush=True)


def _rate(pool: ThreadPoolExecutor, call: Callable[[bytes], Pixels], images: Sequence[bytes]) -> tuple[float, float]:
    done, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall_s < LEAST_S:
        done += len(list(pool.map(call, images)))
    return done / (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s) / done


if __name__ == "__main__":
    main()
