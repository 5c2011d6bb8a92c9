"""The parity gate: a graph enters the repository only if it computes what PyTorch computes."""

from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import nn

from export.reference import reference_logits
from export.runtimes import Outputs, Run
from models.errors import ExpectedError
from models.manifest import INPUT_NAME, OUTPUT_NAMES, Parity, Preprocessing

BATCH_SIZES = (1, 3, 8)
"""One, because exporters take it for a constant; odd; and larger than the example the exporter traced."""

MAX_LOGIT_ERROR = 1e-4
"""Allowed |logit - PyTorch's| as a share of the batch's largest |logit|.

Both compute in float32 (epsilon 6e-8) and differ in the order of their sums and in batch norm folded into
convolutions: measured 3e-7 to 3e-6 over the zoo. One filter of one layer that is off by 0.1 % shows as 3e-4 or more.
"""
MAX_PROBABILITY_ERROR = 1e-3
"""Allowed absolute error of a probability: softmax magnifies the logits' relative error by their size, about 20."""


class ParityError(ExpectedError):
    """The exported graph does not compute what PyTorch computes."""


def check(
    model: bytes, network: nn.Module, preprocessing: Preprocessing, photos: NDArray[np.uint8], seed: int = 0
) -> Parity:
    """Compare an exported ONNX graph with its network on random pixels and on real photos uint8[M, H, W, 3].

    Raises:
        ParityError: as `compare`.
    """

    def load() -> Run:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda images: Outputs(*session.run(OUTPUT_NAMES, {INPUT_NAME: images}))

    return compare(load, network, preprocessing, photos, seed=seed)


def compare(
    load: Callable[[], Run],
    network: nn.Module,
    preprocessing: Preprocessing,
    photos: NDArray[np.uint8],
    *,
    allowed: float = MAX_LOGIT_ERROR,
    seed: int = 0,
) -> Parity:
    """Compare an exported graph in whatever format with its network.

    Args:
        load: makes it ready to run.
        network: in FP32.
        preprocessing: of the network.
        photos: uint8[M, H, W, 3], compared beside random pixels.
        allowed: |logit - PyTorch's| as a share of the batch's largest |logit|.
        seed: of the random pixels.

    Raises:
        ParityError: they differ by more than the tolerances, or the graph does not run at each batch size.
    """
    batches = list(draw_batches(photos, np.random.default_rng(seed)))
    try:
        run = load()
        outputs = [run(images) for images in batches]
    except Exception as failure:  # runtimes' errors have no common class
        raise ParityError(f"the exported graph does not run: {str(failure).splitlines()[0]}") from failure
    expected = [reference_logits(network, images, preprocessing) for images in batches]
    results = list(zip(outputs, expected, strict=True))
    error = float(np.max([np.abs(logits - truth).max() / np.abs(truth).max() for (_, _, logits), truth in results]))
    if not error <= allowed:  # so that NaN fails
        raise ParityError(
            f"the exported graph's logits differ from PyTorch's by {error:.1e} of the largest,"
            f" {allowed:.0e} is allowed: nothing was added to the repository"
        )
    for (probabilities, indices, logits), truth in results:
        # In lower precision, what is ranked are its own logits, whose error was just found to be allowed.
        _check_ranking(probabilities, indices, truth if allowed <= MAX_LOGIT_ERROR else logits)
    return Parity(
        batch_sizes=BATCH_SIZES,
        images=sum(map(len, batches)),
        real_images=len(photos),
        max_logit_error=error,
        max_logit_error_allowed=allowed,
        top1_agreement=float(
            np.mean(np.concatenate([indices[:, 0] == truth.argmax(1) for (_, indices, _), truth in results]))
        ),
    )


def draw_batches(photos: NDArray[np.uint8], random: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Yield random and real batches of each size, then the photos that were in none of them.

    Few photos are repeated to fill a batch.
    """
    for size in BATCH_SIZES:
        shape = (size, *photos.shape[1:])
        yield random.integers(0, 256, shape, np.uint8)
        yield np.resize(photos, shape)
    largest = max(BATCH_SIZES)
    for start in range(largest, len(photos), largest):
        yield photos[start : start + largest]


def _check_ranking(
    probabilities: NDArray[np.float32], indices: NDArray[np.int32], expected_logits: NDArray[np.float32]
) -> None:
    """Check that the graph ranks classes by their probability, and gives PyTorch's probability to each."""
    powers = np.exp(expected_logits.astype(np.float64) - expected_logits.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    ranked = -np.sort(-expected, axis=1)[:, : indices.shape[1]]
    named = np.take_along_axis(expected, indices.astype(np.int64), axis=1)
    error = max(np.abs(probabilities - ranked).max(), np.abs(probabilities - named).max())
    if not error <= MAX_PROBABILITY_ERROR or (np.diff(probabilities, axis=1) > 0).any():
        raise ParityError(
            f"the exported graph ranks classes otherwise than PyTorch: probabilities differ by {error:.1e}"
        )
