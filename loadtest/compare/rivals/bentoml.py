"""BentoML: services that decode, in front of one with a batchable API: its way to decode in parallel with inference.

`max_latency_ms` is not a wait but a limit, beyond which requests are refused; BentoML itself works out how long to wait
for a batch.
"""

from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from loadtest.compare.rivals import work

TIMEOUT_S = 60
QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S}, logging=QUIET)
class Infer:
    """Runs the network on batches."""

    def __init__(self) -> None:
        self.network = work.Network()

    @bentoml.api(batchable=True, max_batch_size=work.MAX_BATCH, max_latency_ms=TIMEOUT_S * 1000)
    def infer(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Run the network."""
        return work.answers(self.network(np.asarray(pixels)))


@bentoml.service(workers=work.CPUS, threads=4, traffic={"timeout": TIMEOUT_S}, logging=QUIET)
class Classifier:
    """Decodes one photo at a time."""

    infer = bentoml.depends(Infer)

    @bentoml.api(route="/predict")
    def predict(self, photo: Image, /) -> dict[str, Any]:
        """Decode, and have the network run."""
        pixels: NDArray[np.float32] = work.pixels_of(photo)
        answer: dict[str, Any] = self.infer.infer(pixels[np.newaxis])[0]
        return answer
