"""nvImageCodec in Pillow's place; here the code for GPUs runs on the CPU."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.manifest import Preprocessing
from server.cuda import find_gpu
from server.errors import Code, DeviceLostError, ServiceError
from server.images.decode import decode
from server.images.nvimagecodec import MAX_PIXELS, NvImageCodec, _address
from tests import tiny
from tests.server.images.pictures import (
    SAMPLES,
    TURNED_FROM_UPRIGHT,
    Pixels,
    damaged,
    difference,
    encoded,
    picture,
    preprocessing,
)
from tests.server.running import PATIENCE_S, RunningServer, until

nvimgcodec = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")

PHOTOS = sorted(Path("export/photos").glob("*.jpg"))


class Counted:
    """A decoder, and the outcomes of the photos that it was given."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.decoder = NvImageCodec("cpu", 1, self.outcomes.append)


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


def decoded(data: bytes, how: Preprocessing, decoder: NvImageCodec | None, crops: int = 1) -> Pixels:
    """uint8[crops, H, W, 3]."""
    outs = np.zeros((crops, *how.crop, 3), np.uint8)
    decode(data, how, list(outs), max_pixels=2 * MAX_PIXELS, jpeg_decoder=decoder)
    return outs


def outcome(data: bytes, decoder: NvImageCodec | None) -> bytes | Code:
    """The pixels, or the code of the refusal."""
    try:
        return decoded(data, preprocessing(), decoder).tobytes()
    except ServiceError as error:
        return error.code


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.stem)
def test_a_photo_gives_pillows_pixels(counted: Counted, photo: Path, interpolation: str) -> None:
    how = preprocessing(256, 224, interpolation)
    expected, found = (decoded(photo.read_bytes(), how, decoder) for decoder in (None, counted.decoder))
    assert difference(found, expected) <= 2  # Pillow may resample columns first
    assert counted.outcomes.pop() == "done"


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 127), st.integers(1, 127)),  # Pillow halves no picture whose short side is below 128
    mode=st.sampled_from(["L", "RGB"]),
    quality=st.integers(30, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    orientation=st.sampled_from(sorted(TURNED_FROM_UPRIGHT)),
    crops=st.sampled_from([1, 10]),
    seed=st.integers(0, 99),
)
def test_any_jpeg_gives_pillows_pixels(
    counted: Counted,
    size: tuple[int, int],
    mode: str,
    quality: int,
    subsampling: int,
    progressive: bool,
    orientation: int,
    crops: int,
    seed: int,
) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {} if mode == "L" else {"subsampling": subsampling}
    data = encoded(noise, "JPEG", exif=exif, quality=quality, progressive=progressive, **options)
    how = preprocessing(40, 32, "bilinear")
    expected, found = (decoded(data, how, decoder, crops) for decoder in (None, counted.decoder))
    assert difference(found, expected) <= 2
    assert counted.outcomes.pop() == "done"


@pytest.mark.parametrize("mode", ["centre", "squash", "pad"])
@pytest.mark.parametrize("orientation", [1, 5, 6])
def test_a_photo_is_fitted_to_any_crop_as_pillow_does_it(counted: Counted, mode: str, orientation: int) -> None:
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    )  # Pillow halves none of this size
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise, "JPEG", exif=exif)
    how = Preprocessing.model_validate(
        preprocessing(48).model_dump() | {"resize": 48, "crop": (24, 40), "crop_mode": mode, "mean": (0.4, 0.5, 0.6)}
    )
    expected, found = (decoded(data, how, decoder, 10) for decoder in (None, counted.decoder))
    assert difference(found, expected) <= 2
    assert counted.outcomes.pop() == "done"


@pytest.mark.parametrize("interpolation", ["lanczos", "nearest"])
def test_filters_that_have_no_graph_are_left_to_pillow(counted: Counted, interpolation: str) -> None:
    how, before = preprocessing(40, 32, interpolation), len(counted.outcomes)
    expected, found = (decoded(PHOTOS[0].read_bytes(), how, decoder) for decoder in (None, counted.decoder))
    np.testing.assert_array_equal(found, expected)
    assert len(counted.outcomes) == before


def test_a_large_photo_is_not_halved_and_differs_little_from_one_that_is(counted: Counted) -> None:
    expected, found = (
        decoded(encoded(picture(1200, 900), "JPEG"), preprocessing(), decoder) for decoder in (None, counted.decoder)
    )
    assert difference(found, expected) <= 2
    assert counted.outcomes.pop() == "done"


LEFT_TO_PILLOW = {
    "CMYK": encoded(picture().convert("CMYK"), "JPEG"),
    "stored as RGB": encoded(picture(), "JPEG", keep_rgb=True),
    "truncated": encoded(picture(200, 200), "JPEG")[:-500],
    "something behind it": encoded(picture(), "JPEG") + bytes(1000),
    "another behind its half": encoded(picture(200, 200), "JPEG")[:2000] + encoded(picture(), "JPEG"),
    "something between its segments": encoded(picture(), "JPEG").replace(b"\xff\xdb", b"??\xff\xdb", 1),
    "too large": encoded(picture(4097, 4097), "JPEG"),
    "PNG": encoded(picture(), "PNG"),
    "no image": b"no image",
}


@pytest.mark.parametrize("data", LEFT_TO_PILLOW.values(), ids=LEFT_TO_PILLOW)
def test_what_decoders_may_understand_otherwise_is_left_to_pillow(counted: Counted, data: bytes) -> None:
    assert outcome(data, counted.decoder) == outcome(data, None)
    assert counted.outcomes == []


