"""`/`: a page to try photos on and to watch the server. `/docs`: the API. Neither loads anything from other hosts."""

from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
PAGES = {"/": "index.html", "/docs": "docs.html"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated each time (usually 304), so that a new server's page shows at once
}


def is_file(method: str, path: str) -> bool:
    """Whether a request is for a page or a file that it loads: these hold no secrets, so they need no key."""
    return method in ("GET", "HEAD") and (path in PAGES or path.startswith("/static/"))


def install(app: FastAPI) -> None:
    """Add the pages, and the files they load below `/static`."""
    files = _Files(directory=FOLDER, packages=[("fastapi_swagger", "resources")])
    app.mount("/static", files)

    async def page(request: Request) -> Response:
        return await files.get_response(PAGES[request.url.path], request.scope)

    for path in PAGES:
        app.add_route(path, page, include_in_schema=False)


class _Files(StaticFiles):
    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response
