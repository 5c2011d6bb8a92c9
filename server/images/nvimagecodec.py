"""JPEG photos on an NVIDIA GPU: nvImageCodec decodes them in batches, and ONNX Runtime resamples their crops.

Photos that nvImageCodec refuses, or may read otherwise than Pillow, are left to Pillow. Decoder and graph also run on a
CPU (`nvimagecodec-cpu`), so that their answers can be checked without a GPU.
"""

import ctypes
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from models.manifest import Interpolation
from server import cuda
from server.errors import DeviceLostError
from server.images import resampling
from server.images.preprocess import Window

Kind = Literal["cuda", "cpu"]
"""Devices, by ONNX Runtime's names."""

MAX_PIXELS = 2**24
"""Larger photos are left to Pillow, which halves them while decoding and needs no floating-point copy."""
MAX_BATCH_PIXELS = 2**26
"""Photos are added to a batch until it has this many pixels: including the last photo, some 300 MB of GPU memory."""
LARGE_PIXELS = 2**21
"""After resampling a larger photo, its memory is freed, which ONNX Runtime would otherwise keep for ever."""

_TRAILER_BYTES = 64
"""Most bytes that may follow the end of a picture."""
_NEEDLESS = {*range(0xE1, 0xEE), 0xEF, 0xFE}
"""Segments that do not affect the pixels: comments, and application segments other than JFIF's and Adobe's."""
_PICTURE = {0xE0, 0xEE, 0xC4, 0xDB, 0xDD, 0xC0, 0xC1, 0xC2}
"""Segments that do: JFIF's and Adobe's, tables, and Huffman-coded frames, baseline or progressive."""
_NEITHER_SCAN_NOR_TABLE = re.compile(rb"\xff+[^\x00\xff\xc4\xd0-\xd7\xd9-\xdb\xdd\xfe]")
"""Markers after the first scan that begin another picture, or that decoders may interpret differently."""

log = logging.getLogger(__name__)


class _Photo(NamedTuple):
    data: bytes
    size: tuple[int, int]
    windows: Sequence[Window]
    interpolation: Interpolation
    crops: Future[list[NDArray[np.uint8]] | None]


