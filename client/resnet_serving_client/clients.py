"""`Client`, and `AsyncClient` for programs with an event loop."""

import asyncio
import json
import math
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from resnet_serving_client.attempts import Attempts
from resnet_serving_client.decoding import ARRAYS, lacking, structured
from resnet_serving_client.errors import ClientError, MissingPackageError, NoAnswerError, error_of
from resnet_serving_client.responses import Answer, Classification, Embedding, Include, Model, Models, with_arrays
from resnet_serving_client.sources import LARGEST_PORT

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DEADLINE_S = 60.0
"""For a request, including all its attempts."""
READY_POLL_S = 0.2

MSGPACK, PNG = "application/msgpack", "image/png"


class Client:
    """Sends requests to one service over keep-alive connections. Threads may share it.

    Every method raises RejectedError, FailedError, BusyError or NoAnswerError, each a ClientError; the last two only
    after more than one attempt within `deadline_s`. Methods that return arrays need the extra `arrays`, and raise
    MissingPackageError without it.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, deadline_s: float = DEFAULT_DEADLINE_S, api_key: str | None = None
    ) -> None:
        self._http = httpx.Client(base_url=_checked(url), headers=_key_headers(api_key))
        self._deadline_s = deadline_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self,
        image: bytes,
        *,
        top_k: int | None = None,
        model: str | None = None,
        version: int | None = None,
        crops: Literal[1, 10] | None = None,
        include: Collection[Include] = (),
        coverage: float | None = None,
        reject: bool | None = None,
    ) -> Classification:
        """Classify an image, given as the bytes of its file; None leaves a choice to the service.

        What `include` names comes from the same forward pass, as NumPy arrays. With a calibrated model, `coverage`
        (instead of `top_k`) asks for the smallest set that holds the true class with this probability, and `reject`
        has `Classification.known` say whether the image belongs to any of the model's classes.
        """
        parameters = _parameters(top_k, model, version, crops, include, coverage=coverage, reject=reject)
        headers = _arrays() if include else {}
        return _read(
            self._ask("POST", "/classify", content=_bytes(image), params=parameters, headers=headers), Classification
        )

    def embed(self, image: bytes, *, model: str | None = None, version: int | None = None) -> Embedding:
        """The features of an image: the input of the model's last layer."""
        parameters, headers = _parameters(None, model, version, None), _arrays()
        return _read(self._ask("POST", "/embed", content=_bytes(image), params=parameters, headers=headers), Embedding)

    def heatmap(self, image: bytes, *, model: str | None = None, version: int | None = None) -> bytes:
        """The photo as a PNG, with the regions that support its best class in colour."""
        parameters, headers = _parameters(1, model, version, None, ["heatmap"]), {"Accept": PNG}
        return self._ask("POST", "/classify", content=_bytes(image), params=parameters, headers=headers).content

    def models(self) -> list[Model]:
        """The models that the service serves."""
        return _read(self._ask("GET", "/models"), Models).models

    def wait_until_ready(self, wait_s: float) -> None:
        """Return when the service can answer; wait at most `wait_s`, even if nothing listens yet."""
        self._ask("GET", "/readyz", _patient(wait_s))

    def _ask(self, method: str, path: str, attempts: Attempts | None = None, **request: Any) -> httpx.Response:
        attempts = attempts or Attempts(self._deadline_s)
        while True:
            try:
                # httpx applies its timeout to each step of a request, so an answer that trickles in can take longer.
                return _successful(self._http.request(method, path, timeout=attempts.left_s(), **request))
            except (httpx.HTTPError, ClientError) as error:
                pause_s = attempts.pause_s(_as_ours(error, self._http.base_url))
            time.sleep(pause_s)


