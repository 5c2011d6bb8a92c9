"""Prints the table of networks.md, a row for each network of the zoo but timm's.

    python docs/reference/networks.py [NAME...]

Those that are named, of timm's too, are also exported, with random weights, compared with PyTorch as
`export/to_onnx.py` does it, and measured: the CPU time of one thread of ONNX Runtime, which a busy machine changes less
than it changes the clock's.
"""

import sys
import time
from contextlib import redirect_stdout
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from export import backends, convert, recipe, samples
from models import networks, zoo
from models.architectures import TIMM
from models.manifest import Manifest

MEASURED_S = 2.0
"""CPU time, at least, in which a network is run again and again."""

ERRORS = {
    # Top-1 error in percent. arXiv:1512.03385: table 2 (10 crops) and table 6.
    "plain18": 27.94,
    "plain34": 28.54,
    "cifar_resnet20": 8.75,
    "cifar_resnet32": 7.51,
    "cifar_resnet44": 7.17,
    "cifar_resnet56": 6.97,
    "cifar_resnet110": 6.43,
    "cifar_resnet1202": 7.93,
    # arXiv:1603.05027: tables 3 and 5 (320x320, scale augmentation).
    "cifar_preresnet110": 6.37,
    "cifar_preresnet164": 5.46,
    "cifar_preresnet1001": 4.92,
    "preresnet152": 21.1,
    "preresnet200": 20.7,
}


def main() -> None:
    """Print each row as soon as it is known."""
    print("| network | parameters, millions | multiply-adds, billions | top-1, % | logit error | images/s a core |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, entry in zoo.NETWORKS.items():
        if name in sys.argv[1:] or not ("@" in name or name in TIMM):
            exported = _export(name) if name in sys.argv[1:] else ("", "")
            print("|", " | ".join([f"`{name}`", *_count(entry), _accuracy(entry), *exported]), "|", flush=True)


def _count(entry: zoo.Pretrained) -> tuple[str, str]:
    """Count parameters, and the multiply-adds of convolutions and matrix products for one image."""
    side = 32 if entry.architecture.startswith("cifar") else 224
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = networks.build(entry.architecture, len(entry.labels()))
        network(torch.empty(1, 3, side, side))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters / 1e6:.2f}", f"{counter.get_total_flops() / 2e9:.2f}"


def _accuracy(entry: zoo.Pretrained) -> str:
    """Say what is published: of the zoo's weights, otherwise in the paper."""
    if entry.accuracy:
        return f"{entry.accuracy.top1:.2f}"
    return f"{100 - ERRORS[entry.name]:.2f} (paper)" if entry.name in ERRORS else ""


def _export(name: str) -> tuple[str, str]:
    """Export the network: the largest error of a logit, as a share of the largest logit, and its speed."""
    with redirect_stdout(sys.stderr):
        made, content = convert.to_onnx(recipe.plan(name, random=True), name, None, samples.PHOTOS)
    error = f"{made.parity.max_logit_error:.0e}" if made.parity else ""
    return error, f"{float(f'{_images_per_s(made, content):.3g}'):g}"


def _images_per_s(made: Manifest, content: bytes) -> float:
    backend = backends.load(made, content, threads=1)
    images = list(np.random.default_rng(0).integers(0, 256, (1, *made.input_shape), np.uint8))
    backend.run(images)
    taken_s: list[float] = []
    while sum(taken_s) < MEASURED_S or len(taken_s) < 5:
        started_s = time.process_time()
        backend.run(images)
        taken_s.append(time.process_time() - started_s)
    return 1 / median(taken_s)


if __name__ == "__main__":
    main()
