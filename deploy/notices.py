"""Print the licences of all installed packages: the third-party software in an image.

`python notices.py`; needs nothing but Python. Lists for each package the licence that its metadata names, and the texts
of its licence files.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

LICENCE_FILE = re.compile(
    r"(^|[/_.-])(licen[cs]es?|copying|notices?|thirdpartynotices?)([^/]*\.(txt|md|rst)|[^/.]*)$", re.I
)


def licence(distribution: Distribution) -> str:
    """The licence's name from the metadata: an SPDX expression, or an older field."""
    metadata = distribution.metadata
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if "License ::" in line]
    stated = [*metadata.get_all("License-Expression", []), *classified, *metadata.get_all("License", [])]
    return next((line.strip().splitlines()[0] for line in stated if line.strip()), "see the texts below")


def texts(distribution: Distribution) -> Iterable[str]:
    """The texts of its licence files, without duplicates."""
    found = [file for file in distribution.files or () if LICENCE_FILE.search(str(file))]
    return dict.fromkeys(file.read_text(encoding="utf-8").strip() for file in found)


def notices(found: Iterable[Distribution]) -> Iterable[str]:
    """A section for each package, in the order of their names."""
    named = {distribution.metadata["Name"].lower(): distribution for distribution in found}
    for _, distribution in sorted(named.items()):
        title = f"{distribution.metadata['Name']} {distribution.version}: {licence(distribution)}"
        yield "\n\n".join([title, "-" * len(title), *texts(distribution)]) + "\n"


if __name__ == "__main__":
    print(*notices(distributions()), sep="\n", file=sys.stdout)
