"""Reads everything that a published model's files say about it, except its parameters.

The preprocessing is what the library that wrote the files does at inference. Neither that library nor torch is needed.
"""

from models import config, hub, timm_config, transformers_config
from models.config import Published
from models.hub import Place, SourceError


def read(place: Place) -> Published:
    """Read the config of a model.

    Raises:
        SourceError: the model is not an image classifier, or another library wrote the config.
    """
    content = config.read_json(place, hub.CONFIG)
    if "architecture" in content:
        return timm_config.read(content, place)
    if "model_type" in content:
        return transformers_config.read(content, place)
    raise SourceError(
        f"{hub.CONFIG} of {place.origin} is neither timm's nor transformers': name the network, and give the file with"
        " --weights FILE"
    )
