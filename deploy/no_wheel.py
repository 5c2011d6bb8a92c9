"""Refuses to build a wheel of the server: its packages (models, export, server, loadtest) would hide a user's own.

Editable installations, such as that of `make serve`, are built: they add the clone to one environment only. The client
is a distribution of its own (client/pyproject.toml), with a wheel. Hatchling runs this hook; pyproject.toml names it.
"""

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REFUSAL = (
    "resnet-serving is not installed as a wheel, as its packages 'models', 'server', 'export' and 'loadtest' would hide"
    " your own: run it in a container or from a clone (make serve, or pip install --editable .)"
)


class NoWheel(BuildHookInterface[Any]):
    """Ends a build with REFUSAL, unless it is editable."""

    def initialize(self, version: str, _build_data: dict[str, Any]) -> None:
        """Hatchling calls this before it builds; `version` is "standard" or "editable"."""
        if version != "editable":
            sys.exit(REFUSAL)
