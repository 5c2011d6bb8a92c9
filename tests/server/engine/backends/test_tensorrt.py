"""Decisions about an engine that need no GPU; and on a GPU, that it answers as its ONNX file does."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from models import manifest
from models.manifest import Compatibility, Flavour, Manifest, Profile, TensorRT
from server.cuda import Gpu, find_gpu
from server.engine import backends
from server.engine.backends import tensorrt
from server.engine.backends.tensorrt import EngineRefusedError
from server.settings import Settings
from tests import tiny

VERSION = "1.7.1.116"
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "sm89")
H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90")
H200 = Gpu("NVIDIA H200", "sm90")
NO_GPU = find_gpu() is None
NO_TENSORRT = not any(map(find_spec, ("tensorrt", "tensorrt_rtx")))


def describe(folder: Path, flavour: Flavour, *, on: Gpu, compatibility: tuple[Compatibility, ...] = ()) -> Manifest:
    record = TensorRT(
        flavour=flavour,
        version=VERSION,
        compute_capabilities=(on.compute_capability,),
        gpu=on.name if flavour == "tensorrt" else None,
        compatibility=compatibility,
        profiles=(Profile(smallest=1, largest=1), Profile(smallest=2, largest=2)),
        onnx_sha256="0" * 64,
    )
    return Manifest(**dict(tiny.write(folder, "engine")) | {"backend": "tensorrt", "tensorrt": record})


@pytest.mark.parametrize(
    ("flavour", "on", "compatibility", "gpu", "version"),
    [
        ("tensorrt_rtx", RTX4090, (), RTX4090, VERSION),
        ("tensorrt", H200, (), H200, VERSION),
        ("tensorrt", H200, ("same-compute-capability",), H100, VERSION),
        ("tensorrt", Gpu("NVIDIA A100", "sm80"), ("ampere+",), H100, VERSION),
        ("tensorrt", H200, ("version",), H200, "1.10.0.2"),
    ],
)
def test_engine_for_this_machine_passes(
    flavour: Flavour, on: Gpu, compatibility: tuple[Compatibility, ...], gpu: Gpu, version: str, tmp_path: Path
) -> None:
    tensorrt.check(describe(tmp_path, flavour, on=on, compatibility=compatibility), gpu, version)


@pytest.mark.parametrize(
    ("flavour", "on", "compatibility", "gpu", "version", "message"),
    [
        (
            "tensorrt_rtx",
            RTX4090,
            (),
            None,
            VERSION,
            "is a TensorRT for RTX engine for SM89; this machine has no NVIDIA",
        ),
        (
            "tensorrt_rtx",
            RTX4090,
            (),
            RTX4090,
            None,
            r"TensorRT for RTX is not installed: \S*python -m pip install tensorrt-rtx-cu13",
        ),
        ("tensorrt", H200, (), H200, None, r"TensorRT is not installed: \S*python -m pip install tensorrt==1.7.1.116"),
        ("tensorrt_rtx", RTX4090, (), H200, VERSION, "this machine's GPU, NVIDIA H200, is SM90"),
        ("tensorrt_rtx", RTX4090, (), RTX4090, "1.8.0.1", "built by version 1.7.1.116; this machine has 1.8.0.1"),
        ("tensorrt", H200, ("version",), H200, "1.7.0.9", "this machine has 1.7.0.9"),
        ("tensorrt", H200, ("version",), H200, "2.0.0.0", "this machine has 2.0.0.0"),
        ("tensorrt", H200, (), H100, VERSION, "built on NVIDIA H200; this machine's GPU is NVIDIA H100"),
        ("tensorrt", H200, ("ampere+",), Gpu("NVIDIA T4", "sm75"), VERSION, "is SM75"),
    ],
)
def test_engine_for_another_machine_is_refused_with_the_difference(
    flavour: Flavour,
    on: Gpu,
    compatibility: tuple[Compatibility, ...],
    gpu: Gpu | None,
    version: str | None,
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(EngineRefusedError) as refused:
        tensorrt.check(describe(tmp_path, flavour, on=on, compatibility=compatibility), gpu, version)
    assert re.search(message, str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_without_a_gpu_the_server_is_told_to_serve_the_onnx_model(tmp_path: Path) -> None:
    found = describe(tmp_path, "tensorrt_rtx", on=RTX4090)
    with pytest.raises(EngineRefusedError, match="no NVIDIA GPU that CUDA can use: serve the ONNX model"):
        backends.load(found, b"a plan", Settings())


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU or NO_TENSORRT, reason="no GPU, or no TensorRT, here")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_answers_as_its_onnx_file_does(precision: str, tmp_path: Path) -> None:
    from export import to_onnx, to_trt

    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path)]) == 0
    arguments = ["cifar_resnet20", "--precision", precision, "--name", "engine", "--repository", str(tmp_path)]
    assert to_trt.main(arguments) == 0
    images = list(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    loaded = []
    for name in ("cifar_resnet20", "engine"):
        found = manifest.read(tmp_path / name / "1")
        loaded.append(backends.load(found, manifest.read_model_file(tmp_path / name / "1", found), Settings()))
    onnx, engine = loaded
    for size in (1, 2, 3, 8, 20):  # alone, in a bucket, padded, in the largest, in several turns
        answer, expected = engine.run(images[:size]), onnx.run(images[:size])
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=0, atol=1e-2)
        assert answer.indices.dtype == np.int32
        assert answer.indices.shape == expected.indices.shape
