"""PyTorch's own behaviour; `test_contract.py` has what every backend promises.

Without a GPU the buckets' tensors lie in this machine's memory, and everything but streams and CUDA graphs is tested.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest
from server.cuda import OutOfMemoryError
from server.engine import backends
from server.engine.backends.torch import Program, TorchBackend, TorchGpuBackend, place
from server.engine.scheduler import buckets
from server.settings import Settings
from tests import tiny

ROOT = Path(__file__).parents[4]
CROP = 8
SIZES = (1, 2, 4, 8)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, bytes]:
    repository = tmp_path_factory.mktemp("torch")
    found = tiny.write_torch(repository, crop=CROP)
    return found, manifest.read_model_file(repository / found.name / "1", found)


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    """20 images of 20 different reds."""
    return [np.full((CROP, CROP, 3), 3 + 12 * n, np.uint8) for n in range(20)]


@pytest.fixture
def plain(model: tuple[Manifest, bytes]) -> TorchBackend:
    return TorchBackend(on(model[1], "cpu"))


def on(content: bytes, device: str) -> Program:
    return place(content, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])  # alone, in a bucket, padded, in the largest, in several turns
def test_buckets_answer_as_the_plain_program_does(
    model: tuple[Manifest, bytes], plain: TorchBackend, images: list[NDArray[np.uint8]], count: int, device: str
) -> None:
    ours = TorchGpuBackend(on(model[1], device), model[0], SIZES, torch.device(device))
    ours.run(images[::-1][:count])  # leftovers of an earlier batch are in no answer
    answer, expected = ours.run(images[:count]), plain.run(images[:count])
    assert answer.indices[:, 0].tolist() == [image[0, 0, 0] for image in images[:count]]
    for one, other in zip(answer[:3], expected[:3], strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    ours.close()


@pytest.mark.parametrize("device", DEVICES)
def test_image_of_another_shape_is_an_error_and_the_next_is_answered(
    model: tuple[Manifest, bytes], images: list[NDArray[np.uint8]], device: str
) -> None:
    ours = TorchGpuBackend(on(model[1], device), model[0], SIZES, torch.device(device))
    with pytest.raises(ValueError, match="the model's is"):
        ours.run([images[0][:, :, :1]])
    assert ours.run(images[:1]).indices[0, 0] == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "CUDA", "cuBLAS"],
)
def test_bucket_without_memory_leaves_the_smaller_ones(
    model: tuple[Manifest, bytes], images: list[NDArray[np.uint8]], error: Exception
) -> None:
    program = on(model[1], "cpu")

    def cramped(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(batch) > 2:
            raise error
        return program(batch)

    ours = TorchGpuBackend(cramped, model[0], SIZES, torch.device("cpu"))
    assert ours.run(images[:5]).indices[:, 0].tolist() == [3, 15, 27, 39, 51]
    with pytest.raises(OutOfMemoryError, match="cannot hold model tiny"):
        TorchGpuBackend(cramped, model[0], (4, 8), torch.device("cpu"))


def test_compiling_goes_on_until_the_largest_batch_size(
    model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo import config

    monkeypatch.setattr(torch, "compile", lambda program, **_: program)
    with config.patch(recompile_limit=8):
        backends.load(*model, Settings(torch_compile=True, max_batch=256)).close()
        assert config.recompile_limit == len(buckets(256)) == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from imports of the compiler
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiled_program_has_the_same_answers(
    model: tuple[Manifest, bytes], plain: TorchBackend, images: list[NDArray[np.uint8]]
) -> None:
    compiled = backends.load(*model, Settings(torch_compile=True, max_batch=4))
    for count in (2, 3):
        for one, other in zip(compiled.run(images[:count])[:3], plain.run(images[:count])[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    compiled.close()


def test_server_without_torch_refuses_the_model_in_one_line(tmp_path: Path) -> None:
    tiny.write_torch(tmp_path / "repository")
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(tmp_path / "repository")]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "torch is not installed" in done.stderr
