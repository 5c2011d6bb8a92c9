"""Turns decoded JSON or MessagePack into the dataclasses of `responses`."""

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
ARRAYS = ("msgspec", "numpy")
"""The packages that reading arrays needs."""


class UnexpectedError(ValueError):
    """A document does not fit its dataclass; the message says where."""


def lacking(*packages: str) -> str | None:
    """What to do if one of these packages is not installed; None: all are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"{' and '.join(missing)} cannot be imported: pip install {' '.join(missing)}" if missing else None


def structured(value: Any, kind: type[Kind]) -> Kind:
    """Build a dataclass from a decoded document and check its types; fields that the dataclass lacks are ignored.

    Raises:
        UnexpectedError: a field is missing, or of another type.
    """
    made: Kind = _as(value, kind, "$")
    return made


def _as(value: Any, kind: Any, where: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(_instance(value, dict, where), kind, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):  # X | None
        (other,) = (one for one in arguments if one is not types.NoneType)
        return None if value is None else _as(value, other, where)
    if origin is list:
        return [_as(each, arguments[0], f"{where}[]") for each in _instance(value, list, where)]
    if origin is dict:
        pairs = _instance(value, dict, where).items()
        return {key: _as(each, arguments[1], f"{where}.{key}") for key, each in pairs}
    if origin is tuple:
        if len(items := _instance(value, list, where)) != len(arguments):
            raise UnexpectedError(f"{where} has {len(items)} items")
        return tuple(_as(each, one, f"{where}[]") for each, one in zip(items, arguments, strict=True))
    if kind is float:
        return float(_instance(value, int | float, where))
    return _instance(value, kind, where)


def _dataclass(value: dict[str, Any], kind: Any, where: str) -> Any:
    given = {}
    for name, (type_of, required) in _fields(kind).items():
        if name in value:
            given[name] = _as(value[name], type_of, f"{where}.{name}")
        elif required:
            raise UnexpectedError(f"{where} has no {name}")
    return kind(**given)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Types of the fields, and whether each is required."""
    hints = get_type_hints(kind)
    required = {each.name: each.default is MISSING for each in fields(kind)}
    return {name: (hints[name], required[name]) for name in required}


def _instance(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # in Python, True is an int
        raise UnexpectedError(f"{where} is {type(value).__name__}")
    return value
