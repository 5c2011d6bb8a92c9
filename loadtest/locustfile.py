"""Users who post photos, each as soon as it has its last answer; every answer is checked.

`locust -f loadtest/locustfile.py --headless -u 8 -t 20s --host http://127.0.0.1:8000`

Exits with 1 where any answer was wrong or nothing was answered. `--photos FOLDER` or `LOCUST_PHOTOS`: what to post.
"""

import random
from argparse import ArgumentParser
from functools import cache
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task
from locust.env import Environment

from loadtest import answers, photos
from loadtest.answers import WrongAnswerError

_BOUNDARY = b"----a-photo----"
_FORM_HEAD = (
    b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
    b"Content-Type: image/jpeg\r\n\r\n"
)
_FORM_TAIL = b"\r\n--" + _BOUNDARY + b"--\r\n"


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--photos", env_var="LOCUST_PHOTOS", default=str(photos.FOLDER), help="folder of photos to post"
    )


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _fail_without_answers(environment: Environment, **_: object) -> None:
    if not environment.stats.num_requests:
        environment.process_exit_code = 1


@cache
def _load(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in photos.find(Path(folder))]


class Visitor(FastHttpUser):
    """Posts random photos, three as the body for each one in a form."""

    def on_start(self) -> None:
        """Have the photos in memory."""
        self.photos = _load(self.environment.parsed_options.photos)

    @task(3)
    def post_body(self) -> None:
        """As `curl --data-binary` does."""
        self._post("/classify (body)", random.choice(self.photos), "image/jpeg")  # noqa: S311

    @task(1)
    def post_form(self) -> None:
        """As `curl -F file=@` and browsers do."""
        body = _FORM_HEAD + random.choice(self.photos) + _FORM_TAIL  # noqa: S311
        self._post("/classify (form)", body, f"multipart/form-data; boundary={_BOUNDARY.decode()}")

    def _post(self, name: str, body: bytes, content_type: str) -> None:
        headers = {"Content-Type": content_type}
        data: Any = body  # bytes are fine, though locust declares str alone
        with self.client.post("/classify", name=name, data=data, headers=headers, catch_response=True) as response:
            try:
                answers.parse(response.status_code, response.content or repr(response.error).encode())
            except WrongAnswerError as error:
                response.failure(str(error))
