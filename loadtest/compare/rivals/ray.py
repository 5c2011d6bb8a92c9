"""Ray Serve: one replica that decodes in threads and runs batches in another, so that its event loop stays free."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from loadtest.compare.rivals import work

OBJECT_STORE_BYTES = 80 * 2**20
"""Close to the least that Ray accepts: nothing is stored there."""


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Classifier:
    """A replica."""

    def __init__(self) -> None:
        self.network = work.Network()
        self.decoders = ThreadPoolExecutor(work.CPUS)
        self.runner = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=work.MAX_BATCH, batch_wait_timeout_s=work.MAX_WAIT_MS / 1e3)
    async def infer(self, pixels: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
        """Run the network on what Ray Serve collected."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.runner, lambda: work.answers(self.network(np.stack(pixels))))

    async def __call__(self, request: Request) -> JSONResponse:
        """Classify one photo."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self.decoders, work.pixels, await request.body())
        return JSONResponse(await self.infer(pixels))  # a plain dict would go out in chunks


def main() -> None:
    """Serve until SIGTERM."""
    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    ray.init(
        address="local",
        num_cpus=work.CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )
    http = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    serve.start(http_options=http, logging_config={"enable_access_log": False})
    serve.run(Classifier.bind(), route_prefix="/predict")  # type: ignore[attr-defined]
    signal.sigwait(wanted)
    ray.shutdown()


if __name__ == "__main__":
    main()
