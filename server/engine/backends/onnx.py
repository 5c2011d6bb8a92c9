"""ONNX Runtime: on the CPU, or on an NVIDIA GPU by its CUDA and TensorRT execution providers.

On a GPU each batch size, a bucket, has its own buffers, bound once, and with `cuda_graph` its own CUDA graph; a batch
is padded up to its bucket.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.manifest import INPUT_NAME, OUTPUT_NAMES, Manifest
from server import cuda
from server.cuda import OutOfMemoryError
from server.engine.backends import Outputs, extra_names, stack
from server.engine.backends.device import Buffers, Instance, Tensor
from server.engine.classes import Extras
from server.engine.scheduler import buckets
from server.settings import GPU_PROVIDERS, Settings

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CACHE_FOLDER = ".tensorrt"
"""In the model repository, for what the TensorRT provider builds."""

SPIN_US = "25"
"""About as long as it takes to wake a thread: waiting longer costs more than it can save, and waiting less saves little
(docs/measurements/alternatives.md)."""
_KINDS = {"tensor(float)": np.float32, "tensor(int32)": np.int32}

log = logging.getLogger(__name__)


class ProviderRefusedError(Exception):
    """An execution provider of the settings is not available; the message says what to do."""


class OnnxBackend:
    """Sessions on the CPU: one of all threads for a lone batch, and one of their share for batches that run together.

    Threads that share a batch wait for each other after each operator, the longer the more often decoding takes a CPU
    from one of them. Batches of one thread each do not (docs/measurements/alternatives.md).
    """

    on_gpu = False
    extras_apart = False

    def __init__(self, content: bytes, settings: Settings) -> None:
        self.instances = min(settings.instances, settings.inference_threads)
        self._alone = self._shared = _open(content, settings, list(settings.providers))
        if self.instances > 1:
            share = settings.model_copy(update={"inference_threads": settings.inference_threads // self.instances})
            self._shared = _open(content, share, list(settings.providers))

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`."""
        return _run(self._alone, images, wanted)

    def run_beside(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run_beside`."""
        return _run(self._shared, images, wanted)

    def close(self) -> None:
        """See `Backend.close`."""


class OnnxGpuBackend:
    """A session on a GPU. All its work is done by one thread: ONNX Runtime keeps the graphs of each thread apart."""

    instances = 1  # a session has one stream
    on_gpu = True
    extras_apart = False

    def __init__(
        self, session: ort.InferenceSession, found: Manifest, sizes: Sequence[int], stream: Any, kind: str
    ) -> None:
        """Bind the buffers of all `sizes` and run each once.

        Args:
            session: of the graph.
            found: the model's manifest.
            sizes: of the buckets, ascending.
            stream: that the session runs on.
            kind: of the device as ONNX Runtime calls it: "cuda".

        Raises:
            OutOfMemoryError: not even a batch of one fits.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"onnx-{kind}")
        makers = [partial(_Bucket, session, (size, *found.input_shape), stream, kind) for size in sizes]
        self._instance = self._thread.submit(Instance, makers, found.name).result()

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`. More images than the largest bucket take several turns."""
        return self._thread.submit(self._instance.run, images, wanted).result()

    run_beside = run

    def close(self) -> None:
        """See `Backend.close`."""
        self._thread.submit(self._instance.free).result()
        self._thread.shutdown()


class _Bucket:
    """One batch size: buffers at fixed addresses, bound to the graph's inputs and outputs."""

    def __init__(self, session: ort.InferenceSession, shape: tuple[int, ...], stream: Any, kind: str) -> None:
        self.size = shape[0]
        self._session = session
        tensors = {INPUT_NAME: Tensor(shape, np.dtype(np.uint8))}
        for node in session.get_outputs():
            tensors[node.name] = Tensor((self.size, *node.shape[1:]), np.dtype(_KINDS[node.type]))
        self._buffers = Buffers(tensors, stream)
        self._binding = session.io_binding()
        for name, tensor in tensors.items():
            bind = self._binding.bind_input if name == INPUT_NAME else self._binding.bind_output
            bind(name, kind, 0, tensor.kind.type, tensor.shape, self._buffers.addresses[name])
        self._options = ort.RunOptions()
        self._options.add_run_config_entry(
            "gpu_graph_id", str(self.size)
        )  # a CUDA graph of its own, where there are any
        try:
            self._compute()  # allocates, chooses algorithms, and captures
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """See `Bucket.free`."""
        self._buffers.free()

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:
        """See `Bucket.run`. The rows after the images hold what an earlier batch left, and no one reads them."""
        extras = extra_names(wanted)
        self._buffers.upload(images)
        self._compute()
        self._buffers.download(OUTPUT_NAMES + extras)
        return self._buffers.outputs(len(images), extras)

    def _compute(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # its errors have no common class
            cuda.raise_if_lost()
            if cuda.is_out_of_memory(error):
                raise OutOfMemoryError(f"the GPU has no memory left for batches of {self.size}") from error
            raise


def load(found: Manifest, content: bytes, settings: Settings) -> OnnxBackend | OnnxGpuBackend:
    """Open a session on the graph in `content`, on all the wanted providers.

    Raises:
        ProviderRefusedError: one of them is not installed, or finds no GPU.
        OutOfMemoryError: not even a batch of one fits on the GPU.
    """
    _check_providers(settings)
    if GPU_PROVIDERS.isdisjoint(settings.providers):
        return OnnxBackend(content, settings)
    if cuda.find_gpu() is None:
        raise ProviderRefusedError(
            "this machine has no NVIDIA GPU that CUDA can use, or lacks its driver or cuda-bindings:"
            " set providers to CPUExecutionProvider"
        )
    ort.preload_dlls()  # CUDA and cuDNN where they came as packages: their folders are on no loader's path
    stream = cuda.create_stream()
    sizes = buckets(settings.max_batch)
    options = {CUDA: _cuda_options(settings, stream), TENSORRT: _tensorrt_options(found, settings, stream, sizes[-1])}
    session = _open(content, settings, [(name, options.get(name, {})) for name in settings.providers])
    return OnnxGpuBackend(session, found, sizes, stream, "cuda")


def _run(session: ort.InferenceSession, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:
    names = OUTPUT_NAMES + extra_names(wanted)
    return Outputs(**dict(zip(names, session.run(names, {INPUT_NAME: stack(images)}), strict=True)))


def _check_providers(settings: Settings) -> None:
    """Refuse providers that ONNX Runtime would replace with the CPU, with no more than a warning."""
    available = ort.get_available_providers()
    if missing := [name for name in settings.providers if name not in available]:
        raise ProviderRefusedError(
            f"this ONNX Runtime has no {', '.join(missing)}, but {', '.join(available)}:"
            " set providers to some of these, or for a GPU install onnxruntime-gpu (docs/guides/providers.md)"
        )
    if TENSORRT in settings.providers and settings.cuda_graph:
        raise ProviderRefusedError(
            f"{TENSORRT} has one CUDA graph for all batch sizes: turn cuda_graph off, or build an engine with"
            " export/to_trt.py"
        )


def _open(content: bytes, settings: Settings, providers: Sequence[Any]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.inference_threads
    options.inter_op_num_threads = 1
    # Threads that spin on between operators take the cores away from decoding: the largest single cost of a busy CPU.
    # Those that do not at all are woken for every operator, which costs a lone image a tenth of its inference.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    options.log_severity_level = 3
    missing = (
        f"ONNX Runtime cannot use all of {', '.join(settings.providers)} here, its log says why: most often CUDA, cuDNN"
        " or TensorRT is missing or of another version (docs/guides/providers.md)"
    )
    try:
        session = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except RuntimeError as error:  # so ends TensorRT without its libraries; a bad file has errors of another class
        raise ProviderRefusedError(missing) from error
    # It keeps the file to fall back on other providers with, which is forbidden here.
    session._model_bytes = None
    # Any other provider is left out then, with no more than a line in that log.
    if not set(settings.providers) <= set(session.get_providers()):
        raise ProviderRefusedError(missing)
    return session


def _cuda_options(settings: Settings, stream: Any) -> dict[str, str]:
    return {
        "user_compute_stream": str(
            int(stream)
        ),  # the same as for the copies, so that they need not wait for each other
        "enable_cuda_graph": str(int(settings.cuda_graph)),
        "use_tf32": str(int(settings.tf32)),
    }


def _tensorrt_options(found: Manifest, settings: Settings, stream: Any, largest: int) -> dict[str, str]:
    image = "x".join(map(str, found.input_shape))
    options = {
        "user_compute_stream": str(int(stream)),
        # The file says which layers are in which precision; these only allow it.
        "trt_fp16_enable": str(int(found.precision == "fp16")),
        "trt_int8_enable": str(int(found.precision == "int8")),
        "trt_profile_min_shapes": f"{INPUT_NAME}:1x{image}",
        "trt_profile_opt_shapes": f"{INPUT_NAME}:{largest}x{image}",
        "trt_profile_max_shapes": f"{INPUT_NAME}:{largest}x{image}",
    }
    # Of this file alone: an engine is cached by the graph's structure, and other weights would be taken for these.
    folder = settings.repository / CACHE_FOLDER / found.file.sha256
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("%s is built at every start: no cache in %s: %s", found.name, folder, error)
        return options
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
