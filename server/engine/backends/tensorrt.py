"""TensorRT, in both of its flavours: engines that `export/to_trt.py` built.

Each batch size of the engine's profiles, a bucket, has its own execution context, buffers and CUDA graph, captured at
load; a batch is padded up to its bucket. No two instances share anything: they run at one time.
"""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models import hints
from models.manifest import INPUT_NAME, OUTPUT_NAMES, Flavour, Manifest
from server import cuda
from server.cuda import Gpu, OutOfMemoryError
from server.engine.backends import Outputs, extra_names
from server.engine.backends.device import Buffers, Instance, Tensor
from server.engine.classes import Extras
from server.settings import Settings

if TYPE_CHECKING:
    import tensorrt as trt

INSTANCES = 2
"""So that one batch is copied while another is computed."""

TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
_PACKAGES: dict[Flavour, str] = {
    "tensorrt": "tensorrt=={} cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx-cu13-libs=={0} tensorrt-rtx-cu13-bindings=={0} cuda-bindings",
}
FIRST_AMPERE = 80


class EngineRefusedError(Exception):
    """The engine does not run on this machine; the message says what does."""


def check(found: Manifest, gpu: Gpu | None, version: str | None) -> None:
    """Refuse an engine that this machine cannot run, from its manifest alone.

    Args:
        found: the engine's manifest.
        gpu: this machine's; None where there is none, or no driver.
        version: of the installed TensorRT of the engine's flavour; None where it is not installed.

    Raises:
        EngineRefusedError: naming the difference.
    """
    record = found.tensorrt
    if record is None:
        raise EngineRefusedError(f"model {found.name} is no TensorRT engine")
    targets = ", ".join(record.compute_capabilities).upper()
    what = f"model {found.name} is a {TITLES[record.flavour]} engine for {targets}"
    instead = "serve the ONNX model, or build an engine for this machine with export/to_trt.py"
    if gpu is None:
        raise EngineRefusedError(f"{what}; this machine has no NVIDIA GPU that CUDA can use: serve the ONNX model")
    if version is None:
        how = hints.packages(*_PACKAGES[record.flavour].format(record.version).split())
        raise EngineRefusedError(f"{what}; {TITLES[record.flavour]} is not installed: {how}")
    same_version = version == record.version
    if not same_version and not ("version" in record.compatibility and _is_newer(version, record.version)):
        raise EngineRefusedError(f"{what}, built by version {record.version}; this machine has {version}: {instead}")
    since_ampere = "ampere+" in record.compatibility and int(gpu.compute_capability[2:]) >= FIRST_AMPERE
    if gpu.compute_capability not in record.compute_capabilities and not since_ampere:
        raise EngineRefusedError(
            f"{what}; this machine's GPU, {gpu.name}, is {gpu.compute_capability.upper()}: {instead}"
        )
    # An engine of TensorRT proper is tuned for one product, unless it was asked to be for more.
    portable = {"ampere+", "same-compute-capability"} & set(record.compatibility)
    if record.flavour == "tensorrt" and not portable and gpu.name != record.gpu:
        raise EngineRefusedError(f"{what}, built on {record.gpu}; this machine's GPU is {gpu.name}: {instead}")


def _is_newer(version: str, built: str) -> bool:
    """Whether `version` is of the same major version and at least `built`."""
    ours, theirs = ([int(part) for part in text.split(".")] for text in (version, built))
    return ours[0] == theirs[0] and ours >= theirs


