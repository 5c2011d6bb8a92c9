"""ONNX Runtime's providers: none is silently left out, and bound buffers answer as the plain session does.

Here the buffers lie in this machine's memory, and ONNX Runtime runs on the CPU; the code that binds, copies and retries
is the same as for a GPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest
from server import cuda
from server.cuda import Gpu, OutOfMemoryError
from server.engine import backends
from server.engine.backends import Outputs, onnx
from server.engine.backends.onnx import CUDA, TENSORRT, OnnxGpuBackend, ProviderRefusedError
from server.errors import DeviceLostError
from server.settings import Settings
from tests import tiny
from tests.server.engine.backends.host_cuda import STICKY, HostCuda, host_cuda

__all__ = ["host_cuda"]

CROP = 8
IMAGE_BYTES = CROP * CROP * 3
SIZES = (1, 2, 4, 8)
Bind = Callable[[Any], OnnxGpuBackend]
NO_GPU = cuda.find_gpu() is None


@pytest.fixture
def model(tmp_path: Path) -> tuple[Manifest, bytes]:
    found = tiny.write(tmp_path, crop=CROP, work=1)
    return found, manifest.read_model_file(tmp_path / found.name / "1", found)


@pytest.fixture
def session(model: tuple[Manifest, bytes]) -> ort.InferenceSession:
    return onnx._open(model[1], Settings(inference_threads=1), ["CPUExecutionProvider"])


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    """20 images of 20 different reds."""
    return [np.full((CROP, CROP, 3), 3 + 12 * n, np.uint8) for n in range(20)]


@pytest.fixture
def bind(model: tuple[Manifest, bytes]) -> Bind:
    return lambda session: OnnxGpuBackend(session, model[0], SIZES, 1, "cpu")


@pytest.mark.usefixtures("host_cuda")
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])  # alone, in a bucket, padded, in the largest, in several turns
def test_bound_buffers_answer_as_the_plain_session_does(
    session: ort.InferenceSession,
    model: tuple[Manifest, bytes],
    bind: Bind,
    images: list[NDArray[np.uint8]],
    count: int,
) -> None:
    ours = bind(session)
    ours.run(images[::-1][:count])  # leftovers of an earlier batch are in no answer
    answer, expected = ours.run(images[:count]), onnx.OnnxBackend(model[1], Settings()).run(images[:count])
    assert answer.indices[:, 0].tolist() == [image[0, 0, 0] for image in images[:count]]
    for ours_, theirs in zip(answer[:3], expected[:3], strict=True):
        assert (ours_.dtype, ours_.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-6)


def test_images_are_copied_from_where_they_lie(
    session: ort.InferenceSession, bind: Bind, images: list[NDArray[np.uint8]], host_cuda: HostCuda
) -> None:
    ours = bind(session)
    ours.run(images[:3])
    assert host_cuda.copied_from[:3] == [image.ctypes.data for image in images[:3]]


def test_buffers_are_allocated_once(
    session: ort.InferenceSession, bind: Bind, images: list[NDArray[np.uint8]], host_cuda: HostCuda
) -> None:
    ours = bind(session)
    before = set(host_cuda.allocated)
    for count in range(1, len(images)):
        ours.run(images[:count])
    assert set(host_cuda.allocated) == before


@pytest.mark.usefixtures("host_cuda")
def test_image_of_another_shape_is_an_error_and_the_next_is_answered(
    session: ort.InferenceSession, bind: Bind, images: list[NDArray[np.uint8]]
) -> None:
    ours = bind(session)
    with pytest.raises(ValueError, match="the model's is"):
        ours.run([images[0], images[1][:4]])
    with pytest.raises(ValueError, match="the model's is"):
        ours.run([images[0].transpose(1, 0, 2)])
    assert ours.run(images[:1]).indices[0, 0] == images[0][0, 0, 0]


def test_model_is_served_with_the_batch_sizes_that_the_memory_holds(
    session: ort.InferenceSession,
    bind: Bind,
    images: list[NDArray[np.uint8]],
    host_cuda: HostCuda,
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = IMAGE_BYTES + 2 * 4 * (tiny.TOP_K + tiny.TOP_K + tiny.CLASSES)  # outputs have buffers on both sides
    host_cuda.limit_bytes = 7 * row
    ours = bind(session)
    assert sum(map(len, host_cuda.allocated.values())) == 7 * row  # for 1, 2 and 4; those begun for 8 are freed
    assert "batches of up to 4" in caplog.text
    assert len(ours.run(images).indices) == len(images)
    host_cuda.allocated.clear()
    host_cuda.limit_bytes = row - 1
    with pytest.raises(OutOfMemoryError, match="serve fewer models"):
        bind(session)
    assert host_cuda.allocated == {}


class Failing:
    """A session that fails as ONNX Runtime does on a GPU: with an error that is only a text."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.get_inputs, self.get_outputs, self.io_binding = session.get_inputs, session.get_outputs, session.io_binding
        self.run_with_iobinding = session.run_with_iobinding

    def fail(self, text: str) -> None:
        def run(*_: object) -> None:
            raise ort.capi.onnxruntime_pybind11_state.Fail(text)

        self.run_with_iobinding = run


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "Failed to allocate memory for requested buffer of size 4096",
        "Available memory of 0 is smaller than requested bytes of 4096",
        "CUDNN_STATUS_ALLOC_FAILED",
    ],
)
@pytest.mark.usefixtures("host_cuda")
def test_memory_that_runs_out_while_running_is_told_apart(
    session: ort.InferenceSession, bind: Bind, images: list[NDArray[np.uint8]], text: str
) -> None:
    failing = Failing(session)
    ours = bind(failing)
    failing.fail(text)
    with pytest.raises(OutOfMemoryError):
        ours.run(images[:1])


