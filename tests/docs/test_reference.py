"""The reference pages say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from server.http.problems import OTHER_CODES, STATUS
from server.settings import ModelSettings, Settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
GENERATED = ("settings", "errors", "metrics", "commands", "http")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `python -m docs.reference` for the current code."""
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, "-m", "docs.reference", folder], cwd=ROOT, check=True, timeout=120)
    return folder


def rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of the first table of a page, or of one of its sections, without its head."""
    text = (REFERENCE / f"{page}.md").read_text().split(f"\n## {heading}\n" if heading else "\n# ")[-1]
    table = text[text.index("|") :].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("page", GENERATED)
def test_a_page_is_what_the_code_says(generated: Path, page: str) -> None:
    made = (generated / f"{page}.md").read_text()
    assert (REFERENCE / f"{page}.md").read_text() == made, "run `python -m docs.reference`, and commit what it writes"


def test_every_error_is_listed_with_its_status_and_when_it_occurs() -> None:
    listed = {code.strip("`"): (int(status), when) for code, status, when, _ in rows("errors")}
    assert {code: status for code, (status, _) in listed.items()} == dict(STATUS)
    assert all(when.endswith(".") for _, when in listed.values())
    others = {code.strip("`"): int(status) for code, status, _ in rows("errors", "Errors of HTTP itself")}
    assert others == dict(OTHER_CODES)


def test_every_setting_is_listed_with_its_flag_variable_default_and_meaning() -> None:
    sections = re.split(r"\n## `(\w+)`\n\n", (REFERENCE / "settings.md").read_text().split("\n## Settings of one")[0])
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(listed) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        head, meaning = listed[name].split("\n\n")[:2]
        assert head.startswith(f"`--{name.replace('_', '-')}` · `SERVER_{name.upper()}` · ")
        assert meaning.strip(), name
        if field.default is not PydanticUndefined and field.default not in ((), None):
            default = field.default[0] if isinstance(field.default, tuple) else field.default
            assert f"default `{str(default).lower() if isinstance(default, bool) else default}`" in head, name


def test_every_setting_of_one_model_is_listed() -> None:
    listed = [name.strip("`") for name, *_ in rows("settings", "Settings of one model")]
    assert listed == list(ModelSettings.model_fields)
