"""TensorRT, in both of its flavours: engines that `export/to_trt.py` built.

Each batch size of the engine's profiles, a bucket, has its own execution context, buffers and CUDA graph, captured at
load; a batch is padded up to its bucket. What a lane uses, no other lane does: lanes run at one time.
"""

import ctypes
import logging
from collections.abc import Sequence
from importlib import import_module
from math import prod
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import INPUT_NAME, OUTPUT_NAMES, Flavour, Manifest
from server.engine.backends import DeviceLostError, Outputs
from server.settings import Settings

try:
    from cuda.bindings import runtime as cuda
except ImportError:  # as on a machine without a GPU, which is to be told that it has none
    cuda = None

if TYPE_CHECKING:
    import tensorrt as trt

LANES = 2
"""So that one batch is copied while another is computed."""

_TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
_PACKAGES: dict[Flavour, str] = {
    "tensorrt": "tensorrt=={} cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx-cu13-libs=={0} tensorrt-rtx-cu13-bindings=={0} cuda-bindings",
}
_FIRST_AMPERE = 80

log = logging.getLogger(__name__)


class EngineRefusedError(Exception):
    """The engine does not run on this machine; the message says what does."""


class OutOfMemoryError(Exception):
    """The GPU has no memory left for a bucket."""


class Gpu(NamedTuple):
    """The GPU of this machine."""

    name: str
    compute_capability: str


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
    what = f"model {found.name} is a {_TITLES[record.flavour]} engine for {targets}"
    instead = "serve the ONNX model, or build an engine for this machine with export/to_trt.py"
    if gpu is None:
        raise EngineRefusedError(f"{what}; this machine has no NVIDIA GPU that CUDA can use: serve the ONNX model")
    if version is None:
        packages = _PACKAGES[record.flavour].format(record.version)
        raise EngineRefusedError(f"{what}; {_TITLES[record.flavour]} is not installed: pip install {packages}")
    same_version = version == record.version
    if not same_version and not ("version" in record.compatibility and _is_newer(version, record.version)):
        raise EngineRefusedError(f"{what}, built by version {record.version}; this machine has {version}: {instead}")
    since_ampere = "ampere+" in record.compatibility and int(gpu.compute_capability[2:]) >= _FIRST_AMPERE
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
    check(found, _find_gpu(), module.__version__ if module else None)
    if found.tensorrt is None or module is None:
        raise EngineRefusedError(f"model {found.name} is no TensorRT engine")
    runtime = module.Runtime(module.Logger(module.Logger.WARNING))
    # A version-compatible engine brings the code that runs it; its digest was verified.
    runtime.engine_host_code_allowed = "version" in found.tensorrt.compatibility
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineRefusedError(f"{_TITLES[found.tensorrt.flavour]} cannot load model {found.name}: see its log")
    sizes = [profile.largest for profile in found.tensorrt.profiles]
    return TensorRTBackend([_Lane(module, engine, sizes, found.name) for _ in range(LANES)])


def _import(found: Manifest) -> Any:
    """The runtime of the engine's flavour; None where it is not installed."""
    try:
        return found.tensorrt and import_module(_MODULES[found.tensorrt.flavour])
    except ImportError:
        return None


def _find_gpu() -> Gpu | None:
    if cuda is None:
        return None
    error, properties = cuda.cudaGetDeviceProperties(0)
    if error != cuda.cudaError_t.cudaSuccess:
        return None
    return Gpu(properties.name.decode(), f"sm{properties.major}{properties.minor}")


class TensorRTBackend:
    """A loaded engine."""

    lanes = LANES

    def __init__(self, lanes: "list[_Lane]") -> None:
        self._idle: SimpleQueue[_Lane] = SimpleQueue()
        for lane in lanes:
            self._idle.put(lane)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """See `Backend.run`. Waits for an idle lane; more images than the largest bucket take several turns."""
        lane = self._idle.get()
        try:
            return lane.run(images)
        finally:
            self._idle.put(lane)


