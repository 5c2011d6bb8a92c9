"""The server's routes as a Ray Serve deployment: decoders, engine and backend in one replica for each device.

`serve run deploy/ray/serve.yaml`, where Ray is installed (docs/measurements/ray.md).
"""

from typing import Any

import ray
from pydantic import BaseModel
from ray import serve

from server import logs, metrics
from server.control import Change
from server.errors import Code, ServiceError
from server.run_folder import RunFolder
from server.settings import Settings


class Options(BaseModel):
    """The `args` in a Ray Serve config."""

    settings: dict[str, Any] = {}
    """the server's settings, by their names in docs/reference/settings.md"""
    versions: dict[str, int] = {}
    """the only version to serve of a model, by its name; models that are not named here are served in all versions"""


@serve.deployment
@serve.ingress()
class Classifier:
    """A replica. Ray starts, watches and ends it, instead of the server's supervisor."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]  # Ray awaits it, in its event loop
        from deploy.ray.engine import LocalEngine, catalogue_of, check_gpus
        from server.http.app import create_app
        from server.metrics import Metrics
        from server.serving.permits import Permits
        from server.serving.service import Changes, Service

        self._folder = RunFolder()
        assigned = ray.get_runtime_context().get_assigned_resources()
        check_gpus(assigned.get("GPU", 0))
        cpus = max(1, round(assigned.get("CPU", 1)))
        threads = {"http_workers": 1, "inference_threads": cpus, "decode_threads": min(4, cpus)}
        settings = Settings(**{**threads, **options.settings})
        logs.configure(settings.log_level)
        metrics.use_directory(self._folder.path, ["replica"])
        measured = Metrics("replica")
        catalogue = catalogue_of(settings, options.versions)
        permits = Permits(settings.queue_size)

        def count(pending: int) -> None:
            measured.pending.set(pending)
            permits.changed()

        self._engine = LocalEngine(settings, catalogue, measured, count)
        service = Service(settings, catalogue, self._engine, measured, Changes(_refuse), permits)
        self._app = create_app(service)

    def __serve_build_asgi_app__(self) -> Any:
        """Ray calls this once the replica has started."""
        return self._app

    def __del__(self) -> None:
        """Ray calls this when a replica ends normally; if one is killed, the next removes its files."""
        self._folder.remove()

    def check_health(self) -> None:
        """Ray calls this regularly, and replaces a replica that raises."""
        if not self._engine.connected:
            raise RuntimeError("the device is lost")


def _refuse(_: Change) -> None:
    raise ServiceError(Code.MODEL_REFUSED, "under Ray, change models in the config, and run serve deploy")


def build(options: Options) -> Any:
    """Make the application; `import_path` names this function."""
    return Classifier.bind(options)  # type: ignore[attr-defined]
