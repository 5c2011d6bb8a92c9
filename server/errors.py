"""The failures a client can be told of: a stable code each. Whoever carries the answer gives it its status.

And the one that only the operator is told of: that the server cannot start.
"""

from enum import StrEnum

from models.errors import ExpectedError

CLIENT_CLOSED = "client_closed"
"""Code in the metrics of requests that nobody waits for any more; none is told it."""

SHUTTING_DOWN = "shutting_down"
"""Code of requests that the end of the drain finds under way."""


class Code(StrEnum):
    """Stable names, part of the API: clients branch on them."""

    EMPTY_BODY = "empty_body"
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    BODY_TIMEOUT = "body_timeout"
    BODY_TOO_LARGE = "body_too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    MALFORMED_MULTIPART = "malformed_multipart"
    NOT_AN_IMAGE = "not_an_image"
    BROKEN_IMAGE = "broken_image"
    INVALID_PARAMETER = "invalid_parameter"
    UNKNOWN_MODEL = "unknown_model"
    MODEL_REFUSED = "model_refused"
    MODEL_UNAVAILABLE = "model_unavailable"
    UNSUPPORTED_BY_MODEL = "unsupported_by_model"
    NOT_CALIBRATED = "not_calibrated"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_CRASHED = "engine_crashed"
    INFERENCE_FAILED = "inference_failed"


class ServiceError(Exception):
    """A request that cannot be answered: `code` for programs, `detail` for people (what happened, what to do)."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[Code, str]]:
        """Exceptions are pickled by the arguments of `Exception.__init__`, which are others."""
        return ServiceError, (self.code, self.detail)


class StartupError(ExpectedError):
    """The server cannot start; the message says why and what to do."""


class DeviceLostError(Exception):
    """The device answers every call of this process with an error: only another process can use it again."""
