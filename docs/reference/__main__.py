"""Writes the reference pages that the code determines: `python -m docs.reference [FOLDER]`.

A text about a setting, an error code, a metric, an option or a route stands in the code, beside what it is about.
"""

import argparse
import ast
import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from server import errors
from server.errors import Code
from server.settings import ModelSettings, Settings

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
"""A default below it is told as it is seen from there."""
Json = dict[str, Any]

EXPORT = ("to_onnx", "from_onnx", "to_torch", "verify", "quantize", "calibrate", "ensemble", "cascade", "to_trt")
LOADTEST = (
    "bench",
    "baseline",
    "overload",
    "growth",
    "capacity",
    "simulate",
    "mlperf",
    "soak",
    "failover",
    "many_models",
    "devices",
    "engine",
    "engine_loop",
)
COMMANDS = {
    **{f"python export/{name}.py": f"export.{name}" for name in EXPORT},
    "classify": "resnet_serving_client.__main__",
    "python -m server.keys": "server.keys",
    "python -m server tune": "loadtest.tune",
    **{f"python loadtest/{name}.py": f"loadtest.{name}" for name in LOADTEST},
    "python loadtest/compare": "loadtest.compare.__main__",
}
"""What is typed, and the module that this runs."""


def main() -> None:
    """Write each page."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, page in PAGES.items():
        title, *parts = page()
        note = "<!-- Written by `python -m docs.reference`: change the texts in the code instead. -->"
        (folder / f"{name}.md").write_text("\n\n".join([f"# {title}", note, *parts]) + "\n")


def settings() -> Iterator[str]:
    """What `Settings` and `ModelSettings` say of themselves."""
    yield "Settings"
    yield (
        "Settings are flags of `python -m server` (`make serve FLAGS='--max-batch 16'`), environment variables"
        " (`SERVER_MAX_BATCH=16`), or lines like these in a file that `--env-file serving.env` names. Flags win, then"
        " the environment; an empty variable counts as none."
    )
    yield (
        '"CPUs" are those that this process may use: the affinity mask and the cgroup\'s quota are counted in.'
        " [Defaults of libraries](defaults.md) says what the libraries below the server are set to."
    )
    for name, described in _properties(Settings):
        flag, variable = f"--{name.replace('_', '-')}", f"SERVER_{name.upper()}"
        yield f"## `{name}`"
        yield f"`{flag}` · `{variable}` · {_kind(described)}{_default(described)}"
        yield _prose(described["description"])
    yield "## Settings of one model"
    yield (
        'A file `model_repository/NAME/serving.json`, such as `{"max_batch": 2, "priority": "low"}`, gives a model'
        " values of its own. The server notices changes of the file as it notices new models, and serves accordingly"
        " without losing a request."
    )
    yield _table(
        ("field", "type", "meaning"),
        ((f"`{name}`", _kind(each), _prose(each["description"])) for name, each in _properties(ModelSettings)),
    )


def _properties(model: type[BaseModel]) -> Iterator[tuple[str, Json]]:
    schema = model.model_json_schema(mode="serialization" if model is ModelSettings else "validation")
    yield from schema["properties"].items()


def _kind(schema: Json) -> str:
    """The type of a setting, in words."""
    schema = next((each for each in schema.get("anyOf", ()) if each.get("type") != "null"), schema)
    if "enum" in schema:
        *first, last = (f"`{value}`" for value in schema["enum"])
        return f"{', '.join(first)} or {last}"
    if "type" not in schema:
        return "JSON"
    if schema["type"] == "array":
        items = schema["items"]
        return "numbers" if items.get("type") == "integer" else "names, comma-separated"
    if schema["type"] in ("integer", "number"):
        return {"integer": "whole number", "number": "number"}[schema["type"]] + _span(schema)
    words = {"boolean": "`true` or `false`", "path": "path", "bytes": "number of bytes, or with a unit"}
    return words.get(str(schema.get("format", schema["type"])), "text")


def _span(schema: Json) -> str:
    """The limits of a number."""
    limits = {
        "minimum": "{:,} or more",
        "exclusiveMinimum": "more than {:,}",
        "maximum": "{:,} at most",
        "exclusiveMaximum": "less than {:,}",
    }
    if "minimum" in schema and "maximum" in schema:
        return f", {schema['minimum']:,} to {schema['maximum']:,}"
    return "".join(f", {text.format(schema[name])}" for name, text in limits.items() if name in schema)


def _default(schema: Json) -> str:
    default = schema.get("default")
    if default is None or default == []:
        return ""
    shown = default[0] if isinstance(default, list) else default
    return f" · default `{str(shown).lower() if isinstance(shown, bool) else shown}`"


def failures() -> Iterator[str]:
    """Every code, by the docstrings beneath those of `Code`."""
    from server.http.problems import OTHER_CODES, OTHER_MEANINGS, RETRY_AFTER_S, STATUS

    yield "Errors"
    yield (
        "Every error is a problem document (RFC 9457, `application/problem+json`) with a stable `code`, a `detail` that"
        " says what to do, and the `request_id` that is also in the header `X-Request-ID` (your own, if you sent one)."
        ' Under `/v1` and `/v2`, and for Hugging Face\'s client, it is `{"error": ...}` with the same `code` and'
        " status; over gRPC it is [a status and the code](v2.md#errors)."
    )
    meanings = _documented(Code)
    yield _table(
        ("code", "status", "when", "`Retry-After`"),
        (
            (
                f"`{code}`",
                str(status.value),
                meanings[code.name],
                f"{RETRY_AFTER_S[code]} s" if code in RETRY_AFTER_S else "",
            )
            for code, status in sorted(STATUS.items(), key=lambda item: (item[1], item[0]))
        ),
    )
    yield "## Errors of HTTP itself"
    yield _table(
        ("code", "status", "when"),
        ((f"`{code}`", str(status.value), OTHER_MEANINGS[code]) for code, status in OTHER_CODES.items()),
    )


def _documented(members: type[Code]) -> dict[str, str]:
    """The docstring beneath each member."""
    tree = ast.parse(inspect.getsource(errors))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == members.__name__)
    found = {}
    for member, text in pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(member.targets[0])] = _line(str(text.value.value))
    return found


def metrics() -> Iterator[str]:
    """What the registries say of themselves."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before anything imports prometheus_client
        from prometheus_client import Counter, ProcessCollector
        from prometheus_client.metrics import MetricWrapperBase

        from server.exposition import BUILD
        from server.metrics import PROCESS_ID, Metrics

        rows: list[tuple[str, ...]] = [(f"`{BUILD[0]}_info`", "gauge", "`version`, `python`, ...", BUILD[1])]
        for metric in vars(Metrics("documented")).values():
            if isinstance(metric, MetricWrapperBase) and metric._name != PROCESS_ID:
                name = f"{metric._name}_total" if isinstance(metric, Counter) else metric._name
                labels = ", ".join(f"`{label}`" for label in metric._labelnames)
                rows.append((f"`{name}`", str(metric._type), labels, metric._documentation))
        for family in ProcessCollector(pid=os.getpid, registry=None).collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, "`process`", str(family.documentation).rstrip(".")))
    yield "Metrics"
    yield (
        "`GET /metrics` shows the metrics of all processes, in Prometheus' text format or as OpenMetrics."
        " [Observability](../operations/observability.md) explains how to read them; `deploy/monitoring` has alerts and"
        " a dashboard."
    )
    yield _table(("metric", "type", "labels", "meaning"), rows)


