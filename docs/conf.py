"""How Sphinx makes a site of this folder's pages: `make docs`.

The pages are plain Markdown, which also reads well in the repository itself. The navigation is the links of the pages
called `index`, in their order, so a page that none of them links to is an orphan, and the build fails. Beside each HTML
page lies its Markdown, and `llms.txt` lists these.
"""

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "ResNet serving"
extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns = ["**/__pycache__"]
highlight_language = "text"
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_use_index = False
html_permalinks_icon = "#"

LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
ENTRY = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<page>[^)#:]+)\.md\)(?P<text>.*(?:\n  .*)*)", re.MULTILINE)

STANDS_FOR = re.compile(r"^This page is \[[^\]]+\]\(([^)]+)\)", re.MULTILINE)


def setup(app: "Sphinx") -> None:
    """Have Sphinx call what follows."""
    app.connect("source-read", _read)
    app.connect("build-finished", _write)


def _read(app: "Sphinx", page: str, source: list[str]) -> None:
    text = _relinked(app, page)
    app.env.note_dependency(_source(app, page))
    if Path(page).name == "index":
        entries = "\n".join(f"{entry['title']} <{entry['page']}>" for entry in ENTRY.finditer(text))
        text += f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    source[0] = text


def _relinked(app: "Sphinx", page: str) -> str:
    """A page's text, or that of the file outside which it stands for; links to such files lead to their pages."""
    pages = {_source(app, name): Path(app.srcdir, f"{name}.md") for name in app.env.found_docs}
    source = _source(app, page)

    def relinked(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[0]))
        return os.path.relpath(pages.get(target, target), Path(app.srcdir, page).parent) if target.exists() else link[0]

    return LINK.sub(relinked, source.read_text())


def _source(app: "Sphinx", page: str) -> Path:
    path = Path(app.srcdir, f"{page}.md")
    stands_for = STANDS_FOR.search(path.read_text())
    return Path(os.path.normpath(path.parent / stands_for[1])) if stands_for else path


def _write(app: "Sphinx", failure: Exception | None) -> None:
    if failure or app.builder.name != "html":
        return
    for page in app.env.found_docs:
        Path(app.outdir, f"{page}.md").write_text(_relinked(app, page))
    home = _relinked(app, "index")
    title, summary, _ = re.split(r"\n{2,}", home, maxsplit=2)
    listed = [title, textwrap.indent(summary, "> ")]
    for section in ENTRY.finditer(home):
        listed.append(f"## {section['title']}\n\n- [{section['title']}]({section['page']}.md){section['text']}")
        if Path(section["page"]).name == "index":
            listed[-1] += "".join(_entries(app, section["page"]))
    Path(app.outdir, "llms.txt").write_text("\n\n".join(listed) + "\n")


def _entries(app: "Sphinx", page: str) -> list[str]:
    """What a section's page lists, and what the sections listed there do, as lines of `llms.txt`."""
    lines = []
    for entry in ENTRY.finditer(_relinked(app, page)):
        found = os.path.normpath(Path(page).parent / entry["page"])
        lines.append(f"\n- [{entry['title']}]({found}.md){entry['text']}")
        if Path(found).name == "index":
            lines += _entries(app, found)
    return lines
