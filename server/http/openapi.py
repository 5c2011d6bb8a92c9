"""The OpenAPI document: FastAPI's own, completed with errors, API keys and other servers' protocols."""

import json
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from fastapi.routing import APIRoute

from server.errors import Code
from server.http import page, problems, request_ids, responses
from server.http.described import NOT_READY, OPERATIONS, Described, kinds, schema
from server.http.keys import OPEN

Json = dict[str, Any]

_TEMPLATE = "#/components/schemas/{name}"
_OF_OTHERS = ("v1", "v2", "huggingface")
_OF_VERSION = "_of_version"
_BINARY = {"type": "string", "format": "binary"}
_TAGS = {
    "classify": ("Classify", "Send images, get their most probable classes."),
    "models": ("Models", "Which models the server has."),
    "operations": ("Probes and metrics", "For orchestrators and monitoring."),
    "v2": ("Open Inference Protocol", "The protocol of KServe and Triton."),
    "v1": ("KServe v1", "KServe's first protocol, also that of TensorFlow Serving."),
    "huggingface": ("Hugging Face", "Image classification as in Hugging Face's inference endpoints."),
}
"""By the name that generated clients use: display name and description."""
_EXAMPLES = {
    "classify": responses.EXAMPLE,
    "classify_batch": responses.BATCH_EXAMPLE,
    "embed": responses.EMBEDDING_EXAMPLE,
}
"""Responses' examples, added here because FastAPI would drop their null fields."""
_KEYS: list[Json] = [{"bearer": []}, {"api_key": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
}


def operation_id(route: APIRoute) -> str:
    """What generated clients call the operation: the function's name, prefixed with another server's protocol."""
    tags = [str(tag) for tag in route.tags if tag in _OF_OTHERS]
    suffix = _OF_VERSION if "{version}" in route.path_format else ""
    return "_".join([*tags, route.name]) + suffix


def completed(document: Json, keys_needed: bool, metrics_role: Literal["none", "classify", "admin"]) -> Json:  # noqa: FBT001
    """FastAPI's document, completed; `keys_needed`: the server has keys."""
    components = document["components"]
    components["schemas"] = _schemas(components["schemas"])
    components["responses"] = _failures()
    components["securitySchemes"] = _SCHEMES
    document["info"]["description"] = _description(document["info"]["description"])
    document["tags"] = [
        {"name": name, "x-displayName": shown, "description": description}
        for name, (shown, description) in _TAGS.items()
    ]
    document["paths"]["/models"]["get"]["tags"] = ["models"]
    document["paths"]["/"]["get"] = {
        "tags": ["operations"],
        "summary": "A page to try the server by hand",
        "operationId": "page",
        "responses": {"200": {"description": "HTML", "content": {"text/html": {"schema": {"type": "string"}}}}},
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            described = OPERATIONS.get(operation["operationId"].removesuffix(_OF_VERSION))
            if described:
                _describe(operation, described)
            short = "Short" if problems.is_short(method.upper(), path) else ""
            answers = operation["responses"]
            if operation["operationId"] in _EXAMPLES:
                example = msgspec.to_builtins(_EXAMPLES[operation["operationId"]])
                answers["200"]["content"][responses.JSON]["example"] = example
            answers.pop("422", None)  # FastAPI's own form of errors
            answers["4XX"] = {"$ref": f"#/components/responses/{short}Refused"}
            answers["5XX"] = {"$ref": f"#/components/responses/{short}Failed"}
            operation["security"] = _security(method.upper(), path, keys_needed, metrics_role)
    return document


def _security(method: str, path: str, keys_needed: bool, metrics_role: str) -> list[Json]:  # noqa: FBT001
    if path in OPEN or page.is_file(method, path) or (path == "/metrics" and metrics_role == "none"):
        return []
    return _KEYS if keys_needed else [{}, *_KEYS]


def _describe(operation: Json, described: Described) -> None:
    """Describe an operation of another server's protocol; only the path parameters come from FastAPI."""
    operation["summary"] = described.summary
    of_path = [each for each in operation.get("parameters", ()) if each["in"] == "path"]
    operation["parameters"] = [{**each, "schema": {"type": "string"}} for each in of_path]
    answer: Json = {"description": "done"}
    if described.answer is not None:
        content: Json = {"schema": schema(described.answer, _TEMPLATE), "example": described.example}
        answer = {"description": "the answer", "content": {responses.JSON: content}}
        if operation["operationId"].startswith("v2_model_infer"):
            answer["content"]["application/octet-stream"] = {"schema": _BINARY}
    operation["responses"] = {"200": answer}
    if operation["operationId"].removesuffix(_OF_VERSION) in NOT_READY:
        operation["responses"]["503"] = {**answer, "description": "not ready, or not for as many connections"}
    if described.takes is not None:
        taken: Json = {responses.JSON: {"schema": schema(described.takes, _TEMPLATE), "example": described.sent}}
        if described.also:
            taken[described.also] = {"schema": _BINARY}
        operation["requestBody"] = {
            "required": not operation["operationId"].startswith(("v2_index", "v2_load", "v2_un")),
            "content": taken,
        }


def _schemas(of_fastapi: Json) -> Json:
    found = {name: each for name, each in of_fastapi.items() if name not in ("HTTPValidationError", "ValidationError")}
    found |= responses.schemas()
    found |= msgspec.json.schema_components(kinds(), ref_template=_TEMPLATE)[1]
    for kind in (problems.Problem, problems.ShortError):
        found[kind.__name__] = kind.model_json_schema()
    codes = sorted({*Code, *problems.OTHER_CODES})
    found["ErrorCode"] = {  # with an enum, generated clients would fail at codes of later versions
        "type": "string",
        "x-extensible-enum": codes,
        "description": f"stable, but more may come: {', '.join(codes)}",
    }
    for name in ("Problem", "ShortError", "ImageProblem"):
        found[name]["properties"]["code"] = {"$ref": _TEMPLATE.format(name="ErrorCode")}
    return dict(sorted(found.items()))


def _failures() -> Json:
    """The responses `Refused` and `Failed`, each also in the short form of other servers' protocols."""
    found = {}
    for name, code, meaning in (
        ("Refused", Code.BROKEN_IMAGE, "The request cannot be carried out: `code` says why (see Errors)."),
        ("Failed", Code.OVERLOADED, "The server could not carry it out: `code` says why (see Errors)."),
    ):
        for prefix, kind, media_type, example in (
            ("", "Problem", problems.MEDIA_TYPE, _problem(code)),
            ("Short", "ShortError", responses.JSON, {"error": _DETAILS[code], "code": code}),
        ):
            found[f"{prefix}{name}"] = {
                "description": meaning,
                "headers": {
                    request_ids.HEADER: {"schema": {"type": "string"}, "description": "this request's id in the log"},
                    "Retry-After": {"schema": {"type": "integer"}, "description": "seconds, if a retry may help"},
                },
                "content": {media_type: {"schema": {"$ref": _TEMPLATE.format(name=kind)}, "example": example}},
            }
    return found


_DETAILS = {
    Code.BROKEN_IMAGE: "the JPEG ends before its last row",
    Code.OVERLOADED: "the server is too busy to answer in time; try again later",
}


def _problem(code: Code) -> Json:
    status = problems.STATUS[code]
    return problems.Problem(
        type=f"urn:resnet-serving:{code}",
        title=status.phrase,
        status=status,
        code=code,
        detail=_DETAILS[code],
        request_id=responses.EXAMPLE.request_id,
    ).model_dump()


def _description(first: str) -> str:
    """The document's description, in Markdown, with what all errors share, so that no operation needs to repeat it."""
    codes: dict[HTTPStatus, list[str]] = {}
    for code, status in [*problems.STATUS.items(), *problems.OTHER_CODES.items()]:
        codes.setdefault(status, []).append(f"`{code}`")
    return _DESCRIPTION.format(
        first=first,
        media_type=problems.MEDIA_TYPE,
        example=json.dumps(_problem(Code.BROKEN_IMAGE), indent=2),
        rows="\n".join(f"| {status:d} {status.phrase} | {', '.join(codes[status])} |" for status in sorted(codes)),
    )


_DESCRIPTION = """\
{first}

## Errors

Every error is a problem document (`{media_type}`, RFC 9457). `code` is stable and for programs, `detail` is for people:

```json
{example}
```

The routes of other servers' protocols (`/v1`, `/v2`, Hugging Face's) answer `error` and `code` instead.

| status | `code` |
| --- | --- |
{rows}
"""
