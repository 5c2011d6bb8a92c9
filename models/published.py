"""From the files of a published model to all that they say of it, beside its parameters.

The preprocessing is what the library that wrote the files does at inference. Neither that library nor torch is needed.
"""

from models import config, hub, timm_config, transformers_config
from models.config import Published
from models.hub import Place, SourceError


def read(place: Place) -> Published:
    """Read the config of a model.

    Raises:
        SourceError: it is of something that is no image classifier, or of another library.
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
