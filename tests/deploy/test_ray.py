"""The routes under Ray Serve: as a whole if Ray is installed (`make ray-test`), in parts everywhere."""

import asyncio
import json
import math
import multiprocessing
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from deploy.ray.engine import catalogue_of, check_gpus
from models.manifest import CropCount, ManifestError, Preprocessing
from server import metrics, repository
from server.engine.classes import Classes
from server.errors import ServiceError
from server.settings import Settings
from tests import tiny
from tests.server.running import ROOT, red_image

PYTHON = ROOT / ".venv" / "ray" / "bin" / "python"
REPOSITORY = ROOT / "model_repository"


def test_the_config_sets_what_are_settings() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    (application,) = config["applications"]
    assert set(application["args"]["settings"]) <= set(Settings.model_fields)
    (deployment,) = application["deployments"]
    assert f"class {deployment['name']}:" in (ROOT / "deploy" / "ray" / "app.py").read_text()
    assert deployment["autoscaling_config"]["target_ongoing_requests"] <= deployment["max_ongoing_requests"]


def test_gpus_that_a_replica_would_leave_idle_are_refused() -> None:
    for enough in (0, 0.25, 1):
        check_gpus(enough)
    with pytest.raises(ValueError, match="uses one GPU, not 2: set num_gpus: 1"):
        check_gpus(2.0)


def _classified(folder: Path, images: list[bytes], within_s: float, **settings: Any) -> list[Any]:
    """The engine's answers to images sent at once: the best class and its batch, or the code of the error."""
    metrics.use_directory(folder, ["replica"])
    from deploy.ray.engine import LocalEngine

    async def ask() -> list[Any]:
        catalogue = repository.scan(folder)
        (model,) = catalogue.models.values()
        measured = metrics.Metrics("replica")
        engine = LocalEngine(Settings(repository=folder, **settings), catalogue, measured, measured.pending.set)
        deadline_s = time.monotonic() + within_s
        asked = [engine.classify(image, model, 1, deadline_s) for image in images]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        engine.check_admission(Settings(**settings).queue_size, math.inf)  # every place is free again
        engine.connected = False
        with pytest.raises(ServiceError, match="device is lost"):
            engine.check_admission()
        engine.close()
        return [_told(answer) for answer in answers]

    return asyncio.run(ask())


def _told(answer: list[Classes] | BaseException) -> Any:
    if isinstance(answer, ServiceError):
        return str(answer.code)
    if isinstance(answer, BaseException):
        raise answer
    return int(answer[0].indices[0]), answer[0].batch_size


def classified(folder: Path, images: list[bytes], within_s: float = 60, **settings: Any) -> list[Any]:
    """The same in a separate process, since metrics belong to a process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_classified, folder, images, within_s, **settings).result()


def test_an_image_is_fitted_as_its_model_wants_it(tmp_path: Path) -> None:
    """Padded with the mean colour to twice its width."""
    how = Preprocessing(
        resize=40, crop=(20, 40), crop_mode="pad", interpolation="nearest", mean=(0.8, 0, 0), std=(1, 1, 1)
    )
    tiny.write(tmp_path, preprocessing=how)
    ((best, _),) = classified(tmp_path, [red_image(70)])
    assert best == (70 + 204) // 2


def test_each_image_of_a_batch_gets_its_own_answer_and_a_broken_one_spares_its_neighbours(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=50)
    images = [red_image(red) for red in range(20)]
    told = classified(tmp_path, [*images, b"no image"], decode_threads=4)
    assert told.pop() == "not_an_image"
    assert [best for best, _ in told] == list(range(20))
    assert max(size for _, size in told) > 1


def test_a_full_replica_refuses_at_once_and_a_late_answer_is_none(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=400)
    told = classified(tmp_path, [red_image(1)] * 5, queue_size=2, http_workers=1)
    assert told == [(1, 1), (1, 1), *["queue_full"] * 3] or told == [(1, 2), (1, 2), *["queue_full"] * 3]
    assert classified(tmp_path, [red_image(1)], within_s=0.001) == ["deadline_exceeded"]


def _cascaded(folder: Path, images: list[bytes], crops: CropCount) -> list[tuple[int, str]]:
    """The best class of each image by the cascade `both`, and the member that answered, with room for one image."""
    metrics.use_directory(folder, ["replica"])
    from deploy.ray.engine import LocalEngine
    from server.serving.cascade import Pace, descend
    from server.serving.plan import Ask, Plan

    async def ask() -> list[tuple[int, str]]:
        settings = Settings(repository=folder, queue_size=crops)
        catalogue = repository.scan(folder)
        measured = metrics.Metrics("replica")
        engine = LocalEngine(settings, catalogue, measured, measured.pending.set)
        plan = Plan.of(Ask(model="both", crops=crops), catalogue, settings)
        told = []
        for image in images:
            found = await descend(plan, image, time.monotonic() + 60, engine, Pace(), measured)
            told.append((int(found.indices[0]), found.answered_by))
        engine.check_admission(crops)  # every place is free again
        engine.close()
        return told

    return asyncio.run(ask())


@pytest.mark.parametrize("crops", [1, 10])
def test_a_member_of_a_cascade_is_asked_in_the_place_of_the_one_before_it(tmp_path: Path, crops: CropCount) -> None:
    members = [tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)]
    tiny.write_cascade(tmp_path, "both", members)
    between = BytesIO()
    picture = Image.new("RGB", (32, 32), (40, 200, 0))
    picture.paste((41, 200, 0), (16, 0, 32, 32))
    picture.save(between, "PNG")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        told = process.submit(_cascaded, tmp_path, [red_image(40), between.getvalue()], crops).result()
    assert told == [(40, "red"), (200, "green")]


def test_the_config_chooses_the_version_of_a_model(tmp_path: Path) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, version=version)
        tiny.write(tmp_path, "other", version)
    settings = Settings(repository=tmp_path, default_model="tiny")
    assert catalogue_of(settings, {}).resolve(None, None).version == 2
    back = catalogue_of(settings, {"tiny": 1})
    assert back.resolve(None, None).version == 1
    assert back.resolve("other", None).version == 2
    with pytest.raises(ManifestError, match="tiny"):
        catalogue_of(settings, {"tiny": 3})


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_answers_as_one_server_and_loses_nothing_that_clients_cannot_recover() -> None:
    if not PYTHON.exists():
        pytest.skip("NOT RUN: Ray has no environment here; make ray-test makes one and runs this")
    if not REPOSITORY.exists():
        pytest.skip("NOT RUN: there is no model; make model exports one")
    photos = sorted(str(path) for path in Path("export/photos").glob("*.jpg"))
    command = [str(PYTHON), "-m", "deploy.ray.drill", str(REPOSITORY), *photos]
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    found: dict[str, Any] = json.loads("{" + f"\n{done.stdout}".rpartition("\n{\n")[2])  # Ray prints before it
    assert found["answers_equal"]
    assert found["largest_difference"] < 1e-5
    for what in ("node_killed", "rolling_update", "scaled_up"):
        assert found[what]["lost"] == 0, what
        assert found[what]["answered"] > 0, what
