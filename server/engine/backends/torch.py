"""PyTorch: programs of `torch.export`, on the first NVIDIA GPU or, where there is none, on the CPU.

The reference for the other backends; the only module of the server that imports torch, and only for such a model. On a
GPU each batch size, a bucket, has tensors that never move and a CUDA graph; a batch is padded up to its bucket.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from models.errors import first_line
from models.manifest import OUTPUT_NAMES, Manifest
from server import cuda
from server.cuda import OutOfMemoryError
from server.engine.backends import Outputs, extra_names, stack
from server.engine.backends.device import Instance
from server.engine.classes import Extras
from server.engine.scheduler import buckets
from server.errors import DeviceLostError
from server.settings import Settings

# Read once, when torch loads OpenMP: threads that spin take the cores away from decoding, and on a busy machine from
# the very thread that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from torch.export.passes import move_to_device_pass

WARM_UPS = 3
"""Runs of a bucket before it is recorded."""

log = logging.getLogger(__name__)

Program = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""uint8[N, H, W, 3] to the outputs, on one device: those of OUTPUT_NAMES, or of EXTRA_NAMES as well."""


class TorchBackend:
    """A program on the CPU, run at whatever batch size comes."""

    instances = 1  # one batch uses all inference threads
    on_gpu = False
    extras_apart = True

    def __init__(self, program: Program, whole: Program | None = None) -> None:
        """`whole` also computes features and activation maps; `program` is the part of it without them."""
        self._program = program
        self._whole = whole or program

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`."""
        program = self._whole if extra_names(wanted) else self._program
        with torch.inference_mode():
            return Outputs(*(output.numpy() for output in program(torch.from_numpy(stack(images)))))

    run_beside = run

    def close(self) -> None:
        """See `Backend.close`."""


class TorchGpuBackend:
    """A program on a GPU, on a stream of its own."""

    instances = 1  # one stream
    on_gpu = True
    extras_apart = True

    def __init__(
        self,
        program: Program,
        found: Manifest,
        sizes: Sequence[int],
        device: torch.device,
        whole: Program | None = None,
    ) -> None:
        """Make the buffers of all `sizes` and run each.

        Args:
            program: on `device`.
            found: the model's manifest.
            sizes: of the buckets, ascending.
            device: a GPU; the CPU in tests, which then have neither streams nor graphs.
            whole: with features and activation maps, where they are wanted.

        Raises:
            OutOfMemoryError: not even a batch of one fits.
        """
        # What one stream does would be mixed up by two threads; the engine has one for each instance, others may not.
        self._lock = Lock()
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        programs = program, whole or program
        makers = [partial(_Bucket, programs, (size, *found.input_shape), device, stream) for size in sizes]
        self._instance = Instance(makers, found.name)

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`. More images than the largest bucket take several turns."""
        with self._lock:
            return self._instance.run(images, wanted)

    run_beside = run

    def close(self) -> None:
        """See `Backend.close`."""
        self._instance.free()


class _Bucket:
    """One batch size: an input and outputs that stay where they are, and the CUDA graph between them."""

    def __init__(
        self,
        programs: tuple[Program, Program],
        shape: tuple[int, ...],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self.size = shape[0]
        self._stream = stream
        self._graph: torch.cuda.CUDAGraph | None = None
        with self._on_stream():
            self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
            self._compute, self._compute_whole = (partial(program, self._images) for program in programs)
            # As torch asks for: what is chosen or compiled in the first runs must not be recorded.
            for _ in range(WARM_UPS):
                outputs = self._compute()
        if stream is not None:
            with self._on_stream():
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                    outputs = self._compute()
        self._outputs = outputs
        self._host = [torch.empty(one.shape, dtype=one.dtype, pin_memory=stream is not None) for one in outputs]

    def free(self) -> None:
        """See `Bucket.free`. Torch keeps the memory, for the buckets of other models."""
        self._graph = None
        del self._images, self._compute, self._compute_whole, self._outputs, self._host

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:
        """See `Bucket.run`. The rows after the images hold what an earlier batch left, and no one reads them.

        What has features or activation maps in it is computed without a graph, and takes that longer.
        """
        with self._on_stream():
            for row, image in zip(self._images, images, strict=False):
                if image.shape != row.shape:  # torch would repeat a smaller one
                    raise ValueError(f"an image has the shape {image.shape}, the model's is {tuple(row.shape)}")
                row.copy_(torch.from_numpy(image), non_blocking=True)
            if extra_names(wanted):
                outputs = [output.cpu().numpy() for output in self._compute_whole()]
                return Outputs(*(output[: len(images)] for output in outputs))
            if self._graph:
                self._graph.replay()
            else:
                self._outputs = self._compute()
            for host, output in zip(self._host, self._outputs, strict=True):
                host.copy_(output, non_blocking=True)
            if self._stream:
                self._stream.synchronize()
        return Outputs(*(host[: len(images)].numpy().copy() for host in self._host))

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Everything of torch's on the stream, and its errors as those that the instance knows."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"the GPU has no memory left for batches of {self.size}") from error
        except RuntimeError as error:
            if self._stream:
                _raise_if_lost(error)
            if cuda.is_out_of_memory(error):
                raise OutOfMemoryError(f"the GPU has no memory left for batches of {self.size}") from error
            raise


def load(found: Manifest, content: bytes, settings: Settings) -> TorchBackend | TorchGpuBackend:
    """Load a program on the first GPU, or on the CPU where torch finds none.

    Raises:
        OutOfMemoryError: not even a batch of one fits on the GPU.
    """
    # Of the process: torch knows these for no model alone, and takes TF32 for convolutions if it is not told.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.set_num_threads(settings.inference_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = place(content, device)
    program: Program = classes_alone(whole)
    if settings.torch_compile:
        program = _compiled(program, device, len(buckets(settings.max_batch)))
    if device.type == "cpu":
        log.info("%s runs on the CPU: torch %s finds no GPU", found.name, torch.__version__)
        return TorchBackend(program, whole)
    return TorchGpuBackend(program, found, buckets(settings.max_batch), device, whole)


def _compiled(program: Program, device: torch.device, sizes: int) -> Program:
    """Compile a program, on a GPU once for each of so many batch sizes."""
    from torch._dynamo import config

    # Torch does not compile for further sizes, and runs those as they are.
    config.recompile_limit = max(config.recompile_limit, sizes)
    compiled: Program = torch.compile(program, dynamic=device.type == "cpu")
    return compiled


def classes_alone(whole: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The part of a program, on the same parameters, without features and activation maps."""
    graph = torch.fx.Graph()
    outputs = graph.graph_copy(whole.graph, {})
    graph.output(tuple(outputs)[: len(OUTPUT_NAMES)])  # type: ignore[arg-type] # a program has several
    program = torch.fx.GraphModule(whole, graph)
    # The one module is the check of what comes in.
    program.graph.eliminate_dead_code(lambda node: node.is_impure() or node.op == "call_module")
    program.recompile()
    return program


def place(content: bytes, device: torch.device) -> torch.fx.GraphModule:
    """Load a program onto a device, its weights in the layout that convolutions are fastest in there."""
    exported = move_to_device_pass(torch.export.load(io.BytesIO(content)), device)
    module = exported.module()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # the annotation lacks it
    return module


def _raise_if_lost(cause: RuntimeError) -> None:
    """Find out, after an error, whether every later call will return it too.

    Raises:
        DeviceLostError: it will.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLostError(first_line(error)) from cause
