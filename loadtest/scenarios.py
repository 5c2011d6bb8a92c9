"""Locust's users. Scenarios are open loops: requests arrive at random (Poisson), answered or not.

Each user of a scenario sends one request a second on average, so the number of users is the rate, even when several
locust processes share the users.
"""

import random
from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from gevent.pool import Pool
from locust import FastHttpUser, LoadTestShape, User, task

from loadtest import invalid_requests, photos, responses
from loadtest.invalid_requests import InvalidRequest
from loadtest.responses import WrongAnswerError

REFUSED = {"overloaded", "queue_full", "engine_unavailable"}
"""Codes of a busy server, each counted separately."""
LOST = "lost: no answer"
UNSENT = "unsent: too many are under way"
MOST_UNDER_WAY = 64
"""Most requests of one user at one time; a rate that needs more is beyond what this process can send."""
SIDES = (64, 320, 1280, 4000)
"""Longer sides, in pixels, of the photos of `Sizes`."""

_BYTES = "application/octet-stream"


@cache
def load(folder: str) -> list[bytes]:
    """The photos of a folder."""
    return [path.read_bytes() for path in photos.find(Path(folder))]


@cache
def resized(photo: bytes) -> list[bytes]:
    """A photo as JPEGs of all SIDES."""
    return [photos.resized(photo, side, side * 3 // 4) for side in SIDES]


class Poster(FastHttpUser):
    """Posts images and checks every answer."""

    abstract = True

    def on_start(self) -> None:
        """Read the photos."""
        self.photos = load(self.environment.parsed_options.photos)

    def a_photo(self) -> bytes:
        """A random photo."""
        return random.choice(self.photos)  # noqa: S311

    def post(self, name: str, body: bytes, content_type: str = _BYTES, invalid: InvalidRequest | None = None) -> None:
        """Post once. The text of a failure is the code of a refusal, LOST, or what is wrong with the answer."""
        path = f"/classify{invalid.query if invalid else ''}"
        headers = {"Content-Type": content_type}
        data: Any = body  # bytes work, though locust declares only str
        with self.client.post(path, name=name, data=data, headers=headers, catch_response=True) as response:
            status, content = response.status_code, response.content or b""
            code = responses.code(content)
            if not status:
                response.failure(LOST)
            elif code in REFUSED:
                response.failure(code)
            elif invalid and (status, code) == (invalid.status, invalid.code):
                response.success()
            elif invalid:
                response.failure(f"wrong: {status} {code} instead of {invalid.status} {invalid.code}")
            else:
                try:
                    responses.parse(status, content)
                except WrongAnswerError as error:
                    response.failure(f"wrong: {code or error}")


class Visitor(Poster):
    """Posts a random photo as soon as the last is answered: three as a plain body to every one in a form."""

    @task(3)
    def post_body(self) -> None:
        """As `curl --data-binary` does."""
        self.post("/classify (body)", self.a_photo(), "image/jpeg")

    @task(1)
    def post_form(self) -> None:
        """As `curl -F file=@` and browsers do."""
        self.post("/classify (form)", photos.form(self.a_photo()), photos.FORM_TYPE)


class Scenario(Poster):
    """An open loop; a subclass says how its rate changes and what it sends."""

    abstract = True
    concurrency = MOST_UNDER_WAY
    phases: ClassVar[Sequence[tuple[float, float]]] = ((60, 1),)
    """seconds and share of the rate, in order"""
    max_error_share: ClassVar[float] = 0.01

    def on_start(self) -> None:
        """Start with nothing under way."""
        super().on_start()
        self._under_way = Pool(MOST_UNDER_WAY)

    def on_stop(self) -> None:
        """Wait for outstanding requests: they count, too."""
        self._under_way.join(self.network_timeout)

    def wait_time(self) -> float:
        """Seconds until the next request: exponential, one on average."""
        return random.expovariate(1)

    @task
    def arrive(self) -> None:
        """Send the next request, whatever became of those before."""
        if self._under_way.full():
            self.environment.events.request.fire(
                request_type="POST",
                name=UNSENT,
                response_time=0,
                response_length=0,
                exception=RuntimeError(UNSENT),
                context={},
            )
        else:
            self._under_way.spawn(self.send)

    def send(self) -> None:
        """One request of the scenario."""
        self.post("/classify", self.a_photo())


class Steady(Scenario):
    """The same rate for a minute."""


class Ramp(Scenario):
    """Six steps up to the rate."""

    phases = tuple((10, step / 6) for step in range(1, 7))


class Spike(Scenario):
    """A fifth of the rate, then suddenly all of it, then a fifth again; refusals do not count against the server."""

    phases = ((20, 0.2), (10, 1), (20, 0.2))
    max_error_share = 0.5


class Soak(Scenario):
    """Half an hour of half the rate; every fifth request is invalid."""

    phases = ((1800, 0.5),)

    def send(self) -> None:
        """A photo or an invalid request."""
        if random.random() < 0.8:  # noqa: S311
            super().send()
        else:
            self.send_invalid()

    def send_invalid(self) -> None:
        """Send a random invalid request."""
        invalid = random.choice(invalid_requests.of(self.a_photo()))  # noqa: S311
        self.post(f"/classify ({invalid.name})", invalid.body, invalid=invalid)


class Sizes(Scenario):
    """Photos of all sizes, from thumbnails to 4,000 pixels."""

    def on_start(self) -> None:
        """Prepare all sizes, which takes a second, before the first request is due."""
        super().on_start()
        resized(self.photos[0])

    def send(self) -> None:
        """Send the same photo in a random size."""
        index = random.randrange(len(SIDES))  # noqa: S311
        self.post(f"/classify ({SIDES[index]} pixels)", resized(self.photos[0])[index])


class Bad(Soak):
    """Invalid requests only: each must get its own problem document."""

    phases = ((60, 1),)

    def send(self) -> None:
        """An invalid request."""
        self.send_invalid()


SCENARIOS: dict[str, type[Scenario]] = {one.__name__.lower(): one for one in (Steady, Ramp, Spike, Soak, Sizes, Bad)}


class Phases(LoadTestShape):
    """The number of users, and so the rate, over the course of a scenario."""

    abstract = True  # otherwise locust would shape every run with it

    def __init__(self, scenario: type[Scenario], options: Namespace) -> None:
        super().__init__()
        self._scenario = scenario
        self._options = options

    def tick(self) -> tuple[int, float, list[type[User]] | None] | None:
        """The number of users now, how many may start a second, and their class; None: the run is over."""
        seconds = self.get_run_time()
        for length_s, share in self._scenario.phases:
            seconds -= length_s * self._options.length
            if seconds < 0:
                users = max(1, round(share * self._options.rate))
                return users, float(max(users, 100)), [self._scenario]
        return None
