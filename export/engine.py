"""Builds TensorRT engines of both flavours: from an ONNX file to a serialized engine, the plan.

TensorRT proper builds on the GPU that will run the engine. TensorRT for RTX compiles the kernels when the engine is
loaded, so it builds on any machine, for named targets. Their Python interfaces differ only as the code below shows; see
the API references at https://docs.nvidia.com/deeplearning/tensorrt/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rich.progress import Progress, TaskID

from export import interrupts, repository
from models import hints
from models.errors import ExpectedError
from models.manifest import INPUT_NAME, Compatibility, Flavour, Manifest, Parity, Profile, TensorRT
from server.cuda import Gpu
from server.engine.backends.tensorrt import FIRST_AMPERE, MODULES, TITLES

if TYPE_CHECKING:
    import tensorrt as trt

PLAN_FILE = "model.plan"
_SUFFIXES: Mapping[Flavour, str] = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


class EngineError(ExpectedError):
    """The requested engine cannot be built here."""


@dataclass(frozen=True)
class Build:
    """Everything that determines an engine, except its ONNX file."""

    flavour: Flavour
    version: str
    targets: tuple[str, ...]
    """Compute capabilities."""
    gpu: Gpu | None
    """The GPU of this machine; None: there is none."""
    compatibility: tuple[Compatibility, ...]
    refit: bool
    max_batch: int

    def record(self, onnx_sha256: str) -> TensorRT:
        """Describe the engine, for its manifest."""
        return TensorRT(
            flavour=self.flavour,
            version=self.version,
            compute_capabilities=self.targets,
            gpu=self.gpu.name if self.gpu else None,
            compatibility=self.compatibility,
            refittable=self.refit,
            profiles=profiles(self.max_batch),
            onnx_sha256=onnx_sha256,
        )

    def name(self, network: str, precision: str) -> str:
        """Default name, not the ONNX model's: an engine must not replace a model that runs on every machine."""
        return "-".join((network, _SUFFIXES[self.flavour], precision, *self.targets))

    def fingerprint(self, source: Manifest, precision: str) -> str:
        """Digest everything that determines the engine built from an ONNX file after conversion to a precision."""
        converter = Path(__file__).with_name("half.py").read_text() if precision == "fp16" else None
        return repository.digest(
            [precision, converter, source.fingerprint, self.record(source.file.sha256).model_dump()]
        )

    def draft(self, source: Manifest, name: str, precision: str, content: bytes, parity: Parity | None) -> Manifest:
        """Describe an engine; `parity` is that of the ONNX file in its precision."""
        return repository.derive(
            source,
            PLAN_FILE,
            content,
            name=name,
            backend="tensorrt",
            precision=precision,
            parity=parity,
            tools=source.tools | {self.flavour: self.version},
            fingerprint=self.fingerprint(source, precision),
            tensorrt=self.record(source.file.sha256),
        )


def profiles(max_batch: int) -> tuple[Profile, ...]:
    """One optimisation profile for each bucket: powers of two below `max_batch`, and `max_batch` itself."""
    buckets = [*(1 << n for n in range((max_batch - 1).bit_length())), max_batch]
    return tuple(
        Profile(smallest=before + 1, largest=bucket) for before, bucket in zip([0, *buckets], buckets, strict=False)
    )


def decide(
    targets: Sequence[str],
    compatibility: Sequence[Compatibility],
    *,
    refit: bool,
    max_batch: int,
    gpu: Gpu | None,
) -> Build:
    """Choose the flavour that can build the requested engine.

    Without targets, the engine is for this machine's GPU, and built by TensorRT proper if that is installed.

    Raises:
        EngineError: neither flavour can build it.
    """
    flavours: tuple[Flavour, ...] = ("tensorrt_rtx",) if targets or gpu is None else ("tensorrt", "tensorrt_rtx")
    flavour = next((one for one in flavours if _is_installed(one)), None)
    if flavour is None:
        raise EngineError(
            f"TensorRT for RTX is not installed: {hints.install('tensorrt-rtx')}"
            f" (for data-centre GPUs, on a machine that has one: pip install tensorrt cuda-bindings)"
        )
    if len({"ampere+", "same-compute-capability"} & set(compatibility)) > 1:
        raise EngineError("--compat ampere+ includes same-compute-capability: give one of them")
    module = import_module(MODULES[flavour])
    if flavour == "tensorrt_rtx":
        targets = _rtx_targets(module, targets, compatibility, refit=refit, gpu=gpu)
    elif gpu:
        targets = (gpu.compute_capability,)
    return Build(flavour, module.__version__, tuple(targets), gpu, tuple(sorted(set(compatibility))), refit, max_batch)


