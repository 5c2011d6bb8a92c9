"""What every backend promises, whatever its runtime."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest
from server.engine import backends
from server.engine.backends import ONNX_BACKENDS, Backend, Outputs
from server.settings import Settings
from tests import tiny

TOLERANCE = 1e-6
"""For probabilities. In a larger batch a runtime may add in another order; the precision of float32 at 1 is 6e-8."""
SETTINGS = Settings(max_batch=8, inference_threads=2, instances=2)


@pytest.fixture(scope="module", params=[*ONNX_BACKENDS, "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, bytes]:
    """A model for the backend under test, and the bytes of its file."""
    repository = tmp_path_factory.mktemp(request.param)
    if request.param == "torch":
        found = tiny.write_torch(repository, crop=8)
    else:
        found = tiny.write(repository, crop=8, work=1).model_copy(update={"backend": request.param})
    return found, manifest.read_model_file(repository / found.name / str(found.version), found)


@pytest.fixture
def backend(model: tuple[Manifest, bytes]) -> Backend:
    return backends.load(*model, SETTINGS)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """uint8[8, 8, 8, 3]: eight noisy images of eight different reds."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 8, 8, 3), np.uint8)
    images[..., 0] = images[..., 0] // 16 + np.arange(8, dtype=np.uint8)[:, None, None] * 30
    return images


def assert_same(answer: Outputs, expected: Outputs) -> None:
    np.testing.assert_array_equal(answer.indices, expected.indices)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=0, atol=TOLERANCE)


def pick(outputs: Outputs, rows: slice) -> Outputs:
    return Outputs(outputs.probabilities[rows], outputs.indices[rows], outputs.logits[rows])


@pytest.mark.parametrize("size", range(1, SETTINGS.max_batch + 1))
def test_every_batch_size_has_the_shapes_and_types_of_the_contract(
    backend: Backend, images: NDArray[np.uint8], size: int
) -> None:
    probabilities, indices, logits = backend.run(list(images[:size]))[:3]
    assert probabilities.shape == indices.shape == (size, tiny.TOP_K)
    assert (logits.shape, logits.dtype.name) == ((size, tiny.CLASSES), "float32")
    assert (probabilities.dtype.name, indices.dtype.name) == ("float32", "int32")


def test_answers_are_right_and_best_first(backend: Backend, images: NDArray[np.uint8]) -> None:
    probabilities, indices, logits = backend.run(list(images))[:3]
    np.testing.assert_array_equal(indices[:, 0], np.rint(images[..., 0].mean((1, 2))))
    np.testing.assert_array_equal(logits.argmax(1), indices[:, 0])
    assert (np.diff(probabilities) <= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)  # the classes left out are next to impossible
    assert all(len(set(row)) == tiny.TOP_K for row in indices.tolist())


def test_an_image_has_the_same_answer_alone_and_anywhere_in_any_batch(
    backend: Backend, images: NDArray[np.uint8]
) -> None:
    alone = [backend.run(list(images[n : n + 1])) for n in range(len(images))]
    for size in range(2, len(images) + 1):
        for first in range(len(images)):
            order = [(first + n) % len(images) for n in range(size)]
            answer = backend.run(list(images[order]))
            for position, n in enumerate(order):
                assert_same(pick(answer, slice(position, position + 1)), alone[n])


def test_the_buffer_is_the_callers_again_and_the_answer_stays(backend: Backend, images: NDArray[np.uint8]) -> None:
    before = images.copy()
    answer = backend.run(list(images))
    np.testing.assert_array_equal(images, before)
    kept = copy.deepcopy(answer)
    images[...] = 0
    backend.run(list(images))
    assert_same(answer, kept)


def test_an_error_leaves_the_model_usable(backend: Backend, images: NDArray[np.uint8]) -> None:
    expected = backend.run(list(images))
    with pytest.raises(Exception):  # noqa: B017, PT011 whatever the runtime reports
        backend.run(list(images[..., :1]))
    assert_same(backend.run(list(images)), expected)


def test_threads_may_run_batches_at_one_time(backend: Backend, images: NDArray[np.uint8]) -> None:
    expected = [backend.run(list(images[: n + 1])) for n in range(2)]
    barrier = Barrier(2)

    def run(n: int) -> list[Outputs]:
        barrier.wait()
        return [backend.run_beside(list(images[: n + 1])) for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        for answers, wanted in zip(pool.map(run, range(2)), expected, strict=True):
            for answer in answers:
                assert_same(answer, wanted)


def test_a_file_that_is_no_model_is_refused(model: tuple[Manifest, bytes]) -> None:
    found, content = model
    with pytest.raises(Exception):  # noqa: B017, PT011 whatever the runtime reports
        backends.load(found, content[: len(content) // 2], SETTINGS)
