"""The HEALTHCHECK of the images: prints the answer of /readyz; exits with 0 if the server can answer requests."""

import sys
from http.client import HTTPConnection, HTTPException

PORT = 8000
TIMEOUT_S = 4.0
"""Shorter than HEALTHCHECK's own timeout, which kills this process without a message."""


def main() -> int:
    """Check PORT, or the port given as the first argument."""
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else PORT, timeout=TIMEOUT_S)
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
