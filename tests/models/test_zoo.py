import math
import subprocess
import sys

import pytest

from models import zoo
from models.architectures import ARCHITECTURES, TIMM
from models.weights import digest_prefix
from models.zoo import OfficialWeights, PackagedWeights
from tests.models import libraries


def test_every_entry_has_an_architecture() -> None:
    assert {entry.architecture for entry in zoo.NETWORKS.values()} == {*ARCHITECTURES, "efficientnet_lite0"}


def test_every_weights_name_carries_a_digest() -> None:
    for entry in zoo.NETWORKS.values():
        if isinstance(entry.weights, OfficialWeights):
            assert entry.weights.file_name.startswith(entry.architecture + "-")
            assert len(bytes.fromhex(digest_prefix(entry.weights.file_name))) == 4


def test_newest_weights_have_the_bare_name() -> None:
    v1, v2 = zoo.NETWORKS["resnet50@v1"], zoo.NETWORKS["resnet50"]
    assert (v1.weights, v1.preprocessing.resize) == (OfficialWeights("resnet50-0676ba61.pth"), 256)
    assert (v2.weights, v2.preprocessing.resize) == (OfficialWeights("resnet50-11ad3fa6.pth"), 232)
    for name in (name for name in zoo.NETWORKS if name.endswith("@v1")):
        newest, first = zoo.NETWORKS[name.removesuffix("@v1")].accuracy, zoo.NETWORKS[name].accuracy
        assert newest is not None
        assert first is not None
        assert newest.top1 > first.top1


def test_timms_networks_have_timms_preprocessing() -> None:
    timm = libraries.timm()
    for name in TIMM:
        theirs, ours = timm.get_pretrained_cfg(name), zoo.NETWORKS[name].preprocessing
        assert (theirs.input_size[1:], theirs.interpolation) == (ours.crop, ours.interpolation), name
        assert (theirs.mean, theirs.std, theirs.crop_mode) == (ours.mean, ours.std, "center"), name
        assert math.floor(ours.crop[0] / theirs.crop_pct) == ours.resize, name


def test_default_is_official_and_its_stand_in_is_installed() -> None:
    assert isinstance(zoo.NETWORKS[zoo.DEFAULT].weights, OfficialWeights)
    assert isinstance(zoo.NETWORKS[zoo.OFFLINE_DEFAULT].weights, PackagedWeights)


@pytest.mark.parametrize("pixel", [0, 127, 255])
def test_efficientnet_lite0_normalisation_is_that_of_its_training(pixel: int) -> None:
    preprocessing = zoo.NETWORKS["efficientnet_lite0"].preprocessing
    normalised = (pixel / 255 - preprocessing.mean[0]) / preprocessing.std[0]
    assert normalised == pytest.approx((pixel - 127) / 128, abs=1e-12)


def test_zoo_and_downloads_need_no_torch() -> None:
    code = "import models.zoo, models.weights, models.labels, models.manifest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
