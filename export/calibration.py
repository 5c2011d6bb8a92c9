"""From a model to a calibrated version: fits temperature, prediction sets and threshold, and measures them.

Torch and ONNX take time to import, so they are imported only when a file is made.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import backends, comparison, confidence, parity, repository, samples
from export.backends import RUNTIMES
from export.confidence import METHODS, Curve
from export.console import step
from export.diagrams import Figures
from export.samples import LabelsFrom
from models.errors import ExpectedError
from models.intervals import clopper_pearson
from models.manifest import Confidence, HeldOut, Manifest, PredictionSets, SetMethod
from models.weights import sha256_of

_OUR_SOURCES = ("calibration.py", "confidence.py", "temperature.py")
_PROBES = 16
"""Photos on which the parity gate compares the old and the new file, beside noise."""


class CalibrationError(ExpectedError):
    """A model cannot be calibrated, or calibration does not improve it."""


@dataclass(frozen=True)
class Wanted:
    """Everything that determines a calibration, except the model."""

    paths: Sequence[Path]
    """Images whose classes are known."""
    labels_from: LabelsFrom
    temperature: float | None
    """None: to be fitted."""
    method: SetMethod
    keep_known: float
    """Share, above 0 and below 1."""
    unknown: Sequence[Path] | None
    """Images of none of the classes, if there are any."""

    def fingerprint(self, source: Manifest) -> str:
        """Digest everything, including the folders and names of images, from which their classes are read."""
        images = [[sha256_of(path), path.parent.name, path.name] for path in self.paths]
        return repository.digest(
            [
                [source.file.sha256, source.fingerprint],
                images,
                [self.labels_from, self.temperature, self.method, self.keep_known],
                [sha256_of(path) for path in self.unknown or ()],
                [sha256_of(Path(__file__).with_name(name)) for name in _OUR_SOURCES],
            ]
        )


@dataclass(frozen=True)
class Calibrated:
    """A calibrated version, to be published if it is better, and its measurements."""

    source: Manifest
    draft: Manifest
    content: bytes
    fitted: bool
    """The temperature was fitted, not given."""
    methods: Mapping[SetMethod, PredictionSets]
    """The sets of each method, with their measurements."""
    logits: NDArray[np.float32]
    """Of held-out images, without a temperature: float32[M, num_classes]."""
    classes: NDArray[np.int64]
    """The held-out images' true classes, int64[M]."""

    @property
    def record(self) -> Confidence:
        """The record in the manifest."""
        if self.draft.confidence is None:
            raise TypeError(f"{self.draft.name} is not calibrated")
        return self.draft.confidence

    def admit(self) -> None:
        """Refuse a fitted temperature that does not improve the probabilities.

        Raises:
            CalibrationError: the temperature was fitted, and probabilities are no better with it.
        """
        held_out = self.record.held_out
        if held_out is None or not self.fitted:
            return
        before, after = held_out.before, held_out.after
        if not (after.ece < before.ece and after.nll < before.nll):
            raise CalibrationError(
                f"a temperature of {self.record.temperature:g} makes probabilities no better on {held_out.images} other"
                f" images: expected calibration error {before.ece:.2%} before and {after.ece:.2%} after, negative log"
                f" likelihood {before.nll:.4f} and {after.nll:.4f}: nothing was added to the repository; give more"
                " images, or --temperature 1 to have prediction sets and a threshold without one"
            )

    def tables(self) -> list[Figures]:
        """The measurements, as tables; each table's first row is its head."""
        tables = []
        if held_out := self.record.held_out:
            before, after = held_out.before, held_out.after
            rows = [
                (f"{held_out.images} held-out images", "as trained", f"temperature {self.record.temperature:g}"),
                ("expected calibration error", f"{before.ece:.2%}", f"{after.ece:.2%}"),
                ("negative log likelihood", f"{before.nll:.4f}", f"{after.nll:.4f}"),
            ]
            tables.append(Figures("probabilities", rows))
        tables.append(Figures("prediction sets", self._sets()))
        if found := self.record.unknown:
            lines = [
                ("counts as known", f"{found.score} of {found.threshold:g} or more"),
                ("images of the classes accepted", f"{found.known:.1%}, {100 * found.keep_known:.4g} % wanted"),
            ]
            if found.unknown_rejected is not None:
                lines.append(("other images rejected", f"{found.unknown_rejected:.1%} of {found.unknown_images // 2}"))
            lines += [(f"told apart by {score} (AUROC)", f"{value:.3f}") for score, value in found.auroc.items()]
            tables.append(Figures("unknown", lines))
        return tables

    def _sets(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "coverage wanted", "found", "95 % interval", "classes in a set")]
        images = len(self.classes)
        for method, sets in self.methods.items():
            name = f"{method}, kept" if sets == self.record.sets else method
            for one in sets.held_out:
                low, high = clopper_pearson(round(one.covered * images), images)
                between = f"{low:.1%} to {high:.1%}"
                rows.append((name, f"{one.coverage:.0%}", f"{one.covered:.1%}", between, f"{one.mean_size:.2f}"))
        return rows

    def curves(self) -> list[Curve]:
        """Curves on held-out images, as trained and with the temperature."""
        temperature = self.record.temperature
        return [
            confidence.curve(label, comparison.probabilities(_divided(self.logits, one), "softmax"), self.classes)
            for label, one in (("as trained", 1.0), (f"temperature {temperature:g}", temperature))
        ]