class AsyncClient:
    """`Client` for an event loop, with at most `connections` requests under way; further ones wait their turn."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        connections: int = 100,
        api_key: str | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=_checked(url),
            headers=_key_headers(api_key),
            timeout=deadline_s,
            limits=httpx.Limits(max_connections=connections),
        )
        self._deadline_s = deadline_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(
        self,
        image: bytes,
        *,
        top_k: int | None = None,
        model: str | None = None,
        version: int | None = None,
        crops: Literal[1, 10] | None = None,
        include: Collection[Include] = (),
        coverage: float | None = None,
        reject: bool | None = None,
    ) -> Classification:
        """As `Client.classify`."""
        parameters = _parameters(top_k, model, version, crops, include, coverage=coverage, reject=reject)
        headers = _arrays() if include else {}
        answer = await self._ask("POST", "/classify", content=_bytes(image), params=parameters, headers=headers)
        return _read(answer, Classification)

    async def embed(self, image: bytes, *, model: str | None = None, version: int | None = None) -> Embedding:
        """As `Client.embed`."""
        parameters, headers = _parameters(None, model, version, None), _arrays()
        return _read(
            await self._ask("POST", "/embed", content=_bytes(image), params=parameters, headers=headers), Embedding
        )

    async def heatmap(self, image: bytes, *, model: str | None = None, version: int | None = None) -> bytes:
        """As `Client.heatmap`."""
        parameters, headers = _parameters(1, model, version, None, ["heatmap"]), {"Accept": PNG}
        return (await self._ask("POST", "/classify", content=_bytes(image), params=parameters, headers=headers)).content

    async def models(self) -> list[Model]:
        """As `Client.models`."""
        return _read(await self._ask("GET", "/models"), Models).models

    async def wait_until_ready(self, wait_s: float) -> None:
        """As `Client.wait_until_ready`."""
        await self._ask("GET", "/readyz", _patient(wait_s))

    async def _ask(self, method: str, path: str, attempts: Attempts | None = None, **request: Any) -> httpx.Response:
        attempts = attempts or Attempts(self._deadline_s)
        while True:
            try:
                async with asyncio.timeout(attempts.left_s()):
                    return _successful(await self._http.request(method, path, **request))
            except (httpx.HTTPError, TimeoutError, ClientError) as error:
                pause_s = attempts.pause_s(_as_ours(error, self._http.base_url))
            await asyncio.sleep(pause_s)


def _checked(url: str) -> str:
    """
    Raises:
        NoAnswerError: `url` is not the address of a service.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise NoAnswerError(f"{url}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise NoAnswerError(f"{url} is not an address: it must look like {DEFAULT_URL}")
    if (parsed.port or 0) > LARGEST_PORT:
        raise NoAnswerError(f"{url} is not an address: ports end at {LARGEST_PORT}")
    return url


def _key_headers(api_key: str | None) -> dict[str, str]:
    """
    Raises:
        ClientError: no header field can hold this key.
    """
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ClientError("the API key has characters that no key has: copy it again, without line breaks")
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _arrays() -> dict[str, str]:
    """The headers that ask for arrays as bytes.

    Raises:
        MissingPackageError: a package that reads them is not installed.
    """
    if reason := lacking(*ARRAYS):
        raise MissingPackageError(f"arrays are asked for, and {reason}")
    return {"Accept": MSGPACK}


def _bytes(image: object) -> bytes:
    """The image, to be sent as often as needed; a file could be read only once.

    Raises:
        TypeError: it is not the bytes of a file.
    """
    if not isinstance(image, bytes | bytearray | memoryview):
        raise TypeError(f"an image is the bytes of its file, not {type(image).__name__}: try Path(...).read_bytes()")
    return bytes(image)


def _parameters(
    top_k: int | None,
    model: str | None,
    version: int | None,
    crops: int | None,
    include: Collection[Include] = (),
    *,
    coverage: float | None = None,
    reject: bool | None = None,
) -> dict[str, str | int | float]:
    given = {"top_k": top_k, "model": model, "version": version, "crops": crops, "include": ",".join(include) or None}
    certainty = {"coverage": coverage, "reject": reject}
    return {name: value for name, value in (given | certainty).items() if value is not None}


def _patient(wait_s: float) -> Attempts:
    return Attempts(wait_s, most_lost=math.inf, longest_pause_s=READY_POLL_S)


def _successful(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise error_of(response)
    return response


def _read(response: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        if response.headers.get("content-type") == MSGPACK:
            import msgspec  # an extra; only requests for arrays need it

            return with_arrays(structured(msgspec.msgpack.decode(response.content), kind))
        return structured(json.loads(response.content), kind)
    except (ValueError, RecursionError) as error:
        raise NoAnswerError(f"{response.url} does not answer as this service does: {error}") from None


def _as_ours(error: Exception, url: httpx.URL) -> ClientError:
    if isinstance(error, ClientError):
        return error
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return NoAnswerError(f"{url} has not answered before the deadline")
    return NoAnswerError(f"{url} does not answer: {error or type(error).__name__}")
