"""The FastAPI application of one HTTP worker."""

from fastapi import FastAPI

from server.http import classify, operations, problems
from server.http.service import Service


def create_app(service: Service) -> FastAPI:
    """All routes over one service."""
    app = FastAPI(
        title="ResNet serving",
        description="Image classification: an image in, its most probable classes out.",
        version="0.1.0",
        redirect_slashes=False,  # a redirect would go to whatever host the client named
    )
    problems.install(app)
    app.include_router(classify.router(service))
    app.include_router(operations.router(service))
    return app
