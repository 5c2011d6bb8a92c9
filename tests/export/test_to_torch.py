import io
from pathlib import Path

import numpy as np
import pytest
import torch

from export import program, to_torch
from models import manifest
from server.engine import backends
from server.engine.classes import Extras
from server.settings import Settings


@pytest.mark.parametrize(("precision", "suffix"), [("fp32", ""), ("fp16", "-fp16")])
def test_program_passes_the_gate_and_is_served(
    tmp_path: Path, precision: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cifar_resnet20", "--random-weights", "--precision", precision, "--repository", str(tmp_path)]
    assert to_torch.main(arguments) == 0, capsys.readouterr().err
    folder = tmp_path / f"cifar_resnet20-torch{suffix}" / "1"
    known = manifest.read(folder)
    assert (known.backend, known.precision, known.opset, known.file.name) == ("torch", precision, None, "model.pt2")
    assert known.parity is not None
    assert known.parity.batch_sizes == (1, 3, 8)
    content = manifest.read_model_file(folder, known)
    assert str(Path(__file__).parents[2]).encode() not in content
    images = np.random.default_rng(0).integers(0, 256, (3, *known.input_shape), np.uint8)
    served = backends.load(known, content, Settings()).run(list(images))
    with torch.inference_mode():  # as anybody with only PyTorch can run it
        _, _, logits, features, maps = torch.export.load(io.BytesIO(content)).module()(torch.from_numpy(images))
    np.testing.assert_allclose(served.logits, logits.numpy(), rtol=0, atol=0.1 if suffix else 1e-4)
    assert (known.features, known.activation_maps, served.features) == (64, (8, 8), None)
    more = backends.load(known, content, Settings()).run(list(images), Extras.FEATURES | Extras.HEATMAP)
    assert more.features is not None
    assert more.activation_maps is not None
    np.testing.assert_allclose(more.features, features.numpy(), rtol=0, atol=0.1 if suffix else 1e-4)
    np.testing.assert_allclose(more.activation_maps, maps.numpy(), rtol=0, atol=0.5 if suffix else 1e-3)
    assert to_torch.main(arguments) == 0
    assert "already exported as version 1" in capsys.readouterr().out


def test_program_that_is_not_the_network_stays_out_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faithful = program.to_program

    class Forgetful(torch.nn.Module):
        """Swaps red and blue."""

        def __init__(self, complete: torch.nn.Module) -> None:
            super().__init__()
            self.complete = complete

        def forward(self, images: torch.Tensor) -> object:
            return self.complete(images.flip(3))

    monkeypatch.setattr(program, "to_program", lambda graph, crop: faithful(Forgetful(graph), crop))
    assert to_torch.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path / "repository")]) == 1
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_error_is_one_line_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_torch.main(["resnet51", "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: there is no network resnet51")
