"""Plain FastAPI: an endpoint in the thread pool runs the network on its own image; no batches."""

import os
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request

from loadtest.compare.rivals import work

app = FastAPI()
network = work.Network()


async def body(request: Request) -> bytes:
    """Read the upload on the event loop, so that the endpoint itself need not be async."""
    return await request.body()


@app.post("/predict")
def predict(photo: Annotated[bytes, Depends(body)]) -> dict[str, Any]:
    """Classify one photo."""
    return work.answers(network(work.pixels(photo)[np.newaxis]))[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