class NvImageCodec:
    """Decodes in one thread, which owns a CUDA stream; any number of other threads wait for it."""

    def __init__(self, kind: Kind, threads: int, count: Callable[[str], None] = lambda _: None) -> None:
        """Open the decoder and both graphs.

        Args:
            kind: the device.
            threads: CPU threads that nvImageCodec may use.
            count: called with "done" or "refused" for each photo given to the decoder.

        Raises:
            ImportError: nvImageCodec is not installed.
            RuntimeError: nvImageCodec cannot decode here.
            Exception: any error of CUDA or ONNX Runtime.
        """
        self._codec = nvimgcodec = _import_quietly()
        self._kind = kind
        self._count = count
        self._stream = int(cuda.create_stream()) if kind == "cuda" else 0
        kinds = nvimgcodec.BackendKind
        on_gpu = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)
        backends = [nvimgcodec.Backend(each) for each in (on_gpu if kind == "cuda" else (kinds.CPU_ONLY,))]
        self._decoder = nvimgcodec.Decoder(
            device_id=0 if kind == "cuda" else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=threads,
            backends=backends,
            options=":fancy_upsampling=1",  # as libjpeg does for Pillow
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,  # the crops are turned instead, as they are smaller
            color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.P_RGB,
        )
        self._sessions = {name: self._session(resampling.graph(name)) for name in resampling.INTERPOLATIONS}
        self._shrinking = ort.RunOptions()
        if kind == "cuda":
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
        self._warm_up()
        self._waiting: SimpleQueue[_Photo] = SimpleQueue()
        self._lost = False
        Thread(target=self._turn, name="nvimagecodec", daemon=True).start()

    def crops(
        self, data: bytes, image: JpegImageFile, windows: Sequence[Window], interpolation: Interpolation
    ) -> list[NDArray[np.uint8]] | None:
        """See `JpegDecoder.crops`."""
        plain = None if self._lost or interpolation not in self._sessions else _plain(data, image)
        if plain is None:
            return None
        photo = _Photo(plain, image.size, windows, interpolation, Future())
        self._waiting.put(photo)
        crops = photo.crops.result()
        self._count("refused" if crops is None else "done")
        return crops

    def _warm_up(self) -> None:
        """Decode a picture and resample it with each interpolation, so that no request pays for first use."""
        size = (64, 64)
        window = Window((0, 0, 64, 64), (32, 32), 0, 0, mirrored=False)
        stream = io.BytesIO()
        Image.new("RGB", size).save(stream, "JPEG")
        for interpolation in resampling.INTERPOLATIONS:
            photo = _Photo(stream.getvalue(), size, [window], interpolation, Future())
            self._decode([photo])
            if not photo.crops.done():
                raise RuntimeError("nvImageCodec decodes nothing here: it lacks nvJPEG, CUDA or a GPU")

    def _session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        if self._kind == "cpu":
            return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        on_cuda = {
            "user_compute_stream": str(self._stream),  # the decoder's own, so that no synchronisation is needed
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers = [("CUDAExecutionProvider", on_cuda), "CPUExecutionProvider"]
        ort.preload_dlls()  # as the backend does
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != "CUDAExecutionProvider":  # ONNX Runtime only logs that it left CUDA out
            raise RuntimeError("this ONNX Runtime cannot use CUDA (docs/guides/providers.md)")
        return session

    def _turn(self) -> None:
        while True:
            photos = [self._waiting.get()]
            pixels = prod(photos[0].size)
            while not self._waiting.empty() and pixels < MAX_BATCH_PIXELS:
                photos.append(self._waiting.get())
                pixels += prod(photos[-1].size)
            try:
                self._decode(photos)
            except DeviceLostError:
                self._lost = True
                log.exception("this process has lost the GPU: from now on Pillow decodes")
            except Exception:
                log.exception("photos could not be decoded on the GPU: Pillow does it")
            for photo in photos:
                if not photo.crops.done():
                    photo.crops.set_result(None)

    def _decode(self, photos: Sequence[_Photo]) -> None:
        """Decode photos, and set the crops of those that could be decoded.

        Raises:
            DeviceLostError: this process cannot use the device any more.
        """
        streams = [self._codec.CodeStream(photo.data) for photo in photos]
        pictures = self._decoder.decode(streams, params=self._params, cuda_stream=self._stream)
        try:
            for photo, picture in zip(photos, pictures, strict=True):
                width, height = photo.size
                if picture is not None and picture.shape == (3, height, width):
                    photo.crops.set_result(self._resampled(photo, picture))
        finally:
            if not all(photo.crops.done() for photo in photos):  # nvImageCodec itself does not say why
                self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._kind == "cuda":
            cuda.raise_if_lost()

    def _resampled(self, photo: _Photo, picture: Any) -> list[NDArray[np.uint8]]:
        address = _address(picture.__cuda_array_interface__ if self._kind == "cuda" else picture.__array_interface__)
        _, row_bytes, _ = picture.strides  # may be more than the row's pixels
        shape = 3, photo.size[1], row_bytes
        session, crops = self._sessions[photo.interpolation], []
        options = self._shrinking if prod(photo.size) > LARGE_PIXELS else None
        for window in photo.windows:
            width, height = window.size
            binding = session.io_binding()
            binding.bind_input(resampling.PLANES, self._kind, 0, np.uint8, shape, address)
            known = resampling.inputs(
                photo.size, window.box, window.size, photo.interpolation
            )  # the binding does not keep them
            for name, values in known.items():
                binding.bind_cpu_input(name, values)
            out = np.empty((height, width, 3), np.uint8)
            binding.bind_output(resampling.PIXELS, "cpu", 0, np.uint8, out.shape, out.ctypes.data)
            session.run_with_iobinding(binding, options)
            crops.append(out)
        return crops


def _import_quietly() -> Any:
    """Import nvImageCodec without the lines that its C libraries print about codecs that they lack.

    Verbosity 0 also keeps them quiet later, when they refuse photos.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        return import_module("nvidia.nvimgcodec")
    finally:
        os.dup2(before, 2)
        os.close(before)


def _address(interface: Mapping[str, Any]) -> int:
    """Address of a picture, from its array interface.

    nvImageCodec 0.9 leaks one reference to the number, 32 bytes for each photo; this drops it.
    """
    pair = interface["data"]
    address: int = pair[0]
    if sys.getrefcount(address) > 3:  # more references than those of the pair, of `address` and of this call
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(address))
    return address


def _plain(data: bytes, image: JpegImageFile) -> bytes | None:
    """The photo without its metadata, if all decoders read its pixels alike; None if they may not.

    They do if it is grey or YCbCr, of moderate size, complete, a single picture, and without junk between its segments.
    Metadata is removed because nvImageCodec prints anything odd that it finds there.
    """
    components = [component for component, *_ in image.layer]
    usual = image.mode == "L" or (image.mode == "RGB" and components in ([1, 2, 3], [0, 1, 2]))
    if not usual or image.info.get("adobe_transform", 1) != 1 or prod(image.size) > MAX_PIXELS:
        return None
    kept, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\xda":
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or not at + 4 <= end < len(data) - 4:
            return None
        if kind in _PICTURE:
            kept.append(data[at:end])
        elif kind not in _NEEDLESS:
            return None
        at = end
    finish = data.find(b"\xff\xd9", at)
    if finish < max(at, len(data) - 2 - _TRAILER_BYTES) or _NEITHER_SCAN_NOR_TABLE.search(data, at, finish):
        return None
    return b"".join((*kept, data[at : finish + 2]))
