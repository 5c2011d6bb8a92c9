"""NVIDIA Triton, through PyTriton: its HTTP frontend and dynamic batcher; batches are decoded in a thread pool."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from loadtest.compare.rivals import work


class Classifier:
    """PyTriton calls this with batches of bytes[N, 1]."""

    def __init__(self) -> None:
        self.network = work.Network()
        self.decoders = ThreadPoolExecutor(work.CPUS)

    @batch
    def __call__(self, photo: NDArray[np.bytes_]) -> dict[str, NDArray[Any]]:
        """Decode in parallel and run the network."""
        classes, probabilities = work.top_k(self.network(np.stack(list(self.decoders.map(work.pixels, photo[:, 0])))))
        return {"classes": classes.astype(np.int32), "probabilities": probabilities}


def main() -> None:
    """Serve until SIGTERM; without a handler for it, PyTriton would leave its shared memory behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    port = int(os.environ["PORT"])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="predict",
            infer_func=Classifier(),
            inputs=[Tensor(name="photo", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="classes", dtype=np.int32, shape=(work.TOP_K,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(work.TOP_K,)),
            ],
            config=ModelConfig(
                max_batch_size=work.MAX_BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=1000 * work.MAX_WAIT_MS),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
