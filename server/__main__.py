"""`python -m server`: serve the model repository.

`python -m server tune` finds settings for this machine, `python -m server doctor` prints a report for bug reports,
`python -m server --version` prints the release.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import logging
import runpy
import sys
from importlib.util import find_spec

from models.manifest import ManifestError
from server import VERSION, logs, repository
from server.errors import StartupError
from server.settings import WrongSettingsError, read, unknown_variables
from server.supervisor import supervise

log = logging.getLogger(__name__)


def main() -> int:
    """Run the server; return 0 after a drained stop, 1 if it cannot start, 2 for wrong settings."""
    if sys.argv[1:2] == ["doctor"]:
        return _doctor()
    if sys.argv[1:2] == ["tune"]:
        return _tune()
    if sys.argv[1:2] == ["--version"]:
        print(f"resnet-serving {VERSION}")
        return 0
    try:
        settings = read(sys.argv[1:])
    except WrongSettingsError as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        log.warning("%s is not a setting of the server", name)
    try:
        catalogue = repository.first_scan(settings.repository, settings.models, settings.default_model)
        supervise(settings, catalogue)
    except (ManifestError, StartupError) as error:
        if settings.log_format == "json":
            log.critical("%s", error)
        else:
            logs.flush()  # the last line says why it ends
            print(f"python -m server: {error}", file=sys.stderr)
        return 1
    return 0


def _tune() -> int:
    """Run the load test's tool, which may not be installed. It starts servers, and measures them over HTTP."""
    sys.argv = ["python -m server tune", *sys.argv[2:]]
    if find_spec("loadtest") is None:
        print(f"{sys.argv[0]}: this image does not contain the load test: run it in a clone", file=sys.stderr)
        return 1
    runpy.run_module("loadtest.tune", run_name="__main__")
    return 1


def _doctor() -> int:
    """Imported only here, since it loads the runtimes to query them."""
    from server import doctor

    return doctor.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
