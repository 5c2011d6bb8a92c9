"""An HTTP server whose every answer the test chooses."""

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count


def answer(top1: int) -> bytes:
    """A right answer."""
    predictions = [{"class_id": top1 + rank, "probability": 0.1} for rank in range(5)]
    return json.dumps({"model": "none", "predictions": predictions, "batch_size": 1}).encode()


@contextmanager
def fake_server(nth_answer: Callable[[int], tuple[int, bytes] | None]) -> Generator[str]:
    """An HTTP server that answers its n-th request with a status and a body; None: it closes the connection."""
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            chosen = nth_answer(next(numbers))
            if chosen is None:
                self.close_connection = True
                return
            status, body = chosen
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