def commands() -> Iterator[str]:
    """What the parsers say of themselves."""
    yield "Commands"
    yield (
        "Commands run in the virtual environment, in the repository's root. `python -m server` has a page of its own:"
        " [settings](settings.md). `python -m server doctor` takes the server's flags and `--json`;"
        " `python -m server --version` prints the release. The exit code is 0 after success, 1 after an error, which"
        " the last line tells, 2 if an option is unknown or cannot be read, and 130 after Ctrl-C."
    )
    for typed, module in COMMANDS.items():
        parser = _parser(module)
        yield f"## `{typed}`"
        yield from _described(parser)


def _parser(module: str) -> argparse.ArgumentParser:
    """The parser of a command: whatever is the first to parse when it runs."""

    class CaughtError(BaseException):
        """Ends the command."""

    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        caught.append(parser)
        raise CaughtError

    kinds = ("parse_known_args", "parse_known_intermixed_args")
    kept: dict[str, Callable[..., Any]] = {kind: getattr(argparse.ArgumentParser, kind) for kind in kinds}
    try:
        for kind in kinds:
            setattr(argparse.ArgumentParser, kind, catch)
        importlib.import_module(module).main()
    except CaughtError:
        pass
    finally:
        for kind, function in kept.items():
            setattr(argparse.ArgumentParser, kind, function)
    return caught[0]


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    subparsers = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if parser.description:
        yield _paragraphs(parser.description)
    for each in subparsers:
        for name, parser_of_one in each.choices.items():
            yield f"### `{name}`"
            yield from _described(parser_of_one)
    rows = [
        (_usage(action), _cell((action.help or "") % {**vars(action), "prog": parser.prog}).replace(f"{ROOT}/", ""))
        for action in parser._actions
        if action not in subparsers and action.help != argparse.SUPPRESS and "--help" not in action.option_strings
    ]
    if rows:
        yield _table(("option", "meaning"), rows)
    if parser.epilog:
        yield _paragraphs(parser.epilog)


