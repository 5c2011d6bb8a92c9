"""Parameters split over several files: an index, such as `model.safetensors.index.json`, and the files it names."""

import json
from pathlib import Path

from models.errors import ExpectedError

SUFFIX = ".index.json"
"""Of an index; before it stands what it is an index of: `.safetensors`, or `.bin` for files of `torch.save`."""


class ShardsError(ExpectedError):
    """An index cannot be read, or names something other than a file beside it."""


def names(path: Path) -> tuple[str, ...]:
    """Return the names of the files that an index lists, sorted; () if `path` is not an index.

    Raises:
        ShardsError: the index is not as safetensors and transformers write it.
    """
    if not path.name.endswith(SUFFIX):
        return ()
    try:
        found = sorted({str(name) for name in json.loads(path.read_bytes())["weight_map"].values()})
    except OSError as error:
        raise ShardsError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardsError(f"{path} is no index of safetensors or torch.save's files: it has no weight_map") from error
    if not found or any(Path(name).name != name for name in found):
        raise ShardsError(f"{path} does not name files that lie beside it")
    return tuple(found)


def files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the parameters: those that an index lists, or the file itself.

    Raises:
        ShardsError: see `names`.
    """
    return tuple(path.with_name(name) for name in names(path)) or (path,)
