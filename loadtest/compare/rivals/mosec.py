"""mosec: a stage of processes that decode, then one process with dynamic batches."""

import os
import sys
from typing import Any

import mosec
import numpy as np
from numpy.typing import NDArray

from loadtest.compare.rivals import work


class Decode(mosec.Worker):
    """Decodes one photo at a time."""

    def deserialize(self, data: bytes) -> bytes:
        """The body is the photo, not JSON."""
        return data

    def forward(self, data: bytes) -> NDArray[np.float32]:
        """Decode."""
        return work.pixels(data)


class Infer(mosec.Worker):
    """Runs the network on batches."""

    def __init__(self) -> None:
        super().__init__()
        self.network = work.Network()

    def forward(self, data: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
        """Run the network."""
        return work.answers(self.network(np.stack(data)))


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", os.environ["PORT"], "--timeout", "60000", "--log-level", "warning"]
    server = mosec.Server()
    server.append_worker(Decode, num=work.CPUS)
    server.append_worker(Infer, max_batch_size=work.MAX_BATCH, max_wait_time=work.MAX_WAIT_MS)
    server.run()
