"""OpenVINO, on the CPU: an ONNX file's other runtime, and the faster one for INT8."""

from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np
import openvino
from numpy.typing import NDArray

from models.manifest import EXTRA_NAMES, INPUT_NAME, OUTPUT_NAMES, Manifest
from server.engine.backends import Outputs, extra_names, stack
from server.engine.classes import Extras
from server.settings import Settings

_CORE = openvino.Core()
"""The only one of the process, and never freed: its CPU plugin has the thread that loads it handle signals on a stack
of the plugin's, and frees that stack with itself. If another thread frees it, the next signal ends the process."""


class PrecisionError(Exception):
    """OpenVINO does not compute in the precision that a manifest says."""


class OpenVinoBackend:
    """The graph compiled for a lone batch, which uses all threads, and again for batches that run together.

    See `OnnxBackend` for the reason.
    """

    on_gpu = False
    extras_apart = False

    def __init__(self, content: bytes, settings: Settings, precision: str = "f32") -> None:
        """Compile the graph in `content`.

        Args:
            content: of the file.
            settings: of the model.
            precision: of what is not quantised, as OpenVINO calls it.

        Raises:
            PrecisionError: it would be computed in another precision on this machine.
        """
        threads = settings.inference_threads
        self.instances = min(settings.instances, threads)
        self._alone = self._shared = _Compiled(content, threads, 1, precision)
        if self.instances > 1:
            self._shared = _Compiled(content, threads, self.instances, precision)

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`. The runtime computes all outputs of a graph; only what is wanted is copied."""
        return self._alone.run(images, OUTPUT_NAMES + extra_names(wanted))

    def run_beside(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run_beside`."""
        return self._shared.run(images, OUTPUT_NAMES + extra_names(wanted))

    def close(self) -> None:
        """See `Backend.close`."""


class _Compiled:
    """A compiled graph with a free batch size, and a request for each batch that runs at one time.

    One graph for all batch sizes: one for each would hold the weights as often. It gains nothing with ResNet-50,
    but does with EfficientNet-Lite0 in INT8 (docs/guides/precision.md).
    """

    def __init__(self, content: bytes, threads: int, streams: int, precision: str) -> None:
        config = {
            "PERFORMANCE_HINT": "LATENCY",  # batches are the scheduler's to make
            "NUM_STREAMS": streams,  # batches at one time, which share the threads
            "INFERENCE_NUM_THREADS": threads,
            # Otherwise FP32 is computed in bfloat16 where the CPU can, and answers differ from one machine to another.
            "INFERENCE_PRECISION_HINT": precision,
            # Pinned threads cannot leave a core that decoding is using.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = _CORE.compile_model(_CORE.read_model(content), "CPU", config)
        if (computed := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
            raise PrecisionError(
                f"OpenVINO would compute it in {computed} on this machine, not in {precision}: serve its FP32 file"
            )
        self._create_request = compiled.create_infer_request
        there = {name for output in compiled.outputs for name in output.names}
        self._outputs = {name: compiled.output(name) for name in OUTPUT_NAMES + EXTRA_NAMES if name in there}
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def run(self, images: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> Outputs:
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._create_request()
        try:
            answers = request.infer({INPUT_NAME: stack(images)}, share_inputs=True, share_outputs=True)
            return Outputs(**{name: answers[self._outputs[name]].copy() for name in names})
        finally:
            self._idle.put(request)


def load(found: Manifest, content: bytes, settings: Settings) -> OpenVinoBackend:
    """Compile the graph in `content` for the precision that the manifest says.

    Raises:
        PrecisionError: this machine has no such arithmetic.
    """
    return OpenVinoBackend(content, settings, "bf16" if found.precision == "bf16" else "f32")
