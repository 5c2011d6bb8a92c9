"""What the routes work with: the settings, the models, the engine client and the metrics of one HTTP worker."""

from dataclasses import dataclass

from server.engine.client import EngineClient
from server.http.uploads import Uploads
from server.metrics import Metrics
from server.repository import Catalogue
from server.settings import Settings


@dataclass(slots=True)
class Service:
    """One HTTP worker's state. Only the supervisor's messages change it."""

    settings: Settings
    catalogue: Catalogue
    client: EngineClient
    uploads: Uploads
    metrics: Metrics
    draining: bool = False

    def why_not_ready(self) -> str | None:
        """None where the engine is there and every model that must be there has run its warm-up."""
        if self.draining:
            return "the server is shutting down"
        if not self.client.connected:
            return "the inference engine is starting or down"
        served = {key.name for key in self.catalogue.entries}
        default = self.catalogue.default_model
        must_be_there = self.settings.models or ([default] if default else [])
        missing = [name for name in must_be_there if name not in served]
        return f"not served: {', '.join(missing)}; GET /models says why" if missing else None
