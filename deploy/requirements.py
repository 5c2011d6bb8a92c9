"""Print the requirements in pyproject.toml, which images install before the code, since that changes more often.

`python requirements.py [EXTRA ...]`, beside pyproject.toml; needs nothing but Python.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path


def main() -> int:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="also those of these extras")
    parser.add_argument("--extras-only", action="store_true", help="not those of the server itself")
    parser.add_argument("--without", action="append", default=[], metavar="PACKAGE", help="leave this one out")
    options = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    if unknown := set(options.extras) - set(extras):
        parser.error(f"there is no extra {', '.join(sorted(unknown))}; there are {', '.join(extras)}")
    found = [] if options.extras_only else project["dependencies"]
    found += [requirement for extra in options.extras for requirement in extras[extra]]
    print(*(line for line in found if re.split(r"[^\w.-]", line)[0] not in options.without), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
