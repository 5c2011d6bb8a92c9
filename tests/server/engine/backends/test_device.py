"""What backends on a GPU share: the meaning of errors, and what happens when memory runs out."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from server.cuda import OutOfMemoryError, checked, page_locked
from server.engine.backends import Outputs
from server.engine.backends.device import Instance
from server.engine.classes import Extras
from server.errors import DeviceLostError
from tests.server.engine.backends.host_cuda import OK, OUT_OF_MEMORY, STICKY, HostCuda, cuda, host_cuda

__all__ = ["host_cuda"]

IMAGES = list(np.arange(7, dtype=np.uint8)[:, None])


class Bucket:
    """Runs images; unless it `fits`, every run fails for lack of memory."""

    def __init__(self, size: int, *, fits: bool = True) -> None:
        self.size = size
        self.fits = fits
        self.ran: list[int] = []
        self.freed = False

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:  # noqa: ARG002 no matter here
        assert 1 <= len(images) <= self.size
        if not self.fits:
            raise OutOfMemoryError("no memory")
        self.ran.append(len(images))
        stacked = np.stack(images)
        return Outputs(stacked.astype(np.float32), stacked.astype(np.int32), stacked.astype(np.float32))

    def free(self) -> None:
        self.freed = True


def instance(*buckets: Bucket) -> Instance:
    return Instance([partial(lambda bucket: bucket, bucket) for bucket in buckets], "a model")


def does_not_fit() -> Bucket:
    raise OutOfMemoryError("the GPU has no memory left for batches of 4")


def test_sticky_error_is_a_lost_device(host_cuda: HostCuda) -> None:
    host_cuda.lost = STICKY
    with pytest.raises(DeviceLostError, match="cudaErrorIllegalAddress"):
        checked((STICKY,))


@pytest.mark.usefixtures("host_cuda")
def test_error_that_passes_leaves_the_device_usable() -> None:
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        checked((cuda.cudaError_t.cudaErrorInvalidValue,))
    with pytest.raises(OutOfMemoryError):
        checked((OUT_OF_MEMORY, None))
    assert checked((OK, 5)) == 5


def test_batch_runs_in_the_smallest_bucket_that_holds_it() -> None:
    buckets = [Bucket(1), Bucket(2), Bucket(4), Bucket(8)]
    assert instance(*buckets).run(IMAGES[:3]).indices.tolist() == IMAGES[:3]
    assert [bucket.ran for bucket in buckets] == [[], [], [3], []]


def test_more_images_than_the_largest_bucket_keep_their_order() -> None:
    buckets = [Bucket(1), Bucket(2)]
    assert instance(*buckets).run(IMAGES).indices.tolist() == IMAGES
    assert [bucket.ran for bucket in buckets] == [[1], [2, 2, 2]]


def test_bucket_out_of_memory_is_given_up_and_its_batch_answered() -> None:
    buckets = [Bucket(1), Bucket(2), Bucket(4, fits=False), Bucket(8, fits=False)]
    ours = instance(*buckets)
    assert ours.run(IMAGES).indices.tolist() == IMAGES
    assert [bucket.freed for bucket in buckets] == [False, False, True, True]
    assert ours.run(IMAGES[:4]).indices.tolist() == IMAGES[:4]


def test_no_memory_for_one_image_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        instance(Bucket(1, fits=False), Bucket(2)).run(IMAGES[:1])


def test_model_is_loaded_with_the_buckets_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    small = Bucket(2)
    ours = Instance([lambda: small, does_not_fit], "a model")
    assert ours.run(IMAGES).indices.tolist() == IMAGES
    assert "a model runs batches of up to 2" in caplog.text


def test_model_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(OutOfMemoryError, match="cannot hold model m: serve fewer models"):
        Instance([does_not_fit], "m")


def test_slots_are_page_locked_while_the_engine_serves(host_cuda: HostCuda) -> None:
    memory = np.zeros(4096, np.uint8)
    with page_locked(memory):
        assert host_cuda.registered == {memory.ctypes.data: 4096}
    assert host_cuda.registered == {}


def test_memory_that_cannot_be_page_locked_is_said_once_and_served(
    host_cuda: HostCuda, caplog: pytest.LogCaptureFixture
) -> None:
    host_cuda.refuses_to_register = OUT_OF_MEMORY
    with page_locked(np.zeros(4096, np.uint8)):
        assert host_cuda.registered == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_cuda_bindings_slots_are_copied_and_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.cuda.runtime", None)
    with page_locked(np.zeros(4096, np.uint8)):
        pass
    assert "cuda-bindings is not installed" in caplog.text


def test_device_lost_before_it_serves_ends_the_engine(host_cuda: HostCuda) -> None:
    host_cuda.refuses_to_register = host_cuda.lost = STICKY
    with pytest.raises(DeviceLostError), page_locked(np.zeros(4096, np.uint8)):
        pass
