from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.samples import CROPS, PHOTOS, ImagesError, classes, image_paths, photos, pixels, readable
from models.manifest import CropCount, Label, Preprocessing
from models.zoo import NETWORKS
from server.images.decode import decode
from server.settings import Settings
from tests.reference import reference_pixels
from tests.server.images.pictures import TURNED_FROM_UPRIGHT, as_stored

IMAGENET = NETWORKS["resnet50"].preprocessing

LABELS = (
    Label(label="cat", wordnet_id="n1"),
    Label(label="crane", wordnet_id="n2"),
    Label(label="crane", wordnet_id="n3"),
)


def served(data: bytes, preprocessing: Preprocessing, crops: CropCount) -> NDArray[np.uint8]:
    """The crops that the server makes of an upload."""
    outs = np.zeros((crops, *preprocessing.crop, 3), np.uint8)
    decode(data, preprocessing, list(outs), max_pixels=Settings().max_pixels)
    return outs


@pytest.fixture(scope="module")
def as_people_have_them(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo in each orientation that phones store, large enough for the decoder to halve; a transparent drawing."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(PHOTOS / "cat.jpg") as cat:
        upright = cat.convert("RGB").resize((1200, 900))
    for orientation in TURNED_FROM_UPRIGHT:
        stored, exif = as_stored(upright, orientation)
        stored.save(folder / f"turned-{orientation}.jpg", exif=exif)
    drawing = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    drawing.paste((200, 30, 30, 255), (100, 50, 200, 150))
    drawing.save(folder / "drawing.png")
    pillow_heif.from_pillow(upright.resize((400, 300))).save(folder / "phone.heic")
    return folder


PADDED = IMAGENET.model_copy(update={"resize": 224, "crop": (160, 224), "crop_mode": "pad", "interpolation": "lanczos"})
WANTED = {name: NETWORKS[name].preprocessing for name in ("efficientnet_lite0", "resnet50", "cifar_resnet20")} | {
    "padded": PADDED,
    "squashed": PADDED.model_copy(update={"crop_mode": "squash", "interpolation": "nearest"}),
}


@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize("name", WANTED)
def test_photos_are_read_as_the_server_reads_them(as_people_have_them: Path, name: str, crops: CropCount) -> None:
    preprocessing = WANTED[name]
    paths = [*image_paths(as_people_have_them), *image_paths(PHOTOS)]
    for path, images in zip(paths, pixels(paths, preprocessing, crops), strict=True):
        np.testing.assert_array_equal(images, served(path.read_bytes(), preprocessing, crops), str(path))


def test_photos_are_upright_and_what_is_transparent_is_white(as_people_have_them: Path) -> None:
    preprocessing = NETWORKS["resnet50"].preprocessing
    paths = image_paths(as_people_have_them)
    read = dict(zip((path.name for path in paths), pixels(paths, preprocessing)[:, 0].astype(int), strict=True))
    assert read["drawing.png"][0, 0].tolist() == [255, 255, 255]
    assert read["drawing.png"][112, 112].tolist() == [200, 30, 30]
    for orientation in TURNED_FROM_UPRIGHT:
        assert np.abs(read[f"turned-{orientation}.jpg"] - read["turned-1.jpg"]).mean() < 1  # JPEG's own error


@pytest.mark.parametrize("crops", CROPS)
def test_centre_crop_is_nearly_the_references(crops: CropCount) -> None:
    preprocessing = NETWORKS["efficientnet_lite0"].preprocessing
    paths = image_paths(PHOTOS)
    for path, images in zip(paths, pixels(paths, preprocessing, crops), strict=True):
        error = np.abs(images[0].astype(int) - reference_pixels(path, preprocessing))
        assert error.mean() < 0.2, path  # vector instructions, with rounding between the two passes


def test_ten_crops_are_centre_corners_and_their_mirrors(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    preprocessing = Preprocessing(resize=8, crop=4, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    crops = pixels([tmp_path / "noise.png"], preprocessing, 10)[0]
    expected = [noise[2:6, 4:8], noise[:4, :4], noise[:4, -4:], noise[-4:, :4], noise[-4:, -4:]]
    np.testing.assert_array_equal(crops[:5], expected)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.jpg", "n2/2.jpg"], [0, 1]),
        (["n1_cat.jpg", "photos/n3.jpg", "n2_0001.JPEG"], [0, 2, 1]),
        (["cat/1.jpg", "crane/2.jpg"], None),  # which of the two cranes?
        (["cat/1.jpg", "dog/2.jpg"], None),
    ],
)
def test_class_is_known_by_folder_or_wordnet_id(names: list[str], expected: list[int] | None) -> None:
    known = classes([Path(name) for name in names], LABELS, "auto")
    assert (None if known is None else known.tolist()) == expected


def test_known_classes_need_not_be_used() -> None:
    assert classes([Path("cat/1.jpg")], LABELS, "none") is None


def test_class_that_must_be_known_and_is_not_is_an_error() -> None:
    with pytest.raises(ImagesError, match=r"dog/2\.jpg"):
        classes([Path("cat/1.jpg"), Path("dog/2.jpg")], LABELS, "folders")


def test_bundled_photos_are_real_and_few_bytes() -> None:
    assert len(photos(PHOTOS, IMAGENET)) == 3
    assert sum(path.stat().st_size for path in PHOTOS.iterdir()) < 110_000


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImagesError, match="has no images"):
        photos(tmp_path, IMAGENET)


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImagesError, match=r"broken\.jpg"):
        photos(tmp_path, IMAGENET)


def test_images_that_cannot_be_read_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImagesError, match="has no image that can be read"):
        readable(tmp_path)
    (tmp_path / "cut.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:5000])
    (tmp_path / "whole.jpg").symlink_to(PHOTOS / "cat.jpg")
    capsys.readouterr()
    assert readable(tmp_path) == [tmp_path / "whole.jpg"]
    told = capsys.readouterr()
    assert told.out == ""  # which may be for a program
    broken, cut = told.err.splitlines()
    assert broken.startswith(f"left out: {tmp_path}/broken.jpg cannot be read as an image: ")
    assert cut.startswith(f"left out: {tmp_path}/cut.jpg ")
