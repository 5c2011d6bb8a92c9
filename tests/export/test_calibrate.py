import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export import backends, calibrate, confidence, convert, repository, temperature, verify
from export.calibration import Calibrated, CalibrationError, Wanted
from export.precision import Fold
from export.precision import Wanted as Lower
from export.report import Report
from export.samples import PHOTOS, image_paths
from models import manifest
from models.intervals import clopper_pearson
from models.manifest import LOGITS_NAME, Confidence, HeldOut, Manifest, Miscalibration
from tests import tiny
from tests.export.conftest import Exported
from tests.export.drafts import draft, everything

SPREAD = 2.0
"""Standard deviation of true classes around the network's best: exp(-d^2 / T) is a normal density, T = 2 SPREAD^2."""


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 400 images whose classes are nearly known, black images, and a repository with version 2."""
    folder = tmp_path_factory.mktemp("calibrated")
    random = np.random.default_rng(7)
    for at in range(400):
        red = int(random.integers(40, 216))
        true = round(red + random.normal(0, SPREAD))
        write_image(folder / "images" / f"red {true}" / f"{at}-{red}.png", red)
    for red in range(8):
        write_image(folder / "black" / f"{red}.png", red)
    tiny.write(folder / "repository")
    done = run(folder, "--unknown", folder / "black", "--report", folder / "report", "--sets", "aps")
    assert done == 0
    return folder


def write_image(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (red, 0, 0)).save(path)


def run(folder: Path, *arguments: str | Path) -> int:
    given = ["tiny", "--images", folder / "images", "--repository", folder / "repository", *arguments]
    return calibrate.main([*map(str, given)])


def newest(folder: Path) -> tuple[Manifest, Confidence]:
    found = repository.get(folder / "repository", "tiny")
    assert found.confidence is not None
    return found, found.confidence


def test_temperature_is_the_one_that_the_images_were_made_with_and_is_in_the_graph(calibrated: Path) -> None:
    found, made = newest(calibrated)
    assert found.version == 2
    paths = image_paths(calibrated / "images")
    distances = np.array([int(path.stem.split("-")[1]) - int(path.parent.name.split()[1]) for path in paths])
    fitted_on = confidence.parts(len(paths)).temperature
    assert made.temperature == pytest.approx(2 * (distances[fitted_on] ** 2).mean(), rel=0.01)
    before = repository.get(calibrated / "repository", "tiny", 1)
    red = [np.full((32, 32, 3), value, np.uint8) for value in (60, 61, 200)]
    one, other = (backends.load(each, repository.read(calibrated / "repository", each)) for each in (before, found))
    raw, scaled = one.run(red), other.run(red)
    np.testing.assert_allclose(scaled.logits * np.float32(made.temperature), raw.logits, rtol=1e-5)
    assert (scaled.indices[:, 0] == raw.indices[:, 0]).all()
    assert (raw.probabilities[:, 0] > 0.5).all()
    # exp(-d^2 / T), for distances d of 0, 1, 1, 2, 2, ...
    sums = 1 + 2 * np.exp(-(np.arange(1, 40) ** 2) / made.temperature).sum()
    assert scaled.probabilities[:, 0] == pytest.approx(1 / sums, rel=1e-3)


def test_figures_are_of_images_that_nothing_was_fitted_on(calibrated: Path) -> None:
    _, made = newest(calibrated)
    held_out, sets, unknown = made.held_out, made.sets, made.unknown
    assert held_out is not None
    assert sets is not None
    assert unknown is not None
    assert (made.images, sets.images, unknown.images, held_out.images) == (100, 100, 100, 200)
    assert held_out.before.ece > 0.3 > 0.2 > held_out.after.ece
    assert held_out.after.nll < held_out.before.nll
    parts = confidence.parts(400)
    assert sorted(np.concatenate(parts)) == list(range(400))
    assert sets.method == "aps"
    for one in sets.held_out:
        low, high = clopper_pearson(round(one.covered * 200), 200, 1 - 1e-6)
        assert low - 0.1 <= one.coverage <= high
    assert unknown.known == pytest.approx(0.95, abs=0.06)
    assert (unknown.unknown_images, unknown.unknown_rejected) == (8, 1)
    assert unknown.auroc == {"max_logit": 1, "energy": 1}


def test_diagrams_are_drawn_as_pictures_and_in_a_page(calibrated: Path) -> None:
    folder = calibrated / "report"
    assert {path.name for path in folder.iterdir()} == {"report.html", "reliability.png", "risk_coverage.png"}
    for name in ("reliability.png", "risk_coverage.png"):
        with Image.open(folder / name) as drawn:
            assert min(drawn.size) > 400
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "expected calibration error" in page


def test_verify_tells_and_draws_both_curves(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tiny", "--repository", calibrated / "repository", "--images", calibrated / "images"]
    arguments += ["--seconds", "0", "--json", "--report", tmp_path / "drawn"]
    assert verify.main([*map(str, arguments)]) == 0
    (line,) = Report.model_validate_json(capsys.readouterr().out).lines
    assert line.miscalibration is not None
    assert line.curve is not None
    assert line.miscalibration.ece < 0.15
    assert sum(one.images for one in line.curve.bins) == 400
    share, risk = line.curve.risk_coverage[-1]
    assert share == 1
    assert 100 * risk == pytest.approx(100 - line.accuracy[1].top1)
    assert (tmp_path / "drawn" / "reliability.png").is_file()


def test_same_calibration_is_made_once(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--unknown", calibrated / "black", "--sets", "aps", "--version", "1")
    before = everything(calibrated / "repository")
    assert run(calibrated, *arguments) == 0
    assert "tiny is already calibrated as version 2" in capsys.readouterr().out
    assert everything(calibrated / "repository") == before


def test_a_calibrated_model_is_calibrated_anew_from_what_it_was(calibrated: Path, tmp_path: Path) -> None:
    shutil.copytree(calibrated, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, "--keep-known", "90") == 0
    found, made = newest(tmp_path)
    assert found.version == 3
    assert made.temperature == newest(calibrated)[1].temperature
    content = (tmp_path / "repository" / "tiny" / "3" / "model.onnx").read_bytes()
    assert content == (tmp_path / "repository" / "tiny" / "2" / "model.onnx").read_bytes()
    assert made.unknown is not None
    assert (made.unknown.score, made.unknown.auroc) == ("max_logit", {})


def test_one_that_is_no_better_is_refused_and_may_have_sets_without_a_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network's probabilities are right, so a temperature fitted on only 20 images makes them worse."""
    random = np.random.default_rng(7)
    distances = np.arange(-3, 4)
    probable = np.exp(-(distances**2.0))
    reds, off = random.integers(40, 216, 80), random.choice(distances, 80, p=probable / probable.sum())
    for at, (red, true) in enumerate(zip(reds, reds + off, strict=True)):
        write_image(tmp_path / "images" / f"red {true}" / f"{at}-{red}.png", int(red))
    tiny.write(tmp_path / "repository")
    before = everything(tmp_path)
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a temperature of 1.2 makes probabilities no better on 40 other images")
    assert error.count("\n") == 1
    assert everything(tmp_path) == before
    assert run(tmp_path, "--temperature", "1") == 0
    made = newest(tmp_path)[1]
    assert (made.temperature, made.images) == (1, 0)
    assert made.sets is not None


