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
    """Stable names, part of the API: clients branch on them. Beneath each stands when it occurs."""

    EMPTY_BODY = "empty_body"
    """The request has no bytes."""
    INVALID_REQUEST = "invalid_request"
    """The body is not what its content encoding or the Open Inference Protocol says it is, or a batch is not an
    archive."""
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    """The body's content encoding is neither gzip nor deflate."""
    BODY_TIMEOUT = "body_timeout"
    """The upload took longer than `body_timeout_ms`."""
    BODY_TOO_LARGE = "body_too_large"
    """The upload has more bytes than `max_body_bytes`, packed or unpacked, or more images than `max_batch_images`."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """The image has more pixels than `max_pixels`, or is a JPEG that takes as much memory; the server finds out before
    decoding."""
    MALFORMED_MULTIPART = "malformed_multipart"
    """The form cannot be read, or does not have exactly one file (a batch may have more)."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are in none of the formats, or in a variant that the server does not decode; the detail names it."""
    BROKEN_IMAGE = "broken_image"
    """The image lacks some of its pixels (the detail says how much is there, if that is known) or cannot be decoded."""
    INVALID_PARAMETER = "invalid_parameter"
    """A parameter is unknown or out of range."""
    UNKNOWN_MODEL = "unknown_model"
    """There is no such model or version; the detail lists those that there are."""
    MODEL_REFUSED = "model_refused"
    """A model that was to be loaded cannot be served; the detail says why."""
    MODEL_UNAVAILABLE = "model_unavailable"
    """A model cannot be loaded for now (its file cannot be read, memory is short); the server tries again, and `Retry-
    After` says when to come back."""
    UNSUPPORTED_BY_MODEL = "unsupported_by_model"
    """The request wants features or a heat map from a network that has none, or from an ensemble; the detail says
    why."""
    NOT_CALIBRATED = "not_calibrated"
    """The request states `coverage` or `reject`, and the model has never been calibrated; the detail says what to
    run."""
    UNAUTHORIZED = "unauthorized"
    """The server has `api_keys`, and the request has no key, or an unknown one."""
    FORBIDDEN = "forbidden"
    """The key may not do this, or a page of another site sent the request."""
    RATE_LIMITED = "rate_limited"
    """The key has used up its limits; `Retry-After` says when to come back."""
    QUEUE_FULL = "queue_full"
    """The server is at capacity: `queue_size` images or `max_buffered_bytes` of uploads are under way; `Retry-After`
    says when to come back."""
    OVERLOADED = "overloaded"
    """The answer would come later than `X-Request-Timeout` or `timeout_ms` allow; `Retry-After` says when to come
    back."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The answer was not ready within `timeout_ms`, or the seconds of `X-Request-Timeout`."""
    ENGINE_UNAVAILABLE = "engine_unavailable"
    """The engine is down, or did not come back within `timeout_ms`; `Retry-After` says when to come back."""
    ENGINE_CRASHED = "engine_crashed"
    """This image was in two batches that crashed the engine."""
    INFERENCE_FAILED = "inference_failed"
    """The runtime failed on this batch."""


class ServiceError(Exception):
    """A request that cannot be answered: `code` for programs, `detail` for people (what happened, what to do)."""

    def __init__(self, code: Code, detail: str, retry_after_s: int | None = None) -> None:
        """`retry_after_s` is when to try again, where that is known better than by the code."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[Code, str, int | None]]:
        """Exceptions are pickled by the arguments of `Exception.__init__`, which are others."""
        return ServiceError, (self.code, self.detail, self.retry_after_s)


class StartupError(ExpectedError):
    """The server cannot start; the message says why and what to do."""


class DeviceLostError(Exception):
    """The device answers every call of this process with an error: only another process can use it again."""
