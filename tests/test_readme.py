"""The README's tables say what the code does."""

import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from server.http.problems import STATUS
from server.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = README.split(f"# {heading}\n")[1]
    table = section[section.index("|") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_error_is_listed_with_its_status() -> None:
    listed = {code.strip("`"): int(status) for code, status, _ in rows("Errors")}
    assert listed == {code.value: status.value for code, status in STATUS.items()}


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {name.strip("`"): default for name, default, _ in rows("Settings")}
    assert list(listed) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if field.default is not PydanticUndefined and field.default not in ((), None):
            default = field.default[0] if isinstance(field.default, tuple) else field.default
            assert listed[name] == f"`{default}`", name


def test_every_file_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