@pytest.mark.parametrize("after", [Miscalibration(ece=0.1, nll=1.1), Miscalibration(ece=0.3, nll=0.9)])
def test_both_measures_must_be_better(after: Miscalibration) -> None:
    held_out = HeldOut(images=40, before=Miscalibration(ece=0.2, nll=1.0), after=after)
    made = draft().model_copy(update={"confidence": Confidence(temperature=2.0, held_out=held_out)})
    nothing = np.zeros((0, 10), np.float32), np.zeros(0, np.int64)
    with pytest.raises(CalibrationError, match="makes probabilities no better on 40 other images"):
        Calibrated(draft(), made, b"", True, {}, *nothing).admit()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_files_of_lower_precision_keep_the_temperature_and_are_not_calibrated(
    exported: Exported, precision: str
) -> None:
    content = temperature.divided(exported.model, 3)
    record = confidence_of(exported.draft, content)
    paths = image_paths(PHOTOS)
    wanted = Lower("int8" if precision == "int8" else "fp16", "onnx", "gpu", ("minmax",), [Fold(paths, paths)], 0)
    made, raw = (
        convert.to_lower_precision(source, single, "lower", wanted)
        for source, single in ((record, content), (exported.draft, exported.model))
    )
    assert made.draft.confidence == Confidence(temperature=3)
    assert temperature.undivided(made.contents[0]) == temperature.undivided(temperature.divided(raw.contents[0], 3))
    images = list(exported.photos)
    one, other = (backends.load(each.draft, each.contents[0]).run(images).logits for each in (made, raw))
    np.testing.assert_allclose(one * 3, other, rtol=1e-5)


