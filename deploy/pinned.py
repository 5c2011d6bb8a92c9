"""Kubernetes runs this before the server, to check that the newest version of a model is the file of the rollout.

`python -IS pinned.py REPOSITORY MODEL SHA256` prints the digest of the file, and exits with 1 if it is not SHA256, or
not the one in the manifest. An empty SHA256 is not compared. Needs nothing but Python.
"""

import hashlib
import json
import sys
from pathlib import Path


def main() -> int:
    """Compare, and print one line."""
    repository, name, pinned = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    versions = [path for path in (repository / name).glob("*") if path.name.isdecimal()]
    try:
        newest = max(versions, key=lambda path: int(path.name))
        file = json.loads((newest / "manifest.json").read_bytes())["file"]
        with (newest / file["name"]).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{name} in {repository} cannot be read: {error!r}")
        return 1
    if found != file["sha256"]:
        print(f"{newest / file['name']} has the digest {found}, its manifest says {file['sha256']}: export it again")
        return 1
    if pinned and found != pinned:
        print(f"{newest / file['name']} has the digest {found}, pinned is {pinned}: pin it, or go back")
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