def test_what_nvimagecodec_refuses_is_left_to_pillow(counted: Counted) -> None:
    broken = encoded(picture(64, 64), "JPEG").replace(b"\xff\xdb", b"\xff\xfe")  # no quantisation tables any more
    assert outcome(broken, counted.decoder) == outcome(broken, None) == Code.BROKEN_IMAGE
    assert counted.outcomes.pop() == "refused"


# Not the other way round: at a damaged scan, each decoder may stop or go on in its own way.
@settings(max_examples=500, deadline=None)
@given(data=damaged(sorted(name for name in SAMPLES if "JPEG" in name)))
def test_hostile_bytes_give_a_picture_wherever_they_do_with_pillow(counted: Counted, data: bytes) -> None:
    assert isinstance(outcome(data, None), Code) or not isinstance(outcome(data, counted.decoder), Code)


def test_odd_metadata_are_no_line_of_the_log(counted: Counted, capfd: pytest.CaptureFixture[str]) -> None:
    plain = encoded(picture(), "JPEG")
    data = plain[:2] + b"\xff\xe1\0\x02" + b"\xff\xe1\0\x0aExif\0\0??" + plain[2:]
    assert np.array_equal(decoded(data, preprocessing(), counted.decoder), decoded(data, preprocessing(), None))
    assert counted.outcomes.pop() == "done"
    assert capfd.readouterr() == ("", "")


def test_where_a_picture_lies_is_asked_without_leaving_memory_behind(counted: Counted) -> None:
    held = counted.decoder._decoder.decode(nvimgcodec.CodeStream(encoded(picture(), "JPEG")))
    addresses = {_address(held.__array_interface__) for _ in range(100)}
    blocks = sys.getallocatedblocks()
    addresses |= {_address(held.__array_interface__) for _ in range(1000)}
    assert len(addresses) == 1
    assert sys.getallocatedblocks() < blocks + 100


def test_photos_that_wait_are_decoded_together_and_each_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, gate, sizes = NvImageCodec("cpu", 1), threading.Event(), list[int]()
    decode_batch = decoder._decode

    def gated(photos: Any) -> None:
        sizes.append(len(photos))
        assert gate.wait(PATIENCE_S)
        decode_batch(photos)

    monkeypatch.setattr(decoder, "_decode", gated)
    greys = [Image.new("RGB", (40, 40), (level,) * 3) for level in range(0, 256, 32)]
    how = preprocessing(32, 32, "bilinear")
    with ThreadPoolExecutor(len(greys)) as pool:
        waiting = [pool.submit(decoded, encoded(grey, "JPEG"), how, decoder) for grey in greys]
        until(lambda: len(sizes) == 1 and sizes[0] + decoder._waiting.qsize() == len(greys))
        gate.set()
        levels = [int(future.result()[0, 16, 16, 0]) for future in waiting]
    assert levels == pytest.approx(range(0, 256, 32), abs=1)
    assert len(sizes) <= 2


def test_a_failure_of_the_gpu_is_logged_and_costs_nobody_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[str] = []
    decoder = NvImageCodec("cpu", 1, outcomes.append)

    def fail(_: Any) -> None:
        raise RuntimeError("CUDA: out of memory")

    monkeypatch.setattr(decoder, "_decode", fail)
    data = encoded(picture(), "JPEG")
    assert np.array_equal(decoded(data, preprocessing(), decoder), decoded(data, preprocessing(), None))
    assert outcomes == ["refused"]
    assert "out of memory" in caplog.text
    monkeypatch.undo()
    decoded(data, preprocessing(), decoder)
    assert outcomes == ["refused", "done"]


def test_a_process_that_has_lost_its_gpu_decodes_with_pillow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[str] = []
    decoder = NvImageCodec("cpu", 1, outcomes.append)
    data = encoded(picture(), "JPEG")

    def lost() -> None:
        raise DeviceLostError("CUDA: cudaErrorIllegalAddress")

    monkeypatch.setattr(decoder, "_raise_if_lost", lost)
    monkeypatch.setattr(decoder, "_decoder", Refusing())
    for _ in range(3):
        assert np.array_equal(decoded(data, preprocessing(), decoder), decoded(data, preprocessing(), None))
    assert outcomes == ["refused"]
    assert "this process has lost the GPU" in caplog.text


class Refusing:
    """Fails silently, as nvImageCodec does when CUDA fails."""

    def decode(self, streams: list[Any], **_: Any) -> list[None]:
        return [None for _ in streams]


def test_a_server_answers_as_with_pillow(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    answers = []
    for decoder in ("pillow", "nvimagecodec-cpu"):
        with RunningServer(tmp_path, decoder=decoder, decode_threads=16) as server:
            found = server.classify_all([photo.read_bytes() for photo in PHOTOS] * 10, 8)
            answers.append([response.json()["predictions"][0]["class_id"] for response in found])
            done = server.metric("serving_gpu_decodes_total", outcome="done")
            assert done == (0 if decoder == "pillow" else len(found))
    assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.stem)
def test_a_gpu_gives_nearly_pillows_pixels(photo: Path, interpolation: str) -> None:
    if find_gpu() is None or "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("no GPU, or no onnxruntime-gpu, here")
    outcomes: list[str] = []
    decoder = NvImageCodec("cuda", 2, outcomes.append)
    how = preprocessing(256, 224, interpolation)
    expected, found = (decoded(photo.read_bytes(), how, each) for each in (None, decoder))
    assert outcomes == ["done"]
    apart = np.abs(found.astype(int) - expected)
    assert apart.mean() < 1  # its inverse cosine transform and its colours are rounded in another way
    assert apart.max() <= 16
