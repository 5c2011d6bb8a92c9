"""What the images' HEALTHCHECK runs: prints what /readyz answers; 0 where the server can answer requests."""

import sys
from http.client import HTTPConnection, HTTPException

PORT = 8000
TIMEOUT_S = 4.0
"""Below the HEALTHCHECK's own, which kills this without a word."""


def main() -> int:
    """The check, of the port in the first argument if there is one."""
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else PORT, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode())
    except (OSError, HTTPException) as error:
        print(f"/readyz cannot be asked: {error!r}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
