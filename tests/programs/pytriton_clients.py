"""Prints the answers that PyTriton's clients get for a red and a redder image; run by its environment's Python.

Arguments: the addresses of HTTP and gRPC, and the images' files.
"""

import asyncio
import json
import sys
import warnings
from pathlib import Path

import numpy as np
from pytriton.client import AsyncioModelClient, FuturesModelClient, ModelClient

warnings.simplefilter("ignore")
http, grpc, *paths = sys.argv[1:]
encoded = np.array([[Path(path).read_bytes()] for path in paths], dtype=object)
pixels = np.zeros((2, 32, 32, 3), np.uint8)
pixels[..., 0] = np.array([9, 200])[:, None, None]


async def asynchronous(url: str) -> list[int]:
    async with AsyncioModelClient(url, "tiny:images") as client:
        best: list[int] = (await client.infer_batch(pixels))["scores"].argmax(1).tolist()
        return best


found = []
for url in (f"http://{http}", f"grpc://{grpc}"):
    with ModelClient(url, "tiny:images") as client:
        found.append(client.infer_batch(pixels)["scores"].argmax(1).tolist())
        found.append([int(client.infer_sample(each)["scores"].argmax()) for each in pixels])
    with ModelClient(url, "tiny:encoded", "1") as client:
        found.append(client.infer_batch(encoded)["scores"].argmax(1).tolist())
    with ModelClient(url, "tiny") as client:
        answer = client.infer_batch(encoded=encoded, parameters={"top_k": 3})
        found.append(answer["indices"][:, 0].tolist())
    found.append(asyncio.run(asynchronous(url)))
with FuturesModelClient(f"http://{http}", "tiny:images") as client:
    found.append([int(future.result()["scores"].argmax()) for future in map(client.infer_sample, pixels)])
print(json.dumps(found))
