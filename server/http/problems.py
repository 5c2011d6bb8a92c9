"""Errors as RFC 9457 problem documents. Only this module maps failures to HTTP statuses."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import logs, tracing
from server.errors import SHUTTING_DOWN, Code, ServiceError
from server.http import request_ids
from server.http.request_ids import request_id_of
from server.metrics import NO_MODEL, Metrics

MEDIA_TYPE = "application/problem+json"

STATUS: dict[Code, HTTPStatus] = {
    Code.EMPTY_BODY: HTTPStatus.BAD_REQUEST,
    Code.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.MALFORMED_MULTIPART: HTTPStatus.BAD_REQUEST,
    Code.INVALID_PARAMETER: HTTPStatus.BAD_REQUEST,
    Code.UNKNOWN_MODEL: HTTPStatus.NOT_FOUND,
    Code.MODEL_REFUSED: HTTPStatus.CONFLICT,
    Code.UNSUPPORTED_BY_MODEL: HTTPStatus.BAD_REQUEST,
    Code.NOT_CALIBRATED: HTTPStatus.CONFLICT,
    Code.BODY_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.TOO_MANY_PIXELS: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.NOT_AN_IMAGE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.UNSUPPORTED_ENCODING: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.BROKEN_IMAGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.QUEUE_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    Code.INFERENCE_FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.ENGINE_CRASHED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.ENGINE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.MODEL_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

OTHER_CODES: dict[str, HTTPStatus] = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "cors_refused": HTTPStatus.BAD_REQUEST,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "headers_too_large": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "not_implemented": HTTPStatus.NOT_IMPLEMENTED,
    "too_many_connections": HTTPStatus.SERVICE_UNAVAILABLE,
    SHUTTING_DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Codes of refusals at the HTTP level, independent of what is served."""

OTHER_MEANINGS: dict[str, str] = {
    "bad_request": "The request is not valid HTTP.",
    "cors_refused": "A browser asks on behalf of a page whose origin `cors_origins` does not name.",
    "not_found": "There is no such path.",
    "method_not_allowed": "The path does not answer this method.",
    "headers_too_large": "URL and headers have more than 64 KiB, or the headers more than 100 fields.",
    "internal_error": "A bug; the log has the request id.",
    "not_implemented": "The server does not have this part of the Open Inference Protocol, such as shared memory.",
    "too_many_connections": "The HTTP worker has `max_connections` open connections.",
    SHUTTING_DOWN: "The server ended before it had the whole request, or before the answer was ready.",
}
"""When each of these occurs."""

RETRY_AFTER_S: dict[Code, int] = {
    Code.QUEUE_FULL: 1,
    Code.OVERLOADED: 1,
    Code.ENGINE_UNAVAILABLE: 2,
    Code.MODEL_UNAVAILABLE: 2,
}

log = logging.getLogger(__name__)


class ShortError(BaseModel):
    """An error as KServe's and Hugging Face's clients read it; the stable `code` is an addition of ours."""

    error: str
    code: str


class Problem(BaseModel):
    """What went wrong, for programs (`code`, `status`) and for people (`title`, `detail`)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str


def problem(request: Request, code: str, status: HTTPStatus, detail: str, retry_after_s: int | None = None) -> Response:
    """The problem document of a failed request, or a `ShortError` on the routes of other servers' protocols."""
    tracing.note(code)
    request_id = request_id_of(request)
    headers = {request_ids.HEADER: request_id}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if is_short(request.scope.get("method", ""), request.scope.get("path", "")):
        return Response(ShortError(error=detail, code=code).model_dump_json(), status, headers, "application/json")
    content = Problem(
        type=f"urn:resnet-serving:{code}",
        title=status.phrase,
        status=status,
        code=code,
        detail=detail,
        request_id=request_id,
    )
    return Response(content.model_dump_json(), status, headers, MEDIA_TYPE)


def is_short(method: str, path: str) -> bool:
    """Whether errors of this route are sent as `ShortError`."""
    path = f"{path}/"
    if path.startswith(("/v1/", "/v2/")):
        return True
    return method == "POST" and (path == "//" or path.startswith("/models/"))


def service_problem(request: Request, error: ServiceError) -> Response:
    """The problem document of a ServiceError."""
    retry_after_s = RETRY_AFTER_S.get(error.code) if error.retry_after_s is None else error.retry_after_s
    return problem(request, error.code, STATUS[error.code], error.detail, retry_after_s)


def invalid_parameter(error: RequestValidationError) -> ServiceError:
    """FastAPI's validation error as a ServiceError."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return ServiceError(Code.INVALID_PARAMETER, f"{name}: {first['msg']}")


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error of the app and the framework with a problem document.

    Routes count their own requests; those refused by parameter validation are counted here.
    """

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> Response:
        return service_problem(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        metrics.requests.labels(*NO_MODEL, Code.INVALID_PARAMETER).inc()
        return service_problem(request, invalid_parameter(error))

    @app.exception_handler(ClientDisconnect)
    async def on_leaver(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nginx's status for it; nobody reads this response

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        response = problem(request, status.name.lower(), status, f"{request.method} {request.url.path}: {error.detail}")
        response.headers.update(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED and request.url.path in (paths := app.openapi()["paths"]):
            # Starlette lists the methods of the first route only, but a path may have several routes.
            response.headers["Allow"] = ", ".join(paths[request.url.path]).upper()
        return response

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        request_id = request_id_of(request)
        log.error("request %s failed", request_id, exc_info=error, extra=logs.fields(request_id=request_id))
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return problem(request, "internal_error", status, "an internal error of the server; its log has the request id")
