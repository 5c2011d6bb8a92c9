"""A model is warm, measured and checked before it counts as loaded."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest, ManifestError, UnreadableError
from server.engine.backends import Outputs, WrongBackendError
from server.engine.backends.onnx import OnnxBackend
from server.engine.classes import Extras
from server.engine.loading import UnsuitableError, load
from server.refusals import Refusal
from server.repository import Model
from server.settings import ModelSettings, Settings
from tests import tiny


def test_every_bucket_is_measured_with_the_models_own_settings(tmp_path: Path) -> None:
    own = ModelSettings(max_batch=6, max_wait_ms=7)
    steps: list[None] = []
    warm = load(tmp_path, Model.of(tiny.write(tmp_path), own), Settings(), lambda: steps.append(None))
    assert list(warm.latency_s) == [1, 2, 4, 6]
    assert min(warm.latency_s.values()) > 0
    assert (warm.limits.max_batch, warm.limits.max_wait_s) == (6, 0.007)
    assert len(steps) == 5  # before the file is read, and before each bucket


def test_both_graphs_of_a_small_model_run_every_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: set[tuple[str, int, int]] = set()

    def note(way: str) -> None:
        run = getattr(OnnxBackend, way)

        def noted(backend: OnnxBackend, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
            ran.add((way, id(backend), len(images)))
            outputs: Outputs = run(backend, images, wanted)
            return outputs

        monkeypatch.setattr(OnnxBackend, way, noted)

    note("run")
    note("run_beside")
    warm = load(
        tmp_path, Model.of(tiny.write(tmp_path, extras=True)), Settings(max_batch=4, inference_threads=2, instances=2)
    )
    for way in ("run", "run_beside"):
        assert sorted(size for its, _, size in ran if its == way) == [1, 1, 2, 2, 4, 4]
    assert list(warm.latency_s) == [1, 2, 4]


@pytest.mark.parametrize("changes", [{"features": 4}, {"activation_maps": (32, 31)}], ids=str)
def test_features_and_maps_that_are_not_the_manifests_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = tiny.write(tmp_path, extras=True).model_copy(update=changes)
    with pytest.raises(ManifestError, match="features and activation maps are not as its manifest says"):
        load(tmp_path, Model.of(found), Settings())


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"num_classes": 200}], ids=str)
def test_a_graph_that_answers_otherwise_than_its_manifest_says_is_refused(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    found = tiny.write(tmp_path)
    labels = found.labels[: changes.get("num_classes", tiny.CLASSES)]
    with patch.object(OnnxBackend, "close") as close, pytest.raises(ManifestError, match=r"onnx: it does not rank"):
        load(tmp_path, Model.of(Manifest(**dict(found) | changes | {"labels": labels})), Settings())
    close.assert_called_once()


def test_a_file_that_hangs_is_given_up_and_used_once_it_has_been_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, may_end = Model.of(tiny.write(tmp_path)), threading.Event()
    read, reads = manifest.read_model_file, []

    def hang(folder: Path, found: Manifest) -> bytes:
        reads.append(folder)
        may_end.wait()
        return read(folder, found)

    monkeypatch.setattr(manifest, "read_model_file", hang)
    settings = Settings().model_copy(update={"stall_timeout_ms": 2.0})  # below what a server accepts
    try:
        for _ in range(2):
            with pytest.raises(UnreadableError, match=r"model.onnx: it was not read within 0.001 s"):
                load(tmp_path, model, settings)
    finally:
        may_end.set()
        for reader in [each for each in threading.enumerate() if each.name == "reader"]:
            reader.join()
    warm = load(tmp_path, model, Settings())
    assert (list(warm.latency_s), len(reads)) == ([1, 2, 4, 8], 1)


def test_settings_of_a_model_that_would_let_every_lone_request_expire_are_refused(tmp_path: Path) -> None:
    own = ModelSettings(max_wait_ms=200)
    with pytest.raises(ManifestError, match=r"serving.json: max_wait_ms 200 is not below timeout_ms 100"):
        load(tmp_path, Model.of(tiny.write(tmp_path), own), Settings(timeout_ms=100))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    found = tiny.write(tmp_path)
    path = tmp_path / "tiny" / "1" / found.file.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError):
        load(tmp_path, Model.of(found), Settings())


def test_a_file_for_vnni_is_refused_by_a_cpu_without_it(tmp_path: Path) -> None:
    model = Model.of(tiny.quantised_for(tmp_path, "x86-vnni"))
    with (
        patch.object(OnnxBackend, "close") as close,
        pytest.raises(UnsuitableError, match=r"export/quantize\.py tiny --target x86 makes one") as caught,
    ):
        load(tmp_path, model, Settings(), cpu_flags=lambda: {"sse2", "avx2"})
    close.assert_called_once()
    assert not Refusal.of(caught.value).is_tried_again
    assert load(tmp_path, model, Settings(), cpu_flags=lambda: {"sse2", "avx512_vnni"}).latency_s


def test_a_file_that_came_quantised_for_vnni_is_refused_with_what_to_do(tmp_path: Path) -> None:
    found = tiny.write(tmp_path).model_copy(update={"precision": "int8", "needs_vnni": True})
    with pytest.raises(UnsuitableError, match=r"import its FP32 file with \S*python export/from_onnx\.py"):
        load(tmp_path, Model.of(found), Settings(), cpu_flags=lambda: {"sse2", "avx2"})


@pytest.mark.parametrize("flags", [{"asimd", "i8mm"}, set()], ids=["no x86", "unknown"])
def test_a_cpu_that_may_do_as_well_is_not_refused(tmp_path: Path, flags: set[str]) -> None:
    model = Model.of(tiny.quantised_for(tmp_path, "x86-vnni"))
    assert load(tmp_path, model, Settings(max_batch=1), cpu_flags=lambda: flags).latency_s


def test_a_file_for_every_x86_needs_no_vnni(tmp_path: Path) -> None:
    model = Model.of(tiny.quantised_for(tmp_path, "x86"))
    assert load(tmp_path, model, Settings(max_batch=1), cpu_flags=lambda: {"sse2"}).latency_s


def test_a_file_that_is_bound_to_a_backend_is_refused_to_another(tmp_path: Path) -> None:
    model = Model.of(tiny.quantised_for(tmp_path, "x86", bound_to="openvino"))
    with pytest.raises(WrongBackendError, match=r"made for openvino.*leave out --backend onnx") as caught:
        load(tmp_path, model, Settings(backend="onnx"))
    assert not Refusal.of(caught.value).is_tried_again


def test_a_model_in_bfloat16_is_refused_by_a_cpu_without_it(tmp_path: Path) -> None:
    found = tiny.quantised_for(tmp_path, "x86", bound_to="openvino")
    model = Model.of(found.model_copy(update={"precision": "bf16"}))
    with (
        patch("server.engine.backends.load", return_value=Mock(on_gpu=False)),
        pytest.raises(UnsuitableError, match=r"CPU that multiplies in bfloat16.*serve tiny, its FP32") as caught,
    ):
        load(tmp_path, model, Settings(), cpu_flags=lambda: {"sse2", "avx512_vnni"})
    assert not Refusal.of(caught.value).is_tried_again
