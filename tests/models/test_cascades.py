"""What a cascade's manifest may say, and how sure an answer is."""

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from models import manifest
from models.confidence import certainty, is_sure
from models.manifest import Activation, Cascade, Preprocessing, Rule, RuleKind
from tests import tiny


@pytest.mark.parametrize(
    ("kind", "ranked", "activation", "sure"),
    [
        ("margin", [0.7, 0.2, 0.1], "softmax", 0.5),
        ("probability", [0.7, 0.2, 0.1], "softmax", 0.7),
        ("entropy", [0.5, 0.5, 0.0], "softmax", -math.log(2)),
        ("entropy", [0.5, 0.5], "sigmoid", -2 * math.log(2)),  # two classes, each as likely as not
        ("entropy", [1.0, 0.0], "sigmoid", 0.0),
        # one class, yes or no
        ("margin", [0.3], "sigmoid", 0.4),
        ("probability", [0.3], "sigmoid", 0.7),
        ("entropy", [0.5], "sigmoid", -math.log(2)),
    ],
)
def test_how_sure_an_answer_is(kind: RuleKind, ranked: list[float], activation: Activation, sure: float) -> None:
    for given in (np.array(ranked), np.array([ranked, ranked], np.float32)):
        assert certainty(kind, given, activation) == pytest.approx(sure, abs=1e-6)


def test_a_rule_is_sure_from_its_threshold_on() -> None:
    answers = np.array([[0.6, 0.35], [0.6, 0.25]])
    assert is_sure(Rule(kind="margin", threshold=0.3), answers, "softmax").tolist() == [False, True]
    assert is_sure(Rule(kind="entropy", threshold=-0.66), answers, "softmax").tolist() == [False, True]


def test_a_cascade_is_read_as_it_was_written_and_has_no_file(tmp_path: Path) -> None:
    members = [tiny.write(tmp_path, "first"), tiny.write(tmp_path, "last")]
    written = tiny.write_cascade(tmp_path, "both", members)
    assert manifest.read_entry(tmp_path / "both" / "1") == written
    with pytest.raises(manifest.ManifestError, match="both is a cascade; name one of its members"):
        manifest.read(tmp_path / "both" / "1")


def test_all_members_but_the_last_have_a_rule_and_none_is_named_twice(tmp_path: Path) -> None:
    written = tiny.write_cascade(tmp_path, "both", [tiny.write(tmp_path, "first"), tiny.write(tmp_path, "last")])
    first, last = written.members
    for members, mistake in (
        ((first, first), "must have a rule"),
        ((last, last), "must have a rule"),
        ((last,), "at least 2"),
    ):
        with pytest.raises(ValidationError, match=mistake):
            Cascade.model_validate(written.model_dump() | {"members": members})
    twice = (first, last.model_copy(update={"name": first.name}))
    with pytest.raises(ValidationError, match="named twice"):
        Cascade.model_validate(written.model_dump() | {"members": twice})


def test_pixels_are_the_same_where_only_the_graph_does_something_else() -> None:
    usual = Preprocessing(resize=32, crop=(32, 32), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    shifted = usual.model_copy(update={"mean": (0.4,) * 3, "channels": "bgr"})
    assert usual.reads_as(shifted)
    assert not usual.reads_as(usual.model_copy(update={"interpolation": "bicubic"}))
    padded, other = (each.model_copy(update={"crop_mode": "pad"}) for each in (usual, shifted))
    assert padded.reads_as(padded)
    assert not padded.reads_as(other)  # filled with another colour
