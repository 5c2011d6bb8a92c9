"""Recognises files and networks that cannot be exported, and says what they are and what to do with them.

Each table maps a pattern that only such a file has to the rest of a sentence that begins with the file's name; FILE in
it stands for that name, too.
"""

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

UNKNOWN = "is no checkpoint: neither torch.save nor safetensors wrote it"
BY_ONNX = "export it to ONNX where it was made, and give that file to export/from_onnx.py"
_HEAD_BYTES = 512
_CHUNK_BYTES = 1 << 20
_TORCH_BEFORE_ZIP = rb"\x02\x8a\x0al\xfc\x9cF\xf9"
"""An early `torch.save`'s magic number, which follows the first byte of the file."""

_ARCHIVE = "is an archive: unpack it, and give the file in it"
SAVED_MODEL = "is a TensorFlow SavedModel: python -m tf2onnx.convert writes what export/from_onnx.py takes"
_DISTRIBUTED = (
    "is a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FILE weights.pth"
    " writes a file that can be read"
)
_KERAS = "is a file of Keras: there, model.export('model.onnx', format='onnx') writes what export/from_onnx.py takes"

_FIRST_BYTES: Sequence[tuple[bytes, str]] = (
    (rb"\Z", "is empty: copy it again"),
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file that it stands for: git lfs pull fetches that"),
    (rb"\s*(?i:<!doctype html|<html|<head|<\?xml)", "is a web page, saved under the name of a file: download it again"),
    (rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32:B]", "is an ONNX file: export/from_onnx.py FILE takes it"),
    (rb"\x89HDF\r\n", _KERAS),
    (rb"\x08\x01", SAVED_MODEL),
    (rb".{4}TFL3", "is a TensorFlow Lite file: python -m tf2onnx.convert writes what export/from_onnx.py takes"),
    (rb"[\x81-\x8f]\xa6params", f"holds the parameters of a Flax network: {BY_ONNX}"),
    (rb"\x1f\x8b|.{257}ustar|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd", _ARCHIVE),
    (rb"\s*(\{\s*\"|\[\s*[\"\[{\d])", "is JSON text: give the file of weights that it belongs to"),
    (
        rb"\x80(?!" + _TORCH_BEFORE_ZIP + rb")",
        "is a pickle that torch.save did not write, so reading it might run code: read it where it comes from, and"
        " torch.save its parameters as a dict of names and tensors",
    ),
)
_MEMBERS: Sequence[tuple[str, str]] = (
    (
        r"/code/__torch__|/constants\.pkl$",
        "is a TorchScript program: torch.save(torch.jit.load('FILE').state_dict(), 'weights.pth') writes its"
        " parameters, or torch.onnx.export writes what export/from_onnx.py takes",
    ),
    (
        r"/archive_format$|serialized_exported_program\.json$",
        "is a program of torch.export: torch.save(torch.export.load('FILE').state_dict, 'weights.pth') writes its"
        " parameters, or torch.onnx.export writes what export/from_onnx.py takes",
    ),
    (r"^model\.weights\.h5$", _KERAS),
    (r"\.npy$", f"is an archive of NumPy arrays, as JAX's networks are published: {BY_ONNX}"),
)
WHOLE = (
    "where it was trained, torch.save get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of"
    " torch.distributed.checkpoint.state_dict"
)
QUANTISED = (
    "is of a network that is quantised already: give the checkpoint in floating point, and quantise its export with"
    " export/quantize.py"
)
_PARAMETERS: Sequence[tuple[str, str]] = (
    (r"(^|\.)(zero_point|_packed_params)(\.|$)", QUANTISED),
    (
        r"(^|\.)parametrizations\.",
        "has weights that are computed from others: torch.nn.utils.parametrize.remove_parametrizations on each such"
        " layer makes them plain, and the state_dict() after that can be read",
    ),
    (
        r"(^|\.)(encoder_[qk]|(base|momentum)_encoder|projector|projection_head|prototypes)\.|^(student|teacher)\..*head\."
        r"|(^|\.)(mlp_head|head\.mlp|head\.last_layer)\.",
        "is self-supervised pre-training (as DINO's or MoCo's), whose encoder cannot tell classes apart: train a last"
        " layer on it, and export the result",
    ),
    (r"(^|\.)(rpn|roi_heads|bbox_head|backbone\.fpn)\.", "is of a detector of objects, not of a classifier"),
    (r"(^|\.)(aux_classifier|decode_head)\.", "is of a network that segments images, not of a classifier"),
    (r"^0\.4\.0\.conv1\.weight$", f"is of a body and a head as fastai builds them, not supported here: {BY_ONNX}"),
    (r"(^|\.)(attn|attention|self_attention)\.", f"is of a transformer, which is not supported here: {BY_ONNX}"),
    (r"(^|\.)(features|blocks|stages)\.\d", f"is of a network that is not supported here: {BY_ONNX}"),
)


def file(path: Path) -> str | None:
    """Say what a file is if it is not a checkpoint; None if it may be one.

    Raises:
        OSError: the file cannot be read.
    """
    sentence = _file(path)
    return sentence and sentence.replace("FILE", str(path))


def _file(path: Path) -> str | None:
    if path.is_dir():
        if (path / ".metadata").exists() and any(path.glob("*.distcp")):
            return _DISTRIBUTED
        return SAVED_MODEL if (path / "saved_model.pb").exists() else "is a folder: give a file in it"
    if path.exists() and not path.is_file():
        return "is no regular file: copy what it gives into one"
    first = _first_bytes(path)
    if first.startswith(b"PK\x03\x04"):
        return _zip(path)
    if is_safetensors(path):
        return None
    for signature, sentence in _FIRST_BYTES:
        if re.match(signature, first, re.DOTALL):
            return sentence
    return None if first.startswith(b"\x80") else UNKNOWN


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does, whatever its name: with the length of a header, then JSON."""
    return re.match(rb".{8}\{\s*[\"}]", _first_bytes(path), re.DOTALL) is not None


def check_sums(path: Path) -> None:
    """Compare the content of a file of `torch.save` with the checksums in it, as far as it has any; torch does not.

    Raises:
        zipfile.BadZipFile: they differ.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # The sum is 0 if torch was told to compute none, and torch compresses nothing.
            if member.CRC and member.compress_type == zipfile.ZIP_STORED:
                with archive.open(member) as content:
                    while content.read(_CHUNK_BYTES):
                        pass


def network(names: Iterable[str]) -> str | None:
    """Say which network parameters of these names belong to, if it is known and cannot be exported; else None."""
    listed = list(names)
    for pattern, sentence in _PARAMETERS:
        if any(re.search(pattern, name) for name in listed):
            return sentence
    return None


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except OSError:
        raise
    except Exception:  # a damaged directory raises almost anything
        return "is cut off or damaged: copy it again"
    for pattern, sentence in _MEMBERS:
        if any(re.search(pattern, member) for member in members):
            return sentence
    return None if any(member.endswith("data.pkl") for member in members) else _ARCHIVE


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
