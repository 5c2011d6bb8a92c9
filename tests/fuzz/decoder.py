"""Coverage-guided fuzzing of the decoder: `python -m tests.fuzz.decoder -runs=300000` (any flag of libFuzzer).

libFuzzer mutates real images of every format and keeps what reaches new lines of `decode`, Pillow or pillow_heif.
Anything but a picture or a ServiceError, a signal, an input that takes 5 s, or memory that grows past the limit ends
the run; the input is left in a file `crash-...`, `timeout-...` or `oom-...`, which this command runs again if given as
an argument.
"""

import random
import resource
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "pillow_heif", "server.images"]):
    from server.errors import ServiceError
    from server.images.decode import decode

import numpy as np

from models.manifest import Preprocessing
from tests.fuzz.seeds import seeds

LIMITS = ("-timeout=20", "-rss_limit_mb=400", "-max_len=8192", "-print_final_stats=1")
MAX_PIXELS = 2**16
"""Small, so that a run exercises parsing; other tests check that large images are refused."""
_PREPROCESSING = Preprocessing(resize=32, crop=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
_PNG = b"\x89PNG\r\n\x1a\n"


def one_input(data: bytes) -> None:
    """Decode as the server does."""
    out = np.zeros((32, 32, 3), np.uint8)
    try:
        decode(data, _PREPROCESSING, [out], max_pixels=MAX_PIXELS)
    except ServiceError:
        return


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's mutation; half of all PNGs get right checksums, since few others are read past the first chunk."""
    found: bytes = atheris.Mutate(data, max_size)
    right = found.startswith(_PNG) and random.Random(seed).random() < 0.5
    return with_checksums(found)[:max_size] if right else found


def with_checksums(data: bytes) -> bytes:
    """A PNG with the CRC of each chunk corrected (PNG specification, 5.3)."""
    fixed, at = bytearray(data), len(_PNG)
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def main() -> None:
    """Run libFuzzer, which ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in seeds().items():
            (Path(folder) / name).write_bytes(data)
        # Only new inputs are written, to the first folder.
        given = sys.argv[1:]
        replay = any(not flag.startswith("-") for flag in given)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        atheris.Setup([sys.argv[0], *LIMITS, *given, *([] if replay else [folder])], one_input, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
