"""Tensors as the protocol's messages encode them.

Inputs have three datatypes: UINT8, FP32 and BYTES. REST and gRPC share a raw form, little-endian and row by row, in
which each element of BYTES is its length in four bytes, then its content; besides, JSON has lists, gRPC typed fields.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import Code, ServiceError

Datatype = Literal["BOOL", "UINT8", "INT32", "FP32", "BYTES"]
InputType = Literal["UINT8", "FP32", "BYTES"]
Values = NDArray[Any] | Sequence[bytes]
"""Numbers of any shape, or the elements of BYTES in order."""

_LENGTH = struct.Struct("<I")


class Tensor(NamedTuple):
    """One tensor of an answer."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: Values


def from_raw(datatype: str, raw: bytes | memoryview, count: int) -> Values:
    """The `count` elements of BYTES, or uint8[n] or float32[n]: a view of the message, which it keeps alive.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    if datatype == "BYTES":
        return elements_from_raw(raw, count)
    if datatype == "UINT8":
        return np.frombuffer(raw, np.uint8)
    if len(raw) % 4:
        raise ServiceError(Code.INVALID_REQUEST, f"data of FP32 must be four bytes a number, not {len(raw)} in all")
    return np.frombuffer(raw, "<f4")


def from_list(datatype: str, values: Any) -> Values:
    """The elements of a tensor in JSON.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    if datatype == "BYTES":
        return elements_from_list(values)
    return numbers_from_list(values) if datatype == "UINT8" else floats_from_list(values)


def numbers_from_list(values: Any) -> NDArray[np.uint8]:
    """uint8[n] of numbers in lists, nested or not.

    Raises:
        ServiceError: INVALID_REQUEST, they are not all whole numbers from 0 to 255.
    """
    numbers = _array(values)
    if not numbers.size or numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255:
        raise ServiceError(Code.INVALID_REQUEST, "data of UINT8 must be whole numbers of 0 to 255, in even rows")
    return numbers.ravel().astype(np.uint8)


def floats_from_list(values: Any) -> NDArray[np.float32]:
    """float32[n] of numbers in lists, nested or not.

    Raises:
        ServiceError: INVALID_REQUEST, they are not all numbers.
    """
    numbers = _array(values)
    if numbers.dtype.kind not in "iuf":
        raise ServiceError(Code.INVALID_REQUEST, "data of FP32 must be numbers, in even rows")
    with np.errstate(over="ignore"):  # infinite values fail the check of the pixels
        return numbers.ravel().astype(np.float32)


def _array(values: Any) -> NDArray[Any]:
    """The lists as an array; its dtype is not numeric if they are ragged or hold anything but numbers."""
    try:
        return np.asarray(values)
    except (ValueError, OverflowError):
        return np.empty(0, object)


def elements_from_raw(raw: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` elements of a tensor of BYTES, copied out of the message.

    Raises:
        ServiceError: INVALID_REQUEST, there are fewer or more.
    """
    elements: list[bytes] = []
    start = 0
    while len(elements) < count and start + _LENGTH.size <= len(raw):
        end = start + _LENGTH.size + _LENGTH.unpack_from(raw, start)[0]
        if end > len(raw):
            break
        elements.append(bytes(raw[start + _LENGTH.size : end]))
        start = end
    if len(elements) < count or start < len(raw):
        detail = f"data of BYTES must be {count} elements, each after its length in four little-endian bytes"
        raise ServiceError(Code.INVALID_REQUEST, detail)
    return elements


def elements_from_list(values: Any) -> list[bytes]:
    """The elements of a tensor of BYTES from Base64, as a JSON string cannot hold arbitrary bytes.

    Raises:
        ServiceError: INVALID_REQUEST, they are not all strings of Base64.
    """
    try:
        return [base64.b64decode(text, validate=True) for text in np.asarray(values, dtype=object).ravel().tolist()]
    except (TypeError, ValueError):
        raise ServiceError(
            Code.INVALID_REQUEST, "data of BYTES in JSON must be strings of Base64; binary data needs no encoding"
        ) from None


def to_raw(values: Values) -> bytes:
    """The raw form."""
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(_LENGTH.pack(len(element)) + element for element in values)


def to_list(values: Values) -> list[Any]:
    """The JSON form: a flat list of numbers or strings."""
    if isinstance(values, np.ndarray):
        flat: list[Any] = values.ravel().tolist()
        return flat
    return [element.decode() for element in values]