def load(found: Manifest, content: bytes, _settings: Settings) -> "TensorRTBackend":
    """Load an engine on the first GPU.

    Raises:
        EngineRefusedError: it does not run on this machine.
        OutOfMemoryError: not even a batch of one fits.
    """
    module = _import(found)
    check(found, cuda.find_gpu(), module.__version__ if module else None)
    if found.tensorrt is None or module is None:
        raise EngineRefusedError(f"model {found.name} is no TensorRT engine")
    runtime = module.Runtime(module.Logger(module.Logger.WARNING))
    # A version-compatible engine brings the code that runs it; its digest was verified.
    runtime.engine_host_code_allowed = "version" in found.tensorrt.compatibility
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineRefusedError(f"{TITLES[found.tensorrt.flavour]} cannot load model {found.name}: see its log")
    sizes = [profile.largest for profile in found.tensorrt.profiles]
    return TensorRTBackend([_instance(module, engine, sizes, found.name) for _ in range(INSTANCES)])


def _import(found: Manifest) -> Any:
    """The runtime of the engine's flavour; None where it is not installed."""
    try:
        return found.tensorrt and import_module(MODULES[found.tensorrt.flavour])
    except ImportError:
        return None


class TensorRTBackend:
    """A loaded engine."""

    instances = INSTANCES
    on_gpu = True
    extras_apart = False

    def __init__(self, instances: list[Instance]) -> None:
        self._idle: SimpleQueue[Instance] = SimpleQueue()
        for instance in instances:
            self._idle.put(instance)

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`. Waits for an idle instance; more images than the largest bucket take several turns."""
        instance = self._idle.get()
        try:
            return instance.run(images, wanted)
        finally:
            self._idle.put(instance)

    run_beside = run

    def close(self) -> None:
        """See `Backend.close`."""
        while not self._idle.empty():
            self._idle.get().free()


def _instance(module: Any, engine: "trt.ICudaEngine", sizes: list[int], name: str) -> Instance:
    stream = cuda.create_stream()
    return Instance(
        [partial(_Bucket, module, engine, profile, size, stream) for profile, size in enumerate(sizes)], name
    )


class _Bucket:
    """One batch size: a context with its profile, buffers at fixed addresses, and the graph that uses them."""

    def __init__(self, module: Any, engine: "trt.ICudaEngine", profile: int, size: int, stream: Any) -> None:
        self.size = size
        self._stream = stream
        self._graph: Any = None
        context = _create_context(module, engine)
        # TensorRT tells of missing memory by its log and by giving no result.
        if context is None or not context.set_optimization_profile_async(profile, int(stream)):
            raise OutOfMemoryError(f"the GPU has no memory left for batches of {size}")
        context.set_input_shape(INPUT_NAME, (size, *tuple(engine.get_tensor_shape(INPUT_NAME))[1:]))
        self._context = context
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        kinds = {name: np.dtype(module.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._buffers = Buffers(
            {name: Tensor(tuple(context.get_tensor_shape(name)), kinds[name]) for name in names}, stream
        )
        try:
            for name, address in self._buffers.addresses.items():
                context.set_tensor_address(name, address)
            self._graph = self._capture()
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """See `Bucket.free`."""
        if self._graph is not None:
            cuda.forget(self._graph)
        self._buffers.free()

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:
        """See `Bucket.run`. The rows after the images hold what an earlier batch left, and no one reads them.

        An engine computes all its outputs; what is not wanted stays on the GPU.
        """
        extras = extra_names(wanted)
        self._buffers.upload(images)
        cuda.launch(self._graph, self._stream)
        self._buffers.download(extras)
        return self._buffers.outputs(len(images), extras)

    def _capture(self) -> Any:
        """Record all that follows the upload. TensorRT must have run the shape once before, unrecorded."""
        self._enqueue()
        cuda.synchronize(self._stream)
        return cuda.record(self._enqueue, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            cuda.check_last()
            raise RuntimeError(f"TensorRT did not start a batch of {self.size}: see its log")
        self._buffers.download(OUTPUT_NAMES)


def _create_context(module: Any, engine: "trt.ICudaEngine") -> "trt.IExecutionContext | None":
    strategy = module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context(strategy)
    # TensorRT for RTX compiles the kernels here; by default in the background, and the graph would keep the stopgap.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)
