"""The deepest network of the papers, exported by the real command and served, classifies an image."""

from pathlib import Path

import pytest

from tests.conftest import SLOWEST_S, run_to_onnx
from tests.server.running import RunningServer, red_image


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)  # many minutes beside other programs
def test_1001_layers_are_exported_and_answer(tmp_path: Path) -> None:
    done = run_to_onnx("cifar_preresnet1001", "--random-weights", "--repository", tmp_path)
    assert done.returncode == 0, done.stderr
    with RunningServer(tmp_path) as server:
        answer = server.classify(red_image(200))
    assert answer.status_code == 200, answer.text
    assert answer.json()["random_weights"]
    assert len(answer.json()["predictions"]) == 5
