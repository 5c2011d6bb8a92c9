"""A small network on the CPU as two graphs: one with features and activation maps, and one without.

Runtimes compute every output of a graph, whether a batch wants it or not. The few operators behind these two outputs
would make requests that want neither slower by up to 5 % (docs/measurements/features.md).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.manifest import EXTRA_NAMES, Manifest
from server.engine.backends import ONNX_BACKENDS, Backend, Outputs, extra_names
from server.engine.classes import Extras
from server.settings import GPU_PROVIDERS, Settings

LARGEST_FILE_BYTES: Mapping[str, int] = {"onnx": 2**23, "openvino": 2**25}
"""In networks with larger files, these outputs take 1 % of the time at most, and the weights take memory twice."""

# Numbers of fields in onnx.proto, and how protocol buffers encode a field's value
# (https://protobuf.dev/programming-guides/encoding).
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_OUTPUT = 1, 12
_VALUE_NAME = 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPHS = 6, 11  # one, and several
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class TwoGraphs:
    """Runs a batch without features and activation maps, unless one of its requests wants them."""

    on_gpu = False
    extras_apart = True

    def __init__(self, plain: Backend, whole: Backend) -> None:
        self.instances = plain.instances
        self._plain = plain
        self._whole = whole

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`."""
        return self._graph(wanted).run(images, wanted)

    def run_beside(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run_beside`."""
        return self._graph(wanted).run_beside(images, wanted)

    def _graph(self, wanted: Extras) -> Backend:
        return self._whole if extra_names(wanted) else self._plain

    def close(self) -> None:
        """See `Backend.close`."""
        self._plain.close()
        self._whole.close()


def are_worth_it(manifest: Manifest, content: bytes, settings: Settings) -> bool:
    """Whether a model should run as two graphs: it has the outputs, is a small ONNX file, and runs on the CPU."""
    if manifest.backend not in ONNX_BACKENDS or not manifest.features:
        return False
    runtime = settings.backend or manifest.backend
    on_gpu = runtime == "onnx" and not GPU_PROVIDERS.isdisjoint(settings.providers)
    return not on_gpu and len(content) <= LARGEST_FILE_BYTES[runtime]


def classes_alone(content: bytes) -> bytes:
    """Remove the outputs of EXTRA_NAMES from an ONNX file, and the operators that only they need.

    The server has no ONNX library. This reads the few fields that it needs, and copies everything else as it is.
    """
    fields = list(_fields(memoryview(content)))
    return b"".join(_field(number, _pruned(value)) if number == _MODEL_GRAPH else raw for number, value, raw in fields)


def _pruned(graph: memoryview) -> bytes:
    fields = list(_fields(graph))
    outputs = {name for number, value, _ in fields if number == _GRAPH_OUTPUT for name in _names(value, _VALUE_NAME)}
    needed = outputs - {name.encode() for name in EXTRA_NAMES}
    kept: list[memoryview] = []
    for number, value, raw in reversed(fields):  # ONNX has a node after those whose outputs it reads
        if number == _GRAPH_OUTPUT and needed.isdisjoint(_names(value, _VALUE_NAME)):
            continue
        if number == _GRAPH_NODE:
            if needed.isdisjoint(_names(value, _NODE_OUTPUT)):
                continue
            needed.update(filter(None, _read_by(value)))  # an optional input may have no name
        kept.append(raw)
    return b"".join(reversed(kept))


def _read_by(node: memoryview) -> Iterator[bytes]:
    """The values that a node reads, or that a node in one of its subgraphs does."""
    yield from _names(node, _NODE_INPUT)
    for number, attribute, _ in _fields(node):
        if number == _NODE_ATTRIBUTE:
            for kind, graph, _ in _fields(attribute):
                if kind in _ATTRIBUTE_GRAPHS:
                    for part, inner, _ in _fields(graph):
                        if part == _GRAPH_NODE:
                            yield from _read_by(inner)


def _names(message: memoryview, wanted: int) -> list[bytes]:
    return [bytes(value) for number, value, _ in _fields(message) if number == wanted]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Each field's number, its value if that is a text or a message, and the whole field."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        size = {_FIXED64: 8, _FIXED32: 4}.get(tag & 7, 0)
        if tag & 7 in (_VARINT, _BYTES):
            number, at = _varint(message, at)
            size = number if tag & 7 == _BYTES else 0
        yield tag >> 3, message[at : at + size], message[start : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    number = shift = 0
    while message[at] >= 128:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | message[at] << shift, at + 1


def _field(number: int, value: bytes) -> bytes:
    head, size = bytearray([number << 3 | _BYTES]), len(value)
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + value
