import json
import shutil
from pathlib import Path

import pytest

from export import verify
from export.report import Report
from export.samples import PHOTOS
from models import manifest


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Report:
    assert verify.main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return Report.model_validate_json(capsys.readouterr().out)


def test_both_runtimes_answer_alike_on_real_photos(model_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(
        capsys, "efficientnet_lite0", "--repository", model_repository, "--backend", "openvino", "--seconds", "0.5"
    )
    reference, other = report.lines
    assert (reference.runtime, other.runtime) == ("onnx", "openvino")
    assert report.images == len(list(PHOTOS.glob("*.jpg")))
    assert other.top1_agreement == 1
    assert (
        0 < other.max_logit_error < 1e-4
    )  # of logits up to 15; both compute in float32, even where bfloat16 is faster
    assert (
        reference.size_bytes
        == other.size_bytes
        == (model_repository / "efficientnet_lite0/1/model.onnx").stat().st_size
    )
    assert set(other.images_per_s) == set(other.times_reference) == {1, 4, 8}
    assert reference.times_reference == {1: 1, 4: 1, 8: 1}
    assert other.accuracy == {}


def test_accuracy_is_reported_for_each_number_of_crops(
    shared: Path, cifar_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shared / "data" / "cifar10-test"
    arguments = ("cifar_resnet20", "--repository", cifar_repository, "--images", images)
    report = run(capsys, *arguments, "--crops", "1,10", "--seconds", "0")
    (line,) = report.lines
    assert report.images == 1000
    # The figure of test_accuracy.py. There is nothing to crop, so the ten crops are the image and its mirror image.
    assert line.accuracy[1].top1 == pytest.approx(80.4, abs=0.2)
    assert line.accuracy[10].top1 == pytest.approx(82.5, abs=0.2)
    assert line.images_per_s == {}


def test_report_is_one_table_whose_words_80_columns_do_not_cut(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(["efficientnet_lite0", "--repository", str(model_repository), "--seconds", "0.5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("fp32", "onnx", "100.0%", "3 images", "no accuracy: not every image's class is known"):
        assert word in shown
    for heading in ("precision", "though sure", "logit error", "images/s, batch 8"):
        assert heading in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet51",), "has no resnet51"),
        (("efficientnet_lite0", "--version", "7"), "has no efficientnet_lite0 version 7"),
        (("efficientnet_lite0", "--images", "models"), "models has no images"),
        (("efficientnet_lite0", "--labels-from", "folders"), "by its folder"),
    ],
)
def test_error_is_one_line_and_1(
    model_repository: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([*arguments, "--repository", str(model_repository)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_file_that_was_changed_is_not_verified(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model_repository, tmp_path / "copy")
    with (tmp_path / "copy" / "efficientnet_lite0" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert verify.main(["efficientnet_lite0", "--repository", str(tmp_path / "copy")]) == 1
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--crops", "5"), ("--backend", "caffe")])
def test_wrong_usage_is_2(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as done:
        verify.main(["efficientnet_lite0", *option])
    assert done.value.code == 2


def test_old_manifest_is_read(model_repository: Path) -> None:
    folder = model_repository / "efficientnet_lite0" / "1"
    known = json.loads((folder / manifest.FILE_NAME).read_text())
    for added in ("conversion", "tensorrt"):
        known.pop(added)
    assert manifest.Manifest.model_validate(known) == manifest.read(folder)
