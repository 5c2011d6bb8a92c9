"""The HEALTHCHECK of the images: prints the answer of /readyz; exits with 0 if the server can answer requests."""

import os
import sys
from http.client import HTTPConnection, HTTPException

PORT = 8000
TIMEOUT_S = 4.0
"""Shorter than HEALTHCHECK's own timeout, which kills this process without a message."""


def main() -> int:
    """Check the port given as the first argument, or that of the server's variable, or PORT."""
    port = int(sys.argv[1] if sys.argv[1:] else os.environ.get("SERVER_PORT") or PORT)
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode())
    except (OSError, HTTPException) as error:
        print(f"/readyz does not answer: {error!r}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
