"""The pages of docs/ as a site: complete, without broken links, and loading nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|preconnect|dns-prefetch))[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|@import\s|url\(\s*["']?(?:https?:)?//"""
)
"""What a browser would fetch from another host by itself; links are not included."""


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-n",
        "-d",
        target / "doctrees",
    ]
    return subprocess.run([*command, source, target / "site"], capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(DOCS, folder)
    assert not built.returncode, built.stderr
    return folder / "site"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    found = [f"{path.name}: {hit[0]}" for path in site.rglob("*.html") for hit in LOADED.finditer(path.read_text())]
    found += [f"{path.name}: {hit[0]}" for path in site.rglob("*.css") for hit in LOADED.finditer(path.read_text())]
    assert not found


def test_an_asset_from_elsewhere_would_be_noticed() -> None:
    for asset in (
        '<script src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        "a { background: url(https://example.org/x.png) }",
    ):
        assert LOADED.search(asset), asset
    assert not LOADED.search('<a href="https://example.org">')


def test_each_page_has_its_markdown_which_llms_txt_lists(site: Path) -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages == {str(path.relative_to(site)) for path in site.rglob("*.md")}
    listing = (site / "llms.txt").read_text()
    assert listing.startswith("# ResNet serving\n\n> ")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", listing, re.MULTILINE)
    assert sorted(listed) == sorted(pages - {"index.md"})


def test_the_architecture_is_a_page_whose_links_lead_to_pages(site: Path) -> None:
    page = (site / "explanation" / "architecture.md").read_text()
    assert "## Decisions" in page
    assert "(../operations/promises.md)" in page


def test_the_search_works_without_a_server(site: Path) -> None:
    assert (site / "searchindex.js").read_text().startswith("Search.setIndex(")
    assert 'src="_static/searchtools.js' in (site / "search.html").read_text()


def test_a_broken_link_a_missing_anchor_and_an_orphan_fail(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(DOCS / "conf.py", source)
    (source / "index.md").write_text(
        "# Home\n\n[gone](gone.md) and [nowhere](listed.md#nowhere)\n\n- [Listed](listed.md): x\n"
    )
    (source / "listed.md").write_text("# Listed\n\n[back](index.md#home)\n")
    (source / "orphan.md").write_text("# Orphan\n")
    built = build(source, tmp_path)
    assert built.returncode
    complaints = built.stderr.splitlines()
    assert len(complaints) == 3, built.stderr
    assert "gone.md" in complaints[0] or "gone.md" in complaints[1]
    assert any("'nowhere'" in line or "listed.md#nowhere" in line for line in complaints)
    assert any("orphan.md" in line for line in complaints)
