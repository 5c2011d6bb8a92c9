"""The README leads to pages that exist, and stays short."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_file_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_is_read_in_minutes() -> None:
    assert len(README.splitlines()) <= 140  # settings, errors and the like have their own pages