def confidence_of(draft: Manifest, content: bytes) -> Manifest:
    sets = confidence.fit_sets(np.eye(10, dtype=np.float32), np.arange(10), "lac")
    return draft.model_copy(
        update={
            "confidence": Confidence(temperature=3, sets=sets),
            "file": repository.model_file("model.onnx", content),
        }
    )


def test_temperature_is_taken_off_as_it_was_put_on(exported: Exported) -> None:
    once = temperature.divided(exported.model, 2)
    assert temperature.undivided(temperature.divided(once, 5)) == temperature.undivided(once)
    assert temperature.divided(temperature.divided(once, 5), 2) == once
    assert temperature.undivided(exported.model) == exported.model
    (division,) = (node for node in onnx.load_from_string(once).graph.node if LOGITS_NAME in node.output)
    assert division.op_type == "Div"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"activation": "sigmoid"}, (), "gives each class a probability of its own (sigmoid)"),
        (
            {"backend": "torch", "opset": None},
            (),
            "file of torch, which takes no temperature: calibrate and serve the ONNX",
        ),
        ({}, ("--keep-known", "99.9"), "to keep 99.9 % of the known takes 3996 images"),
        ({}, ("--labels-from", "none"), "the images' classes are not known: put each into a folder"),
        ({}, ("--images", "black"), "8 images are too few"),
        ({}, ("--version", "7"), "has no tiny version 7"),
    ],
)
def test_error_is_one_line_and_1(
    calibrated: Path,
    tmp_path: Path,
    changes: dict[str, object],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = tiny.write(tmp_path)
    changed = Manifest(**dict(found) | changes)
    (tmp_path / "tiny" / "1" / manifest.FILE_NAME).write_text(changed.model_dump_json())
    images = calibrated / "images"
    if "black" in arguments:
        images = tmp_path / "red 1"
        shutil.copytree(calibrated / "black", images)
        arguments = ()
    assert calibrate.main(["tiny", "--images", str(images), "--repository", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_what_determines_a_calibration_belongs_to_its_fingerprint(calibrated: Path) -> None:
    source = repository.get(calibrated / "repository", "tiny", 1)
    paths = image_paths(calibrated / "images")[:3]
    wanted = Wanted(paths, "auto", None, "lac", 0.95, None)
    others = [
        replace(wanted, paths=paths[1:]),
        replace(wanted, temperature=1.0),
        replace(wanted, method="aps"),
        replace(wanted, keep_known=0.9),
        replace(wanted, unknown=paths),
    ]
    prints = {each.fingerprint(source) for each in (wanted, *others)}
    assert len(prints) == 6
    assert replace(wanted).fingerprint(source) == wanted.fingerprint(source)


def test_temperature_that_does_not_exist_is_said_and_not_searched_for() -> None:
    right = np.eye(10, dtype=np.float32)
    with pytest.raises(confidence.ConfidenceError, match="right about all 10 images"):
        confidence.fit_temperature(right, np.arange(10))
    with pytest.raises(confidence.ConfidenceError, match="no better than chance"):
        confidence.fit_temperature(right, (np.arange(10) + 1) % 10)


def test_expected_calibration_error_is_that_of_the_paper() -> None:
    """Two bins: three images at 0.9, of which two are right, and one at 0.6 that is wrong."""
    probabilities = np.array([[0.9, 0.1]] * 3 + [[0.6, 0.4]])
    logits = np.log(probabilities).astype(np.float32)
    found = confidence.miscalibration(logits, np.array([0, 0, 1, 1]))
    assert found.ece == pytest.approx((3 * abs(2 / 3 - 0.9) + 0.6) / 4)
    assert found.nll == pytest.approx(-(2 * np.log(0.9) + np.log(0.1) + np.log(0.4)) / 4)
    assert confidence.risk_coverage(probabilities, np.array([0, 0, 1, 1])) == [
        (0.25, 0),
        (0.5, 0),
        (0.75, pytest.approx(1 / 3)),
        (1, 0.5),
    ]
