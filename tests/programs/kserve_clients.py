"""Prints the answers that KServe's SDK gets for a red and a redder image; run by its environment's Python.

Arguments: the URL of HTTP, the address of gRPC, and the images' files.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from httpx import HTTPStatusError
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, address, *paths = sys.argv[1:]
encoded = [Path(path).read_bytes() for path in paths]
pixels = np.zeros((2, 32, 32, 3), np.uint8)
pixels[..., 0] = np.array([9, 200])[:, None, None]


def request(*, binary: bool) -> Any:
    tensor = InferInput("images", [*pixels.shape], "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return InferRequest("tiny", [tensor])


def best(response: Any) -> list[int]:
    indices = next(each for each in response.outputs if each.name == "indices")
    classes: list[int] = indices.as_numpy()[:, 0].tolist()
    return classes


async def main() -> None:
    found, ready = list[list[int]](), list[bool]()
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    instances = [{"image_bytes": {"b64": base64.b64encode(each).decode()}} for each in encoded]
    answer = await first.infer(url, {"instances": instances}, model_name="tiny")
    found.append([prediction[0]["class_id"] for prediction in answer["predictions"]])
    ready.append(await first.is_model_ready(url, "tiny"))
    try:
        await first.infer(url, {"instances": [{"b64": "QQ=="}]}, model_name="tiny")
    except HTTPStatusError as error:
        ready.append("this is no image" in str(error))
    second = InferenceRESTClient(RESTConfig(protocol="v2"))
    ready += [await second.is_server_live(url), await second.is_server_ready(url)]
    ready.append(await second.is_model_ready(url, "tiny"))
    client = InferenceGRPCClient(address)
    ready += [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("tiny")]
    for binary in (True, False):
        found.append(best(await second.infer(url, request(binary=binary), model_name="tiny")))
        found.append(best(await client.infer(request(binary=binary))))
    await client.close()
    print(json.dumps([found, ready]))


asyncio.run(main())
