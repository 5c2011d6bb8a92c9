"""An export is compared with the logits of a user's own model."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export import comparison, expect, from_onnx
from export.comparison import Answers
from export.expect import ExpectationError, Expected
from export.reference import reference_logits
from export.samples import PHOTOS, ImagesError, image_paths
from models import manifest
from models.manifest import Manifest, Preprocessing
from models.zoo import NETWORKS
from tests.export import onnx_files
from tests.export.conftest import Exported
from tests.reference import reference_pixels

PATHS = image_paths(PHOTOS)


def own_logits(exported: Exported, **changes: object) -> NDArray[np.float64]:
    """The logits that the network's author computes with Pillow and PyTorch."""
    preprocessing = Preprocessing.model_validate(exported.recipe.preprocessing.model_dump() | changes)
    pixels = np.stack([reference_pixels(path, preprocessing) for path in PATHS])
    return reference_logits(exported.network, pixels, preprocessing).astype(np.float64)


def expected(logits: NDArray[np.float64]) -> Expected:
    return Expected("logits.npy", tuple(PATHS), logits)


@pytest.fixture
def draft(exported: Exported) -> Manifest:
    return exported.draft


def test_logits_of_the_same_model_are_met_and_recorded(exported: Exported, draft: Manifest) -> None:
    found = expect.check(draft, exported.model, expected(own_logits(exported)))
    assert (found.source, found.images, found.top1_agreement) == ("logits.npy", 3, 1.0)
    assert 0 < found.logit_error < 0.03
    assert found.logit_error_allowed == expect.MAX_ERROR


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"std": (0.4, 0.4, 0.4)},
        {"resize": 40},
    ],
)
def test_other_preprocessing_is_noticed(exported: Exported, draft: Manifest, changes: dict[str, object]) -> None:
    with pytest.raises(ExpectationError, match=r"not the model of logits\.npy.*nothing was added.*--mean") as raised:
        expect.check(draft, exported.model, expected(own_logits(exported, **changes)))
    assert "\n" not in str(raised.value)


def test_another_order_is_noticed(exported: Exported, draft: Manifest) -> None:
    with pytest.raises(ExpectationError, match="would fit in another order"):
        expect.check(draft, exported.model, expected(own_logits(exported)[[1, 2, 0]]))


def test_another_number_of_classes_is_noticed(exported: Exported, draft: Manifest) -> None:
    with pytest.raises(ExpectationError, match="logits of 9 classes, the model has 10"):
        expect.check(draft, exported.model, expected(own_logits(exported)[:, :9]))


def test_constant_of_all_logits_matters_only_where_probabilities_are_independent(
    exported: Exported, draft: Manifest
) -> None:
    shifted = expected(own_logits(exported) + 3)
    expect.check(draft, exported.model, shifted)
    with pytest.raises(ExpectationError):
        expect.check(draft.model_copy(update={"activation": "sigmoid"}), exported.model, shifted)


def test_a_single_class_is_another_answer_on_the_other_side_of_one_half(
    exported: Exported, draft: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = draft.model_copy(update={"num_classes": 1, "activation": "sigmoid"})
    ours = np.array([9.0, 9.0, 0.1], np.float32).reshape(3, 1, 1)
    monkeypatch.setattr(comparison, "answers", lambda *_: [Answers(ours, "sigmoid")])
    found = expect.check(single, exported.model, expected(np.array([[9.0], [9.0], [-0.1]])))
    assert found.top1_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("others", "ending"),
    [(1, nullcontext()), (2, pytest.raises(ExpectationError, match="of 67% of the 3 images is another"))],
)
def test_at_most_one_best_class_is_another_where_logits_are_nearly_the_same(
    exported: Exported,
    draft: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    others: int,
    ending: AbstractContextManager[object],
) -> None:
    theirs = np.tile(np.array([*range(8), 8.99, 9.0]), (3, 1))
    ours = theirs.copy()
    ours[:others, 8] = 9.01
    monkeypatch.setattr(comparison, "answers", lambda *_: [Answers(ours[:, None].astype(np.float32), "softmax")])
    with ending:
        expect.check(draft, exported.model, expected(theirs))


def test_file_has_a_row_for_each_image(tmp_path: Path) -> None:
    logits = np.arange(30, dtype=np.float16).reshape(3, 10)
    np.save(tmp_path / "logits.npy", logits)
    found = expect.read(tmp_path / "logits.npy", PHOTOS)
    assert (found.source, found.paths, found.logits.dtype.name) == ("logits.npy", tuple(PATHS), "float64")
    assert np.array_equal(found.logits, logits)


def test_folder_has_logits_beside_each_image(tmp_path: Path) -> None:
    for index, path in enumerate(PATHS):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        np.save(tmp_path / f"{path.stem}.npy", np.full((1, 10), index, np.float32))
    found = expect.read(tmp_path, Path("nowhere"))
    assert [path.name for path in found.paths] == [path.name for path in PATHS]
    assert found.logits[:, 9].tolist() == [0, 1, 2]
    (tmp_path / f"{PATHS[1].stem}.npy").unlink()
    with pytest.raises(ExpectationError, match=rf"{PATHS[1].name} has no logits beside it: .*{PATHS[1].stem}\.npy"):
        expect.read(tmp_path, Path("nowhere"))


def test_expectations_are_told_apart(tmp_path: Path) -> None:
    logits = np.arange(30, dtype=np.float64).reshape(3, 10)
    (tmp_path / "other.jpg").write_bytes(PATHS[0].read_bytes() + b"\0")
    first = expected(logits)
    same = Expected("elsewhere.npy", first.paths, logits.copy())
    assert first.digest() == same.digest()
    others = [expected(logits + 1), Expected("logits.npy", (tmp_path / "other.jpg", *first.paths[1:]), logits)]
    assert len({one.digest() for one in (first, *others)}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 10)), r"has the shape \(2, 10\), but .* has 3 images"),
        (np.zeros(30), r"has the shape \(30,\)"),
        (np.full((3, 10), np.nan), "not finite"),
        (np.full((3, 10), 0.1), "has probabilities: save what the network gives before softmax"),
        (np.array(["a"] * 3), "holds no logits"),
        (np.array([None] * 3), "holds no logits"),
        (b"no array", "holds no logits"),
        (None, "No such file"),
    ],
)
def test_what_are_no_logits_is_said(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "logits.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, np.asarray(content), allow_pickle=True)
    with pytest.raises(ExpectationError, match=message) as raised:
        expect.read(path, PHOTOS)
    assert "\n" not in str(raised.value)


def test_images_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="has no images"):
        expect.read(tmp_path, PHOTOS)


def test_onnx_file_is_held_against_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, side = onnx_files.Small(), onnx_files.SIDE
    imagenet = NETWORKS["resnet18"].preprocessing.model_copy(update={"resize": side, "crop": (side, side)})
    pixels = np.stack([reference_pixels(path, imagenet) for path in PATHS])
    np.save(tmp_path / "logits.npy", reference_logits(network, pixels, imagenet))
    file = str(onnx_files.script(tmp_path / "theirs.onnx", network))
    arguments = [file, "--name", "theirs", "--repository", str(tmp_path), "--expect", str(tmp_path / "logits.npy")]
    assert from_onnx.main([*arguments, "--mean", "0.5", "--std", "0.5"]) == 1
    assert "not the model of logits.npy" in capsys.readouterr().err
    assert from_onnx.main(arguments) == 0
    known = manifest.read(tmp_path / "theirs" / "1")
    assert known.expectation is not None
    assert known.expectation.logit_error < 0.01
