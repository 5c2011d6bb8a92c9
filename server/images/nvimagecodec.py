"""JPEG photos on an NVIDIA GPU: nvImageCodec decodes those that wait together, ONNX Runtime resamples their crops.

What it refuses is left to Pillow: this decides how fast a photo is decoded, never whether. Decoder and graph run on a
CPU as well (`nvimagecodec-cpu`), which shows what they answer where there is no GPU.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import prod
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from models.manifest import Interpolation, Preprocessing
from server.engine.backends import DeviceLostError, device
from server.images import resampling
from server.images.preprocess import Box

Kind = Literal["cuda", "cpu"]
"""As ONNX Runtime calls devices."""

MAX_PIXELS = 2**24
"""Larger photos are left to Pillow, which halves them while it decodes and needs no floating-point copy."""
MAX_BATCH_PIXELS = 2**26
"""Photos are added to a batch while it has fewer: with those of the last, some 300 MB of the GPU's memory."""
_TRAILER_BYTES = 64
"""What may follow the end of a picture; without an end it is a broken one, which Pillow is to say."""

log = logging.getLogger(__name__)


class _Photo(NamedTuple):
    data: bytes
    size: tuple[int, int]
    boxes: Sequence[Box]
    preprocessing: Preprocessing
    crops: Future[list[NDArray[np.uint8]] | None]


class NvImageCodec:
    """Decodes in one thread, which owns a stream of the GPU; any number of others wait for it."""

    def __init__(self, kind: Kind, threads: int, count: Callable[[str], None] = lambda _: None) -> None:
        """Open the decoder and both graphs.

        Args:
            kind: of the device.
            threads: of the CPU, for what nvImageCodec does there.
            count: told "done" or "refused" of each photo.

        Raises:
            ImportError: nvImageCodec or ONNX is not installed.
            Exception: whatever CUDA or ONNX Runtime report.
        """
        # Else each broken upload would be a line of the log, past its bounds on bursts.
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        from nvidia import nvimgcodec

        self._codec = nvimgcodec
        self._kind = kind
        self._count = count
        self._stream = int(device.create_stream()) if kind == "cuda" else 0
        kinds = nvimgcodec.BackendKind
        on_gpu = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)
        backends = [nvimgcodec.Backend(each) for each in (on_gpu if kind == "cuda" else (kinds.CPU_ONLY,))]
        self._decoder = nvimgcodec.Decoder(
            device_id=0 if kind == "cuda" else _NO_DEVICE,
            max_num_cpu_threads=threads,
            backends=backends,
            options=":fancy_upsampling=1",  # as libjpeg does it for Pillow
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,  # the crops are turned: they are smaller
            color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.P_RGB,
        )
        self._sessions = {name: self._session(resampling.graph(name)) for name in get_args(Interpolation)}
        self._waiting: SimpleQueue[_Photo] = SimpleQueue()
        self._lost = False
        Thread(target=self._turn, name="nvimagecodec", daemon=True).start()

    def crops(
        self, data: bytes, image: JpegImageFile, boxes: Sequence[Box], preprocessing: Preprocessing
    ) -> list[NDArray[np.uint8]] | None:
        """See `JpegDecoder.crops`."""
        if self._lost or not _is_plain(data, image):
            return None
        photo = _Photo(data, image.size, boxes, preprocessing, Future())
        self._waiting.put(photo)
        crops = photo.crops.result()
        self._count("refused" if crops is None else "done")
        return crops

    def _session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self._kind == "cpu":
            return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        cuda = {
            "user_compute_stream": str(self._stream),  # the decoder's, which it then need not wait for
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != "CUDAExecutionProvider":  # left out with no more than a line of its log
            raise RuntimeError("this ONNX Runtime cannot use CUDA (docs/providers.md)")
        return session

    def _turn(self) -> None:
        while True:
            photos = [self._waiting.get()]
            while not self._waiting.empty() and sum(prod(photo.size) for photo in photos) < MAX_BATCH_PIXELS:
                photos.append(self._waiting.get())
            try:
                self._decode(photos)
            except Exception:
                self._look_after_failure()
            for photo in photos:
                if not photo.crops.done():
                    photo.crops.set_result(None)

    def _decode(self, photos: Sequence[_Photo]) -> None:
        streams = [self._codec.CodeStream(photo.data) for photo in photos]
        pictures = self._decoder.decode(streams, params=self._params, cuda_stream=self._stream)
        for photo, picture in zip(photos, pictures, strict=True):
            width, height = photo.size
            if picture is None or picture.shape != (3, height, width):
                continue  # it is refused
            photo.crops.set_result([self._resample(picture, box, photo.preprocessing) for box in photo.boxes])

    def _resample(self, picture: Any, box: Box, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        interface = picture.__cuda_array_interface__ if self._kind == "cuda" else picture.__array_interface__
        address, _ = interface["data"]
        _, height, width = picture.shape
        out = np.empty((preprocessing.crop, preprocessing.crop, 3), np.uint8)
        session = self._sessions[preprocessing.interpolation]
        binding = session.io_binding()
        _, row_bytes, _ = picture.strides  # which may be longer than the row
        binding.bind_input(resampling.PLANES, self._kind, 0, np.uint8, (3, height, row_bytes), address)
        binding.bind_cpu_input(resampling.BOX, np.array(box, np.float32))
        binding.bind_cpu_input(resampling.SIZES, np.array((width, preprocessing.crop), np.int64))
        binding.bind_output(resampling.PIXELS, "cpu", 0, np.uint8, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)
        return out

    def _look_after_failure(self) -> None:
        log.exception("photos could not be decoded on the GPU: Pillow does it")
        try:
            if self._kind == "cuda":
                device.raise_if_lost()
        except DeviceLostError:
            self._lost = True
            log.exception("this process has lost the GPU: from now on Pillow decodes")


_NO_DEVICE = -99999
"""NVIMGCODEC_DEVICE_CPU_ONLY (nvimgcodec.h), which Python has no name for."""


def _is_plain(data: bytes, image: JpegImageFile) -> bool:
    """Whether all decoders understand the same by it: grey or YCbCr, of a moderate size, and complete."""
    components = [component for component, *_ in image.layer]
    return (
        prod(image.size) <= MAX_PIXELS
        and (image.mode == "L" or (image.mode == "RGB" and components in ([1, 2, 3], [0, 1, 2])))
        and image.info.get("adobe_transform", 1) == 1
        and data.rfind(b"\xff\xd9", -_TRAILER_BYTES) >= 0
    )