def find(root: Path, name: str, version: int | None, temperature: float | None) -> Manifest:
    """Find a model that can be calibrated.

    Raises:
        ExpectedError: the model is not in the repository, or cannot be calibrated.
    """
    source = repository.get(root, name, version)
    if source.activation != "softmax":
        raise CalibrationError(
            f"{name} gives each class a probability of its own ({source.activation}): only models that give one class"
            " to an image can be calibrated here"
        )
    if source.backend in RUNTIMES or (source.confidence and temperature is None):
        return source
    instead = (
        "calibrate the ONNX model that it was built from, and build it again from that with to_trt.py"
        if source.backend == "tensorrt"
        else "calibrate and serve the ONNX model that to_onnx.py makes"
    )
    raise CalibrationError(
        f"{name} version {source.version} is a file of {source.backend}, which takes no temperature: {instead}"
    )


def calibrate(source: Manifest, content: bytes, wanted: Wanted, threads: int) -> Calibrated:
    """Run a model on all images; fit temperature, sets and threshold, and measure them.

    Raises:
        ExpectedError: an image cannot be read, its class is not known, or the images do not suffice for a fit.
    """
    classes = samples.classes(wanted.paths, source.labels, wanted.labels_from)
    if classes is None:
        raise CalibrationError(
            "the images' classes are not known: put each into a folder with its class's name, or begin its name with"
            " its WordNet id; --labels-from folders names the first that is not"
        )
    parts = confidence.parts(len(classes))
    had = source.confidence.temperature if source.confidence else 1.0
    with closing(backends.load(source, content, threads=threads)) as backend:
        raw, *others = (
            comparison.answers([backend], paths, source)[0].logits[:, 0] * np.float32(had)
            for paths in (wanted.paths, wanted.unknown)
            if paths is not None
        )
    temperature, fitted = wanted.temperature or had, False
    if source.backend in RUNTIMES:
        if wanted.temperature is None:
            found = confidence.fit_temperature(raw[parts.temperature], classes[parts.temperature])
            temperature, fitted = float(f"{found:.4g}"), True
        content = _with_temperature(source, content, had, temperature, wanted.paths)
    logits = _divided(raw, temperature)
    checking = logits[parts.held_out], classes[parts.held_out]
    sets = {method: confidence.fit_sets(logits[parts.rest], classes[parts.rest], method) for method in METHODS}
    measured = {
        method: found.model_copy(update={"held_out": confidence.measured_sets(found, *checking)})
        for method, found in sets.items()
    }
    record = Confidence(
        temperature=temperature,
        images=len(parts.temperature) if fitted else 0,
        held_out=HeldOut(
            images=len(parts.held_out),
            before=confidence.miscalibration(raw[parts.held_out], checking[1]),
            after=confidence.miscalibration(*checking),
        ),
        unknown=confidence.fit_unknown(
            logits[parts.rest], checking[0], wanted.keep_known, _divided(others[0], temperature) if others else None
        ),
        sets=measured[wanted.method],
    )
    draft = repository.derive(
        source, source.file.name, content, confidence=record, fingerprint=wanted.fingerprint(source)
    )
    return Calibrated(source, draft, content, fitted, measured, raw[parts.held_out], checking[1])


def _with_temperature(source: Manifest, content: bytes, had: float, wanted: float, paths: Sequence[Path]) -> bytes:
    """Replace the temperature in a file, and verify that nothing else changes."""
    from export import last_layer
    from export.temperature import divided

    changed = divided(content, wanted)
    with step("compare with the file as it was"), closing(backends.load(source, content)) as backend:
        parity.check(
            source,
            changed,
            lambda pixels: parity.Known(backend.run(list(pixels)).logits * np.float32(had / wanted)),
            samples.pixels(paths[:_PROBES], source.preprocessing)[:, 0],
            origin="the file as it was",
            head=last_layer.head(changed),
        )
    return changed


def _divided(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Divide logits as the graph does, to the bit."""
    return logits / np.float32(temperature)
