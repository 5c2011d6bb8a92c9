"""The parity gate: a file enters the repository only if the backend that will serve it computes what its original does.

The original is the network in PyTorch, for a file of lower precision by way of the FP32 file; for an import, it is the
unchanged file.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export import backends, comparison
from models.errors import ExpectedError, first_line
from models.manifest import Manifest, Parity
from server.engine.backends import Outputs, questions

BATCH_SIZES = (1, 3, 8)
"""One, which exporters take for a constant; an odd size; and one larger than the example that the exporter traced."""

PYTORCH = "PyTorch"
MAX_LOGIT_ERROR = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}
"""By precision, the allowed |logit - the original's| as a share of the batch's largest |logit|.

FP32: both compute in float32 (epsilon 6e-8) and differ in the order of their sums and in batch norm folded into
convolutions: measured 3e-7 to 3e-6 over the zoo. One filter of one layer that is off by 0.1 % shows as 3e-4 or more.

FP16 rounds to 11 bits (5e-4) after every layer: measured 3e-4 to 5e-4 on untrained networks from ResNet-18 to
ResNet-152, 7e-4 to 2e-3 on the trained CIFAR ones, 6e-3 on the trained EfficientNet-Lite0. An activation beyond 65504
becomes infinite, which no tolerance lets pass.

INT8 is for imported files: both compute with the same integers, and differ where a value lies between two of them.
"""
MAX_PROBABILITY_ERROR = 1e-3
"""Allowed absolute error of a probability: softmax magnifies the logits' relative error by their size, about 20."""


class Head(NamedTuple):
    """What turns the sums of a network's last layer into logits."""

    bias: NDArray[np.float32] | None = None
    """float32[num_classes]; None: there is none."""
    temperature: float = 1.0
    """The logits are divided by it."""


NO_HEAD = Head()


class Known(NamedTuple):
    """The original's answers to a batch."""

    logits: NDArray[np.float32]
    """float32[N, num_classes]"""
    features: NDArray[np.float32] | None = None
    """float32[N, C]: the input of its last layer; None: unknown."""


Truth = Callable[[NDArray[np.uint8]], Known]
"""Computes the original's answers to images uint8[N, H, W, 3]."""


class ParityError(ExpectedError):
    """A file does not compute what its original does."""


def check(
    draft: Manifest,
    content: bytes,
    truth: Truth,
    photos: NDArray[np.uint8],
    *,
    truth_error: float = 0,
    origin: str = PYTORCH,
    head: Head = NO_HEAD,
) -> Parity:
    """Compare a file, run by its backend of the server, with its original.

    Args:
        draft: names its backend and its precision, which decides the tolerance.
        content: of the file.
        truth: computes the original's answers.
        photos: uint8[M, H, W, 3], compared beside random pixels.
        truth_error: how far `truth` itself may be from the original, as a share of the largest |logit|.
        origin: name of the original, for messages.
        head: of the file, to verify its activation maps.

    Raises:
        ParityError: they differ by more than the tolerances, or the file does not run at each batch size.
    """
    batches = list(_batches(photos, np.random.default_rng(0)))
    try:
        with closing(backends.load(draft, content)) as backend:
            wants = questions(draft, backend)
            outputs = [[backend.run(list(images), wanted) for wanted in wants] for images in batches]
    except Exception as failure:  # runtimes' errors have no common class
        raise ParityError(f"the exported graph does not run: {first_line(failure)}") from failure
    truths = map(truth, batches)
    results = [(output, known) for answers, known in zip(outputs, truths, strict=True) for output in answers]
    error = truth_error + float(np.max([_error(output.logits, known.logits) for output, known in results]))
    allowed = MAX_LOGIT_ERROR[draft.precision]
    if not error <= allowed:  # so that NaN fails
        whose, instead = "the exported graph's", "nothing was added to the repository"
        if draft.precision == "fp16" and origin == PYTORCH:
            whose, instead = "in half precision the", "use --precision fp32"
        raise ParityError(
            f"{whose} logits differ from {origin}'s by {error:.1e} of the largest, {allowed:.0e} is allowed: {instead}"
        )
    for output, (logits, features) in results:
        # In lower precision, the file ranks its own logits, whose error was just found to be within the tolerance.
        ranked = comparison.probabilities(logits if draft.precision == "fp32" else output.logits, draft.activation)
        _check_ranking(output.probabilities, output.indices, ranked, origin)
        _check_extras(output, features, head, allowed, origin)
    return Parity(
        batch_sizes=BATCH_SIZES,
        images=sum(map(len, batches)),
        real_images=len(photos),
        max_logit_error=error,
        max_logit_error_allowed=allowed,
        top1_agreement=float(
            np.mean(
                np.concatenate(
                    [comparison.best(output.logits) == comparison.best(known.logits) for output, known in results]
                )
            )
        ),
    )


def _error(values: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, as a share of the largest expected value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def _batches(photos: NDArray[np.uint8], random: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
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
    probabilities: NDArray[np.float32], indices: NDArray[np.int32], expected: NDArray[np.float64], origin: str
) -> None:
    """Check that the graph ranks classes by their probability, and gives the original's probability to each."""
    ranked = -np.sort(-expected, axis=1)[:, : indices.shape[1]]
    named = np.take_along_axis(expected, indices.astype(np.int64), axis=1)
    error = max(np.abs(probabilities - ranked).max(), np.abs(probabilities - named).max())
    if not error <= MAX_PROBABILITY_ERROR or (np.diff(probabilities, axis=1) > 0).any():
        raise ParityError(
            f"the exported graph ranks classes otherwise than {origin}: probabilities differ by {error:.1e}"
        )


def _check_extras(
    output: Outputs,
    features: NDArray[np.float32] | None,
    head: Head,
    allowed: float,
    origin: str,
) -> None:
    """Check that features are the original's, and that each activation map's mean and bias are its class's logit."""
    if output.features is not None and features is not None:
        error = _error(output.features, features)
        if not error <= allowed:
            raise ParityError(f"the exported graph's features differ from {origin}'s by {error:.1e} of the largest")
    if output.activation_maps is not None:
        best = output.indices[:, : output.activation_maps.shape[1]].astype(np.int64)
        means = output.activation_maps.mean((2, 3)) + (0 if head.bias is None else head.bias[best])
        named = np.take_along_axis(output.logits, best, 1)
        error = float(np.abs(means / head.temperature - named).max() / np.abs(output.logits).max())
        if not error <= allowed:
            raise ParityError(
                f"the exported graph's activation maps are not those of its logits: the means differ by {error:.1e} of"
                " the largest"
            )
