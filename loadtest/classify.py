"""Post one photo to a running server and print its classes: python loadtest/classify.py photo.jpg."""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

POLL_S = 0.2


def wait_until_ready(url: str, wait_s: float) -> None:
    """Return when the server says that it is ready.

    Raises:
        OSError: it has not within `wait_s` seconds.
    """
    give_up_s = time.monotonic() + wait_s
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()  # noqa: S310
        except OSError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(POLL_S)
        else:
            return


def main() -> int:
    """The command; 0 where the photo was classified."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--wait-s", type=float, default=0.0, help="seconds to wait for the server to be ready")
    arguments = parser.parse_args()
    try:
        image = arguments.photo.read_bytes()
        wait_until_ready(arguments.url, arguments.wait_s)
        with urllib.request.urlopen(f"{arguments.url}/classify", image, timeout=60) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        print(f"{arguments.photo}: {json.load(error)['detail']}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{arguments.photo}: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.photo}, classified by {answer['model']} in {answer['timings_ms']['total']:.0f} ms:")
    for prediction in answer["predictions"]:
        print(f"  {prediction['probability']:6.1%}  {prediction['label']} ({prediction['wordnet_id']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
