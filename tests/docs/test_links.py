"""Every page that a text names, such as a help text or an error's detail, exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(?<![\w/.-])docs/[\w./-]+\.(?:md|py|sh|svg|jsonl|json)(?:#[\w-]+)?")
FOLDERS = ("models", "export", "server", "client", "loadtest", "deploy", "docs", "tests")
RECORDS = ROOT / "docs" / "measurements"
"""Recorded output of commands, which stays as it was."""


def texts() -> list[Path]:
    """Every text of the project that may name a page."""
    kinds = {".py", ".md", ".yml", ".yaml", ".sh", ".html", ".js", ".proto"}
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds]
    found += [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in kinds or path.name == "Makefile")]
    return [path for path in found if path != Path(__file__) and path.parent != RECORDS]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_there_is_something_to_check() -> None:
    assert sum(len(NAMED.findall(path.read_text())) for path in texts() if path.suffix == ".py") > 20


def test_every_page_that_is_named_exists() -> None:
    wrong = []
    for path in texts():
        for named in NAMED.findall(path.read_text()):
            page, _, anchor = named.partition("#")
            if not (ROOT / page).exists() or (anchor and anchor not in anchors(ROOT / page)):
                wrong.append(f"{path.relative_to(ROOT)}: {named}")
    assert not wrong
