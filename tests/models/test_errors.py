"""What a command prints about invalid input."""

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from models.errors import first_line, first_mistake


class _Pair(BaseModel):
    low: int
    high: list[int]

    @model_validator(mode="after")
    def _ordered(self) -> "_Pair":
        if self.high and self.low > self.high[0]:
            raise ValueError("upside down")
        return self


@pytest.mark.parametrize(
    ("json", "line"),
    [
        ('{"low": "x", "high": ["y"]}', "low: Input should be a valid integer, unable to parse string as an integer"),
        (
            '{"low": 1, "high": [1, "y"]}',
            "high.1: Input should be a valid integer, unable to parse string as an integer",
        ),
        ('{"low": 2, "high": [1]}', "upside down"),
    ],
    ids=["a field", "within a field", "the whole"],
)
def test_the_first_mistake_is_one_line_with_its_place(json: str, line: str) -> None:
    with pytest.raises(ValidationError) as error:
        _Pair.model_validate_json(json)
    assert first_mistake(error.value) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (ValueError("\n  indented\ntwo"), "indented"), (MemoryError(), "MemoryError")],
)
def test_what_a_library_reports_is_one_line_even_if_it_is_silent(error: Exception, line: str) -> None:
    assert first_line(error) == line
