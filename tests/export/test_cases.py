"""Every file of `../shared/cases/export/mk_cases.py` is accepted, or refused in one sentence that says what it is."""

import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from export import convert, to_onnx
from export.recipe import Recipe
from models import architectures
from tests.conftest import ROOT

SELF_SUPERVISED = "is self-supervised pre-training"
BY_ONNX = r"export it to ONNX where it was made, and give that file to export/from_onnx\.py"
COMES_IN = {
    *("averaged_model.pth", "bf16.pth", "binary_one_logit.pth", "bn_never_tracked.pth", "channels_last.pth"),
    *("classes21k.pth", "compiled.pth", "ddp.pth", "defaultdict.pth", "fc_dropout_linear.pth", "fc_nobias.pth"),
    *("fp16.pth", "fp64.pth", "grey.pth", "imagenet_example.pth.tar", "legacy_format.pth", "lightning.ckpt"),
    *("mmpretrain.pth", "mmpretrain_plain.pth", "numpy_array.pth", "numpy_scalar.pth", "pickle_named.safetensors"),
    *("posixpath.pth", "safetensors_named_pth.pth", "timm_train_ckpt.pth.tar", "torchvision_ref.pth"),
    *("tv.safetensors", "tv_sd.pth"),
}
TOLD = {
    "R-50.pkl": r"is a pickle that torch\.save did not write",
    "dino.pth": SELF_SUPERVISED,
    "dir.pth": "is a folder: give a file in it",
    "distill.pth": r"more than one network: teacher\., student\.: choose with --prefix teacher\.",
    "empty.pth": "is empty: copy it again",
    "empty.safetensors": "is empty: copy it again",
    "encoder_classifier.pth": "--head classifier uses that as the last layer",
    "exported.pt2": r"program of torch\.export: .*from_onnx\.py",
    "fastai_learner_save.pth": rf"as fastai builds them, not supported here: {BY_ONNX}",
    "fc_mlp.pth": rf"a head of several layers is not supported here: {BY_ONNX}",
    "html.pth": "is a web page",
    "html.safetensors": "is a web page",
    "lfs_pointer.pth": "is a Git LFS pointer.*git lfs pull",
    "lightning_ema.ckpt": r"more than one network: model\., ema_model\.module\.: choose with --prefix model\.",
    "moco_v2.pth.tar": SELF_SUPERVISED,
    "nan.pth": r"layer2\.0\.conv1\.weight is NaN or infinite",
    "negative_var.pth": r"layer2\.0\.bn1\.running_var is negative",
    "no_running_stats.pth": "without its own means and variances, a batch norm",
    "nofc.pth": r"has no last layer fc\.weight",
    "noperm.pth": "Permission denied|is no checkpoint",  # root may read it
    "quantized.pth": "is of a network that is quantised already",
    "torchscript.pt": r"is a TorchScript program: .*from_onnx\.py",
    "truncated.pth": "is cut off or damaged",
    "truncated.safetensors": "is cut off or damaged",
    "whole_model.pth": r"is a whole torchvision\.models\.resnet\.ResNet",
}
OPTIONS = {
    "binary_one_logit.pth": ("--num-classes", "1", "--activation", "sigmoid"),
    "classes21k.pth": ("--num-classes", "21841"),
    "grey.pth": ("--num-classes", "10", "--channels", "grey", "--mean", "0.5", "--std", "0.25"),
}
"""The flags that a file needs; without an entry, those for ten classes."""


class ReadyError(Exception):
    """The network has its parameters, which is all that these tests need; others test the export itself."""


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files, made with a ResNet-18 an eighth as wide, which takes a sixtieth of the time and disk space."""
    script = shared / "cases" / "export" / "mk_cases.py"
    folder = tmp_path_factory.mktemp("cases")
    known = sys.modules.keys() - ()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about forms that torch deprecates but people have
        narrow = replace(architectures.ARCHITECTURES["resnet18"], width=8)
        patch.setitem(architectures.ARCHITECTURES, "resnet18", narrow)
        patch.setenv("PROJECT", str(ROOT))
        patch.setattr(sys, "argv", [str(script), str(folder)])
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
        runpy.run_path(str(script), run_name="__main__")
        for stub in [name for name in sys.modules.keys() - known if name.partition(".")[0] == "torchvision"]:
            del sys.modules[stub]
        yield folder


@pytest.mark.slow
def test_every_file_comes_in_or_gets_one_true_sentence(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(recipe: Recipe, weights_file: Path, _images: Path) -> None:
        recipe.build(weights_file)
        raise ReadyError

    monkeypatch.setattr(convert, "_load", build)
    files = {path.name: path for path in cases.iterdir() if path.name != "labels"}
    assert files.keys() == COMES_IN | TOLD.keys()
    for name, path in sorted(files.items()):
        options = OPTIONS.get(name, ("--num-classes", "10"))
        arguments = ["resnet18", "--weights", str(path), *options, "--repository", str(tmp_path)]
        capsys.readouterr()
        if name in COMES_IN:
            with pytest.raises(ReadyError):
                pytest.fail(f"{name}: {to_onnx.main(arguments)} {capsys.readouterr().err}")
        else:
            assert to_onnx.main(arguments) == 1, name
            (sentence,) = capsys.readouterr().err.splitlines()
            assert re.match(rf"error: \S*{re.escape(name)}.*", sentence), sentence
            assert re.search(TOLD[name], sentence), sentence