def _rtx_targets(
    module: ModuleType, targets: Sequence[str], compatibility: Sequence[Compatibility], *, refit: bool, gpu: Gpu | None
) -> tuple[str, ...]:
    names = module.ComputeCapability.__members__
    known = sorted((name.lower() for name in names if name.startswith("SM")), key=_number)
    if "version" in compatibility:
        raise EngineError("TensorRT for RTX has no engines that other versions load: leave out --compat version")
    if refit and gpu is None:
        raise EngineError("--refit needs an NVIDIA driver while the engine is built, and there is none here")
    if "ampere+" in compatibility:
        targets = [*targets, *(one for one in known if _number(one) >= FIRST_AMPERE)]
    elif gpu and not targets:
        targets = [gpu.compute_capability]
    if not targets:
        raise EngineError(f"there is no NVIDIA GPU here to build for: give a --target, one of {', '.join(known)}")
    for target in targets:
        if target not in known:
            raise EngineError(
                f"TensorRT for RTX builds for {', '.join(known)}, not for {target}:"
                f" for other GPUs install TensorRT on a machine that has one (pip install tensorrt cuda-bindings)"
            )
    return tuple(sorted(set(targets), key=_number))


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))


def _is_installed(flavour: Flavour) -> bool:
    try:
        import_module(MODULES[flavour])
    except ImportError:
        return False
    return True


def build(wanted: Build, onnx: bytes, progress: Progress, timing_cache: Path) -> bytes:
    """Build the engine: a profile for each bucket, precision as in the ONNX file.

    TensorRT proper keeps its measurements in `timing_cache` for the next build; TensorRT for RTX makes none.

    Raises:
        EngineError: TensorRT cannot read the file or build the engine; the message has the first error it logged.
    """
    module = import_module(MODULES[wanted.flavour])
    logger = _logger(module)
    builder = module.Builder(logger)
    # TensorRT 11 knows no other networks and ignores the flag; TensorRT 10 needs it.
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    if not parser.parse(onnx):
        raise EngineError(f"{TITLES[wanted.flavour]} cannot read the ONNX file: {logger.first_error}")
    config = builder.create_builder_config()
    _configure(module, config, wanted)
    image = tuple(network.get_input(0).shape)[1:]
    for profile in profiles(wanted.max_batch):
        shapes = builder.create_optimization_profile()
        shapes.set_shape(INPUT_NAME, (profile.smallest, *image), (profile.largest, *image), (profile.largest, *image))
        config.add_optimization_profile(shapes)
    if wanted.flavour == "tensorrt":
        _read_timing_cache(config, timing_cache)
    with interrupts.noted() as interrupted:  # no exception may pass through TensorRT's own code
        config.progress_monitor = _monitor(module, progress, interrupted)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{TITLES[wanted.flavour]} cannot build the engine: {logger.first_error}")
    if wanted.flavour == "tensorrt":
        _write_timing_cache(config, timing_cache)
    return bytes(plan)


def _configure(module: ModuleType, config: "trt.IBuilderConfig", wanted: Build) -> None:
    if wanted.refit:
        config.set_flag(module.BuilderFlag.REFIT)
    if wanted.flavour == "tensorrt_rtx":
        config.num_compute_capabilities = len(wanted.targets)
        for at, target in enumerate(wanted.targets):
            config.set_compute_capability(module.ComputeCapability.__members__[target.upper()], at)
        return
    if "version" in wanted.compatibility:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if "ampere+" in wanted.compatibility:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if "same-compute-capability" in wanted.compatibility:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def _read_timing_cache(config: "trt.IBuilderConfig", path: Path) -> None:
    known = path.read_bytes() if path.exists() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # `known` is of another GPU


def _write_timing_cache(config: "trt.IBuilderConfig", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid4().hex}")
    draft.write_bytes(config.get_timing_cache().serialize())
    draft.replace(path)


def _logger(module: ModuleType) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc,name-defined] # the module is one of two
        """Keeps the first error, which names the cause; later ones are its consequences."""

        first_error = "it gives no reason"

        def log(self, severity: object, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR) and "first_error" not in vars(self):
                self.first_error = message.splitlines()[0]

    return Logger()


def _monitor(module: ModuleType, progress: Progress, interrupted: Event) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc,name-defined] # the module is one of two
        """Shows the builder's phases, indented below the phase they are part of. Several threads may call it."""

        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, tuple[TaskID, int]] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            depth = self._phases[parent][1] + 1 if parent in self._phases else 0
            self._phases[name] = progress.add_task("  " * depth + name, total=steps), depth

        def step_complete(self, name: str, step: int) -> bool:
            progress.update(self._phases[name][0], completed=step + 1)
            return not interrupted.is_set()

        def phase_finish(self, name: str) -> None:
            progress.remove_task(self._phases.pop(name)[0])

    return Monitor()
