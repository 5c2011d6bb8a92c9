"""OpenVINO's own behaviour; `test_contract.py` has what every backend promises."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest
from server import cpus
from server.engine import backends
from server.engine.backends.onnx import OnnxBackend
from server.engine.backends.openvino import OpenVinoBackend, PrecisionError
from server.images.decode import decode
from server.settings import Settings
from tests import tiny

PHOTOS = sorted((Path(__file__).parents[4] / "export" / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def model(model_repository: Path) -> tuple[Manifest, bytes]:
    folder = model_repository / "efficientnet_lite0" / "1"
    found = manifest.read(folder)
    return found, manifest.read_model_file(folder, found)


@pytest.fixture(scope="module")
def photos(model: tuple[Manifest, bytes]) -> NDArray[np.uint8]:
    found, _ = model
    pixels = np.empty((len(PHOTOS), *found.input_shape), np.uint8)
    for path, out in zip(PHOTOS, pixels, strict=True):
        decode(path.read_bytes(), found.preprocessing, [out], max_pixels=10_000_000)
    return pixels


def test_photos_have_the_answers_of_onnx_runtime(model: tuple[Manifest, bytes], photos: NDArray[np.uint8]) -> None:
    answers, expected = (
        backends.load(*model, Settings(backend=name, inference_threads=2)).run(list(photos))
        for name in backends.ONNX_BACKENDS
    )
    np.testing.assert_array_equal(answers.indices[:, :5], expected.indices[:, :5])
    # Both in float32 and differing by 1e-6 of the largest logit; bfloat16 (8 bits) would differ by 1e-2.
    np.testing.assert_allclose(answers.logits, expected.logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(answers.probabilities, expected.probabilities, rtol=0, atol=1e-5)


def test_setting_chooses_what_runs_an_onnx_file(tmp_path: Path) -> None:
    found = tiny.write(tmp_path, work=1)
    content = manifest.read_model_file(tmp_path / found.name / "1", found)
    other = found.model_copy(update={"backend": "openvino"})
    for named, setting, expected in [
        (found, None, OnnxBackend),
        (other, None, OpenVinoBackend),
        (found, "openvino", OpenVinoBackend),
        (other, "onnx", OnnxBackend),
    ]:
        assert isinstance(backends.load(named, content, Settings.model_validate({"backend": setting})), expected)


def test_bfloat16_is_computed_where_the_manifest_says_so_and_nowhere_else(
    model: tuple[Manifest, bytes], photos: NDArray[np.uint8]
) -> None:
    if not cpus.flags() & cpus.BF16:
        pytest.skip("this CPU has no bfloat16")
    found, content = model
    settings = Settings(backend="openvino", inference_threads=2)
    images = list(photos[:1])
    plain, short = (
        backends.load(one, content, settings).run(images).logits
        for one in (found, found.model_copy(update={"precision": "bf16", "backend": "openvino"}))
    )
    error = np.abs(short - plain).max() / np.abs(plain).max()
    assert 1e-4 < error < 0.1


def test_another_precision_than_was_asked_for_is_an_error(tmp_path: Path) -> None:
    found = tiny.write(tmp_path, work=1)
    content = manifest.read_model_file(tmp_path / found.name / "1", found)
    with (
        patch.object(openvino.CompiledModel, "get_property", return_value=openvino.Type.bf16),
        pytest.raises(PrecisionError, match="would compute it in bf16 on this machine, not in f32: serve"),
    ):
        backends.load(found, content, Settings(backend="openvino"))


FREED_ELSEWHERE = """
import signal, sys, threading
from pathlib import Path

from models import manifest
from server.engine import backends
from server.settings import Settings

folder = Path(sys.argv[1])
found = manifest.read(folder)
held = [backends.load(found, manifest.read_model_file(folder, found), Settings(backend="openvino"))]
free = threading.Thread(target=held.clear)
free.start()
free.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_process_handles_signals_after_another_thread_has_freed_a_model(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=1)
    command = [sys.executable, "-c", FREED_ELSEWHERE, str(tmp_path / "tiny" / "1")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "handled\n"
