"""A client of the service, for programs (`Client`, `AsyncClient`) and for people (`classify photo.jpg`).

with Client("http://127.0.0.1:8000") as client:
    print(client.classify(Path("cat.jpg").read_bytes()).predictions[0].label)
"""

from resnet_serving_client.clients import DEFAULT_DEADLINE_S, DEFAULT_URL, AsyncClient, Client
from resnet_serving_client.errors import (
    BusyError,
    ClientError,
    FailedError,
    MissingPackageError,
    NoAnswerError,
    ProblemError,
    RejectedError,
)
from resnet_serving_client.responses import Classification, Embedding, Heatmap, Model, Prediction, Timings

__all__ = [
    "DEFAULT_DEADLINE_S",
    "DEFAULT_URL",
    "AsyncClient",
    "BusyError",
    "Classification",
    "Client",
    "ClientError",
    "Embedding",
    "FailedError",
    "Heatmap",
    "MissingPackageError",
    "Model",
    "NoAnswerError",
    "Prediction",
    "ProblemError",
    "RejectedError",
    "Timings",
]