class _Lane:
    """A stream, and the buckets that take turns on it."""

    def __init__(self, module: Any, engine: "trt.ICudaEngine", sizes: list[int], name: str) -> None:
        stream = _cuda(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._buckets: list[_Bucket] = []
        for profile, size in enumerate(sizes):
            try:
                self._buckets.append(_Bucket(module, engine, profile, size, stream))
            except OutOfMemoryError as error:
                if not self._buckets:
                    raise OutOfMemoryError(f"the GPU's memory cannot hold model {name}: serve fewer models") from error
                log.warning("%s runs batches of up to %d: %s", name, self._buckets[-1].size, error)
                return

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Classify in as many turns as it takes; a bucket that finds no memory to run in is given up."""
        parts: list[Outputs] = []
        done = 0
        while done < len(images):
            waiting = len(images) - done
            at = next((at for at, one in enumerate(self._buckets) if one.size >= waiting), len(self._buckets) - 1)
            part = images[done : done + self._buckets[at].size]
            try:
                parts.append(self._buckets[at].run(part))
            except OutOfMemoryError:
                if at == 0:
                    raise
                for bucket in self._buckets[at:]:
                    bucket.free()
                del self._buckets[at:]
            else:
                done += len(part)
        return parts[0] if len(parts) == 1 else Outputs(*map(np.concatenate, zip(*parts, strict=True)))


class _Bucket:
    """One batch size: a context with its profile, buffers at fixed addresses, and the graph that uses them."""

    def __init__(self, module: Any, engine: "trt.ICudaEngine", profile: int, size: int, stream: Any) -> None:
        self.size = size
        self._stream = stream
        context = _create_context(module, engine)
        # TensorRT tells of missing memory by its log and by giving no result.
        if context is None or not context.set_optimization_profile_async(profile, int(stream)):
            raise OutOfMemoryError(f"the GPU has no memory left for batches of {size}")
        context.set_input_shape(INPUT_NAME, (size, *tuple(engine.get_tensor_shape(INPUT_NAME))[1:]))
        self._context = context
        self._host: dict[str, NDArray[Any]] = {}
        self._device: dict[str, int] = {}
        try:
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
                shape = tuple(context.get_tensor_shape(name))
                kind = np.dtype(module.nptype(engine.get_tensor_dtype(name)))
                self._device[name] = _cuda(cuda.cudaMalloc(prod(shape) * kind.itemsize))
                context.set_tensor_address(name, self._device[name])
                self._host[name] = _pinned(shape, kind)
            self._graph = self._capture()
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give the buffers back. Those of a bucket that is never freed live as long as the process."""
        for address in self._device.values():
            cuda.cudaFree(address)
        for array in self._host.values():
            cuda.cudaFreeHost(array.ctypes.data)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Classify 1 <= N <= size images; the rows after them hold what an earlier batch left, and no one reads them.

        Raises:
            OutOfMemoryError, DeviceLostError, RuntimeError: as CUDA reports.
        """
        count = len(images)
        np.stack(images, out=self._host[INPUT_NAME][:count])
        _cuda(cuda.cudaGraphLaunch(self._graph, self._stream))
        _cuda(cuda.cudaStreamSynchronize(self._stream))
        return Outputs(*(self._host[name][:count].copy() for name in OUTPUT_NAMES))

    def _capture(self) -> Any:
        """Record all that a batch does. TensorRT must have run the shape once before, outside of the recording."""
        self._enqueue()
        _cuda(cuda.cudaStreamSynchronize(self._stream))
        # Of this thread alone: others may allocate meanwhile.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _cuda(cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue()
        finally:
            ended = cuda.cudaStreamEndCapture(self._stream)
        return _cuda(cuda.cudaGraphInstantiate(_cuda(ended), 0))

    def _enqueue(self) -> None:
        kinds = cuda.cudaMemcpyKind
        host, device = self._host[INPUT_NAME], self._device[INPUT_NAME]
        _cuda(cuda.cudaMemcpyAsync(device, host.ctypes.data, host.nbytes, kinds.cudaMemcpyHostToDevice, self._stream))
        if not self._context.execute_async_v3(int(self._stream)):
            _cuda(cuda.cudaGetLastError())
            raise RuntimeError(f"TensorRT did not start a batch of {self.size}: see its log")
        for name in OUTPUT_NAMES:
            host, device = self._host[name], self._device[name]
            copied = cuda.cudaMemcpyAsync(
                host.ctypes.data, device, host.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream
            )
            _cuda(copied)


def _create_context(module: Any, engine: "trt.ICudaEngine") -> "trt.IExecutionContext | None":
    strategy = module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context(strategy)
    # TensorRT for RTX compiles the kernels here; by default in the background, and the graph would keep the stopgap.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _pinned(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Page-locked memory, which the GPU copies from and to without another copy in between."""
    size = prod(shape) * kind.itemsize
    address = _cuda(cuda.cudaHostAlloc(size, cuda.cudaHostAllocDefault))
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(kind).reshape(shape)


def _cuda(result: tuple[Any, ...]) -> Any:
    """Return what a call of the CUDA runtime gives beside its error code.

    Raises:
        OutOfMemoryError: the call found no memory; all else works.
        DeviceLostError: the error is sticky, every later call returns it.
        RuntimeError: any other error.
    """
    error, *values = result
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if values else None
    cuda.cudaGetLastError()  # forgets an error that is not sticky
    (again,) = cuda.cudaDeviceSynchronize()
    if again != cuda.cudaError_t.cudaSuccess:
        raise DeviceLostError(f"CUDA: {again.name}")
    if error == cuda.cudaError_t.cudaErrorMemoryAllocation:
        raise OutOfMemoryError("the GPU has no memory left")
    raise RuntimeError(f"CUDA: {error.name}")
