"""The FastAPI application of one HTTP worker."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from server import VERSION
from server.http import classify, operations, page, problems, v2
from server.http.refusals import EarlyRefusals
from server.http.service import Service


def create_app(service: Service) -> ASGIApp:
    """All routes over one service."""
    app = FastAPI(
        title="ResNet serving",
        description="Image classification: an image in, its most probable classes out.",
        version=VERSION,
        redirect_slashes=False,  # a redirect would go to whatever host the client named
        docs_url=None,  # FastAPI's own load scripts from elsewhere; ours is in page
        redoc_url=None,
    )
    problems.install(app)
    app.include_router(classify.router(service))
    app.include_router(operations.router(service))
    app.include_router(v2.router(service))
    page.install(app)
    return EarlyRefusals(app, service)
