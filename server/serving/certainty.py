"""Prediction sets of calibrated models, and their judgement whether an image belongs to any of their classes."""

import numpy as np

from models import confidence
from models.manifest import CropCount, Entry, Manifest, members_of
from server.engine.classes import Classes, Extras, average
from server.errors import Code, ServiceError


def check(entry: Entry, coverage: float | None, *, reject: bool, crops: CropCount) -> None:
    """Refuse a request that the model's calibration cannot answer.

    Raises:
        ServiceError: NOT_CALIBRATED, or INVALID_PARAMETER if the calibration does not cover the request.
    """
    if not isinstance(entry, Manifest):
        detail = (
            f"{entry.name} combines several networks, which are never calibrated together: leave out coverage and"
            f" reject, or ask one of them, {members_of(entry)}, which python export/calibrate.py NAME --images FOLDER"
            " calibrates"
        )
        raise ServiceError(Code.NOT_CALIBRATED, detail)
    known = entry.confidence
    if known is None or (coverage is not None and not known.sets) or (reject and not known.unknown):
        detail = (
            f"{entry.name} version {entry.version} is not calibrated, so its certainty is unknown: python"
            f" export/calibrate.py {entry.name} --images FOLDER publishes a version that is"
        )
        raise ServiceError(Code.NOT_CALIBRATED, detail)
    if crops != 1:
        detail = "models are calibrated for one crop: leave out crops, or leave out coverage and reject"
        raise ServiceError(Code.INVALID_PARAMETER, detail)
    if coverage is not None and known.sets and coverage > (most := confidence.most_coverage(known.sets)):
        detail = (
            f"coverage: the {known.sets.images} images that {entry.name} version {entry.version} was calibrated on are"
            f" enough for {most:.4f} at most"
        )
        raise ServiceError(Code.INVALID_PARAMETER, detail)


def judged(answer: Classes, found: Manifest, coverage: float | None, *, reject: bool, include: Extras) -> Classes:
    """Complete an answer that has the logits of all classes by what the model's calibration says about them.

    With `coverage`, its classes become the set that contains the true class with that probability.
    """
    if found.confidence is None:
        raise TypeError(f"{found.name} is not calibrated")
    sets, unknown = found.confidence.sets, found.confidence.unknown
    probabilities, indices = answer.probabilities, answer.indices
    if coverage is not None and sets:
        every = average([answer], None, found.activation)
        size = confidence.set_size(every.probabilities.astype(np.float64), sets, coverage)
        if size > len(indices):
            probabilities, indices = every.probabilities, every.indices
        probabilities, indices = probabilities[:size].copy(), indices[:size].copy()
    return answer._replace(
        probabilities=probabilities,
        indices=indices,
        logits=answer.logits if Extras.LOGITS in include else answer.logits[:0],
        activation_maps=answer.activation_maps[: len(indices)],
        known=confidence.is_known(answer.logits, unknown) if reject and unknown else None,
    )