def _usage(action: argparse.Action) -> str:
    """An option and what follows it, as code."""
    metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if action.choices is not None and not action.metavar:
        value = "|".join(map(str, action.choices))
    if action.nargs in ("+", "*"):
        value = f"{value}..."
    if not action.option_strings:
        return f"`{value}`".replace("|", "\\|")
    taken = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{taken}`" for option in action.option_strings).replace("|", "\\|")


def http() -> Iterator[str]:
    """What the OpenAPI document says."""
    document = _document()
    yield "HTTP API"
    yield (
        "A running server has the same at `/docs`, where you can try it, and as OpenAPI at `/openapi.json`, from which"
        " [clients can be generated](../guides/client.md#generated-clients). Parameters of `/classify` go"
        " into the URL (`?top_k=1`) or into fields of the form (`-F top_k=1`); the server refuses an unknown one. Every"
        " route can also answer an [error](errors.md)."
    )
    for tag in document["tags"]:
        yield f"## {tag.get('x-displayName', tag['name'])}"
        yield tag["description"]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(f"{method.upper()} {path}", operation, document)


def _operation(heading: str, operation: Json, document: Json) -> Iterator[str]:
    yield f"### `{heading}`"
    if said := operation.get("description") or operation.get("summary"):
        yield _paragraphs(said)
    parameters = [_resolved(each, document) for each in operation.get("parameters", ())]
    if parameters:
        yield _table(
            ("parameter", "in", "type", "meaning"),
            (
                (
                    f"`{each['name']}`",
                    each["in"],
                    _kind(_resolved(each["schema"], document)) + _default(each["schema"]),
                    _cell(each.get("description") or each["schema"].get("description", "")),
                )
                for each in parameters
            ),
        )
    if taken := operation.get("requestBody", {}).get("content"):
        yield f"Body: {', '.join(f'`{kind}`' for kind in taken)}."
    answered = {
        kind
        for status, answer in operation["responses"].items()
        if status.startswith("2")
        for kind in _resolved(answer, document).get("content", ())
    }
    if answered:
        yield f"Answer: {', '.join(f'`{kind}`' for kind in sorted(answered))}."


def _resolved(found: Json, document: Json) -> Json:
    if "$ref" not in found:
        return found
    resolved: Any = document
    for part in found["$ref"].removeprefix("#/").split("/"):
        resolved = resolved[part]
    return dict(resolved)


def _document() -> Json:
    """The OpenAPI document of a server without models."""
    from starlette.testclient import TestClient

    from server.http.app import create_app
    from server.repository import Catalogue
    from server.serving.service import Service

    nothing: Any = None
    service = Service(Settings(), Catalogue(Path(), {}, {}, {}, None), nothing, nothing, nothing, nothing)
    answer = TestClient(create_app(service)).get("/openapi.json")
    return dict(answer.raise_for_status().json())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _prose(text: str) -> str:
    """A text about settings as Markdown, their names and paths as code."""
    names = "|".join(sorted((name for name in Settings.model_fields if "_" in name), key=len, reverse=True))
    code = re.compile(rf"(?<![\w`])(?:(?:{names})\b|/[a-z]+(?:/[a-z]+)*|<model>\S+json)(?!`)")
    parts = re.split(r"(`[^`]*`|https?:\S+)", _line(text))
    return "".join(code.sub(r"`\g<0>`", part) if not number % 2 else part for number, part in enumerate(parts))


def _cell(text: str) -> str:
    page = r"[\1](../\1.md\2)"
    text = re.sub(r"\bdocs/((?:\w+/)*\w+)\.md(#[\w-]+)?", page, _line(text))
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _paragraphs(text: str) -> str:
    """A docstring; what is indented in it stays as it is."""
    return re.sub(r"(?<!`)\bdocs/((?:\w+/)*\w+)\.md", r"[\1](../\1.md)", inspect.cleandoc(text))


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "errors": failures,
    "metrics": metrics,
    "commands": commands,
    "http": http,
}

if __name__ == "__main__":
    main()
