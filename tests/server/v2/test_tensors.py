"""Tensors as encoded in the protocol's messages."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ServiceError
from server.v2.tensors import from_list, from_raw, to_list, to_raw


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_elements_come_back_from_their_raw_form(elements: list[bytes]) -> None:
    raw = to_raw(elements)
    assert from_raw("BYTES", raw, len(elements)) == elements
    for count in {len(elements) - 1, len(elements) + 1} - {-1}:
        with pytest.raises(ServiceError):
            from_raw("BYTES", raw, count)


@given(st.binary(max_size=40), st.integers(0, 2**40))
def test_whatever_the_bytes_they_are_elements_or_an_error(raw: bytes, count: int) -> None:
    try:
        elements = from_raw("BYTES", memoryview(raw), count)
    except ServiceError:
        return
    assert to_raw(elements) == raw


def test_numbers_lie_little_endian_row_by_row() -> None:
    assert to_raw(np.array([[1, 2], [3, 4]], np.int32)) == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])
    assert np.asarray(from_raw("UINT8", bytes([0, 255]), 2)).tolist() == [0, 255]


def test_lists_may_be_nested_or_flat() -> None:
    for values in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        assert np.asarray(from_list("UINT8", values)).tolist() == [1, 2, 3, 4]
    text = base64.b64encode(b"\xff\x00").decode()
    for texts in ([text], [[text]]):
        assert from_list("BYTES", texts) == [b"\xff\x00"]


@pytest.mark.parametrize(
    "values", [[256], [-1], [1.5], [True], ["1"], [None], [[1], [2, 3]], [], [10**30], [[[]]], [{}]], ids=str
)
def test_what_is_no_uint8_is_refused_not_converted(values: list[object]) -> None:
    with pytest.raises(ServiceError):
        from_list("UINT8", values)


@pytest.mark.parametrize("values", [[1], ["%"], ["é"], [None], [["QQ=="], []], ["QQ="]], ids=str)
def test_what_is_no_base64_is_refused(values: list[object]) -> None:
    with pytest.raises(ServiceError):
        from_list("BYTES", values)


def test_json_has_flat_lists() -> None:
    assert to_list(np.array([[1, 2]], np.int32)) == [1, 2]
    assert to_list(["é".encode()]) == ["é"]
