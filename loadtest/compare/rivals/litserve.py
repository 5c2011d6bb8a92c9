"""LitServe: one inference worker, which decodes a batch in a thread pool; ZeroMQ between it and the API."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Depends, Request
from numpy.typing import NDArray

from loadtest.compare.rivals import work


async def body(request: Request) -> bytes:
    """Read the body, which LitServe would take for JSON."""
    return await request.body()


class Classifier(litserve.LitAPI):
    """The steps in LitServe's order."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """LitServe calls this once in each worker."""
        self.network = work.Network()
        self.decoders = ThreadPoolExecutor(work.CPUS)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        """Pass on: here images would be decoded one after the other."""
        return request

    def batch(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        """Decode in parallel."""
        return np.stack(list(self.decoders.map(work.pixels, inputs)))

    def predict(self, x: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Run the network."""
        return work.answers(self.network(x))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Nothing to do."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Nothing to do."""
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=work.MAX_BATCH, batch_timeout=work.MAX_WAIT_MS / 1e3, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
