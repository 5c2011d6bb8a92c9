"""`python -m server`: serve the model repository."""

import sys

from pydantic import ValidationError
from pydantic_settings import SettingsError

from models.manifest import ManifestError
from server import logs, repository
from server.settings import Settings
from server.supervisor import StartupError, Supervisor


def main() -> int:
    """Run the server; 0 after a drained stop, 1 where it cannot start, 2 for wrong settings."""
    try:
        settings = Settings(_cli_parse_args=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        print(f"python -m server: {name}: {first['msg']}".replace(": :", ":"), file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    try:
        catalogue = repository.scan(settings.repository, settings.models, settings.default_model)
        Supervisor(settings, catalogue).run()
    except (ManifestError, StartupError) as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
