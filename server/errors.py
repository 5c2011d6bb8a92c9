"""The failures reported to clients, each with a stable code; HTTP and gRPC map codes to their statuses.

Also the failure reported only to the operator: that the server cannot start.
"""

from enum import StrEnum

from models.errors import ExpectedError

CLIENT_CLOSED = "client_closed"
"""Code in the metrics for requests whose client has left; no client ever sees it."""

SHUTTING_DOWN = "shutting_down"
"""Code of requests that are still under way when the drain ends."""


class Code(StrEnum):
    """Stable names, part of the API: clients branch on them. Each is described below its name."""

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
    """The image has more pixels than `max_pixels`, or is a JPEG that needs as much memory; the server checks before
    decoding."""
    MALFORMED_MULTIPART = "malformed_multipart"
    """The form cannot be read, or does not have exactly one file (a batch may have more)."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are in no supported format, or in a variant that the server does not decode; the detail names it."""
    BROKEN_IMAGE = "broken_image"
    """The image is truncated (the detail says how much of it arrived, if that is known) or cannot be decoded."""
    INVALID_PARAMETER = "invalid_parameter"
    """A parameter is unknown or out of range."""
    UNKNOWN_MODEL = "unknown_model"
    """There is no such model or version; the detail lists the available ones."""
    MODEL_REFUSED = "model_refused"
    """The model to be loaded cannot be served; the detail says why."""
    MODEL_UNAVAILABLE = "model_unavailable"
    """The model cannot be loaded for now (its file cannot be read, or memory is short). The server keeps trying;
    `Retry-After` says when to come back."""
    UNSUPPORTED_BY_MODEL = "unsupported_by_model"
    """The request wants features or a heat map from a network that has none, or from an ensemble or a cascade; the
    detail says why."""
    NOT_CALIBRATED = "not_calibrated"
    """The request states `coverage` or `reject`, and the model has never been calibrated; the detail says what to
    run, or which members of an ensemble or a cascade to ask."""
    UNAUTHORIZED = "unauthorized"
    """The server has `api_keys`, and the request has no key, or an unknown one."""
    FORBIDDEN = "forbidden"
    """The key's role does not allow this, or a page of another site sent the request."""
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
    """The engine crashed on two batches that contained this image."""
    INFERENCE_FAILED = "inference_failed"
    """The runtime failed on this batch."""


class ServiceError(Exception):
    """A request that cannot be answered: `code` for programs, `detail` for people (what happened, what to do)."""

    def __init__(self, code: Code, detail: str, retry_after_s: int | None = None) -> None:
        """`retry_after_s` overrides the code's usual time to retry after."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.model: tuple[str, str] | None = None
        """Name and version of a served model that cannot do what was asked, for the metrics."""

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[Code, str, int | None]]:
        """Pickle with our own arguments; by default, exceptions pickle those of `Exception.__init__`."""
        return ServiceError, (self.code, self.detail, self.retry_after_s)


class StartupError(ExpectedError):
    """The server cannot start; the message says why and what to do."""


class DeviceLostError(Exception):
    """The device fails every further call of this process; only a new process can use it."""