def test_other_errors_stay_and_a_sticky_one_is_a_lost_device(
    session: ort.InferenceSession, bind: Bind, images: list[NDArray[np.uint8]], host_cuda: HostCuda
) -> None:
    failing = Failing(session)
    ours = bind(failing)
    failing.fail("Non-zero status code returned while running Conv node")
    with pytest.raises(Exception, match="Conv node"):
        ours.run(images[:1])

    def lose(*_: object) -> None:
        host_cuda.lost = STICKY
        raise ort.capi.onnxruntime_pybind11_state.Fail("CUDA failure 700: an illegal memory access")

    failing.run_with_iobinding = lose
    with pytest.raises(DeviceLostError):
        ours.run(images[:1])


@pytest.mark.parametrize("wanted", [(CUDA,), (CUDA, "CPUExecutionProvider"), ("NoSuchProvider",)])
def test_provider_that_is_not_installed_is_refused(model: tuple[Manifest, bytes], wanted: tuple[str, ...]) -> None:
    if wanted[0] in ort.get_available_providers():
        pytest.skip(f"{wanted[0]} is installed")
    with pytest.raises(ProviderRefusedError, match=f"no {wanted[0]}, but .*CPUExecutionProvider: set providers"):
        backends.load(*model, Settings(providers=wanted))


def test_provider_that_onnx_runtime_leaves_out_is_refused(model: tuple[Manifest, bytes]) -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip(f"{CUDA} is installed")
    with pytest.warns(UserWarning, match=CUDA), pytest.raises(ProviderRefusedError, match=f"cannot use all of {CUDA}"):
        onnx._open(model[1], Settings(providers=(CUDA,)), [CUDA])


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_provider_without_a_gpu_is_refused(model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    with pytest.raises(ProviderRefusedError, match="no NVIDIA GPU"):
        backends.load(*model, Settings(providers=(CUDA,)))


def test_cuda_that_came_as_packages_is_loaded_before_the_session_needs_it(
    model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def opened(*_: object) -> None:
        done.append("opened")
        raise InterruptedError

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: done.append("preloaded"))
    monkeypatch.setattr(cuda, "find_gpu", lambda: Gpu("a GPU", "sm90"))
    monkeypatch.setattr(cuda, "create_stream", lambda: 1)
    monkeypatch.setattr(onnx, "_open", opened)
    with pytest.raises(InterruptedError):
        backends.load(*model, Settings(providers=(CUDA,)))
    assert done == ["preloaded", "opened"]


def test_one_cuda_graph_for_all_batch_sizes_is_refused(
    model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA])
    with pytest.raises(ProviderRefusedError, match="one CUDA graph for all batch sizes"):
        backends.load(*model, Settings(providers=(TENSORRT, CUDA), cuda_graph=True))


def test_models_share_no_cache_of_engines(model: tuple[Manifest, bytes], tmp_path: Path) -> None:
    found, _ = model
    other = found.model_copy(update={"file": found.file.model_copy(update={"sha256": "1" * 64})})
    settings = Settings(repository=tmp_path)
    ours, theirs = (onnx._tensorrt_options(one, settings, 1, 8) for one in (found, other))
    assert ours["trt_engine_cache_path"] != theirs["trt_engine_cache_path"]
    assert Path(ours["trt_engine_cache_path"]).is_dir()
    assert ours["trt_profile_max_shapes"] == f"images:8x{CROP}x{CROP}x3"
    assert (ours["trt_fp16_enable"], ours["trt_int8_enable"]) == ("0", "0")


def test_repository_that_cannot_be_written_costs_the_cache_only(
    model: tuple[Manifest, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "trt_engine_cache_path" not in onnx._tensorrt_options(model[0], Settings(repository=file), 1, 8)
    assert "is built at every start" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU or CUDA not in ort.get_available_providers(), reason="no GPU, or no onnxruntime-gpu, here")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_cuda_answers_as_the_cpu_does(model_repository: Path, cuda_graph: bool) -> None:
    folder = model_repository / "efficientnet_lite0" / "1"
    found = manifest.read(folder)
    content = manifest.read_model_file(folder, found)
    pixels = list(np.random.default_rng(0).integers(0, 256, (20, *found.input_shape), np.uint8))
    ours = backends.load(found, content, Settings(providers=(CUDA,), cuda_graph=cuda_graph))
    plain = backends.load(found, content, Settings())
    for count in (1, 2, 3, 8, 20, 1):
        answer, expected = ours.run(pixels[:count]), plain.run(pixels[:count])
        np.testing.assert_allclose(answer.logits, expected.logits, rtol=0, atol=1e-3)
        assert isinstance(answer, Outputs)
    assert isinstance(cuda.find_gpu(), Gpu)
