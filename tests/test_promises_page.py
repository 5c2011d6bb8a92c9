"""docs/operations/promises.md names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "operations" / "promises.md").read_text()


def rows() -> list[list[str]]:
    """The cells of the table, without its head."""
    table = PAGE[PAGE.index("|") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_promise_names_a_test_that_exists() -> None:
    assert rows()
    for *_, named in rows():
        found = re.fullmatch(r"`(\S+\.py)::(test_\w+)`", named)
        assert found, named
        module = ast.parse((TESTS / found[1]).read_text())
        assert found[2] in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, named


def test_every_file_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (TESTS.parent / "docs" / "operations" / target).exists(), target
