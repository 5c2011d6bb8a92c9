"""The parts in order of value, and the choice of those to run now. Needs nothing but Python."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["passed", "failed", "out of time"]

ONNX = "onnxruntime-gpu"
DECODER = "nvidia-nvimgcodec-cu13"


@dataclass(frozen=True, slots=True)
class Part:
    """One part: `python -m docs.measurements.gpu.<module>`, with its arguments."""

    name: str
    seconds: int
    """that the part is expected to take on the machine"""
    limit_s: int
    """after which the part is ended, whatever it does"""
    proves: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: Collection[str] = field(default=())
    """Packages without which the part waits for the folder that brings them."""
    after: tuple[str, ...] = ()
    """Parts that must have run in the same folder: they make the models."""


BUILD = ("build",)
BOTH = ("build", "build-rest")

PARTS = (
    Part("machine", 15, 60, "card, driver, versions; the roofline of all later figures", "machine"),
    Part("build", 40, 90, "this machine's PyTorch exports the programs", "build"),
    Part("right", 60, 110, "tests marked gpu, torchvision; EfficientNet FP16 and CIFAR over HTTP as the CPU", "right",
         after=BUILD),
    Part("safe", 75, 120, "engine killed, memory gone, device lost: nothing lost, /readyz 503 in between", "safe",
         after=BUILD),
    Part("service", 120, 170, "JPEG to top-5, ResNet-50 FP16: connections, HTTP workers, what bounds it", "service",
         after=BUILD),
    Part("build-rest", 50, 100, "and the ONNX files, FP16 and INT8, and the deeper network", "build", ("rest",)),
    Part("engines", 60, 100, "PyTorch with CUDA graphs of the roofline, FP32 and FP16, batch 1 to 256", "engines",
         after=BOTH),
    Part("cores", 60, 100, "the CPUs alone: EfficientNet-Lite0, ResNet-50 INT8, by engines and HTTP workers", "cores",
         after=BOTH),
    Part("right-onnx", 45, 110, "the same by ONNX Runtime's CUDA provider, all 250 photos", "right", ("onnx",), {ONNX},
         after=BOTH),
    Part("service-onnx", 45, 100, "the service by ONNX Runtime with CUDA graphs", "service", ("onnx",), {ONNX},
         after=BOTH),
    Part("service-decoder", 50, 90, "the service, JPEG decoded on the GPU", "service", ("decoder",), {ONNX, DECODER},
         after=BUILD),
    Part("engines-onnx", 55, 120, "ONNX Runtime's CUDA provider of the roofline", "engines", ("onnx",), {ONNX},
         after=BOTH),
    Part("engines-compiled", 90, 150, "what torch.compile adds: FP16, batch 1 to 128", "engines", ("compiled",),
         after=BOTH),
)  # fmt: skip


def choose(
    asked: Collection[str], done: Collection[str], packages: Collection[str]
) -> tuple[list[Part], dict[str, str]]:
    """Return the parts to run, in their order, and those that have to wait, each with the reason.

    The parts that make models come along, also if nobody asks for them: the machine may not be the one that has them.

    Args:
        asked: names; each also stands for all parts whose names begin with it and "-". Empty: all parts.
        done: parts that have a result.
        packages: that are installed.

    Raises:
        ValueError: no part has such a name.
    """
    if unknown := [name for name in asked if not any(_is(part, name) for part in PARTS)]:
        raise ValueError(f"there is no part {', '.join(unknown)}, but {', '.join(part.name for part in PARTS)}")
    wanted = [part for part in PARTS if not asked or any(_is(part, name) for name in asked)]
    wanted = [part for part in wanted if part.name not in done]
    missing = {part.name: sorted(set(part.needs) - set(packages)) for part in wanted}
    chosen = {part.name for part in wanted if not missing[part.name]}
    chosen |= {name for part in wanted if part.name in chosen for name in part.after if name not in done}
    waiting = {name: f"waits for {', '.join(packages)}" for name, packages in missing.items() if packages}
    return [part for part in PARTS if part.name in chosen], waiting


def fits(part: Part, left_s: float) -> float | None:
    """Return the limit that a part gets of the seconds that are left; None: they are fewer than it takes."""
    return min(part.limit_s, left_s) if left_s >= part.seconds else None


def table(parts: Iterable[Part] = PARTS) -> str:
    """Return the plan on paper, which stands in the head of gpu.sh."""
    rows = [f"{part.name:17}{part.seconds:5} s{part.limit_s:6} s  {part.proves}" for part in parts]
    return "\n".join([f"{'part':17}{'plan':>7}{'limit':>8}  proves", *rows])


def _is(part: Part, name: str) -> bool:
    return part.name == name or part.name.startswith(f"{name}-")
