"""`python -m server doctor`: facts for a bug report, and problems that would keep the server from starting.

It takes the flags of `python -m server`, and reads the machine as the server would. Each problem comes with advice.
Secrets are left out of the report.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import isfinite, prod
from pathlib import Path
from typing import Any

from PIL import features

from models import hints, manifest
from models.manifest import Manifest, ManifestError
from server import VERSION, cpus, descriptors, gpus, portable, repository, run_folder, tracing
from server.cpus import allowed_cpus, available_cpus, cgroup_quota
from server.engine import backends
from server.engine.backends import inventory
from server.images import jpeg
from server.images.bounds import PIXEL_BYTES
from server.listeners import free_port
from server.metrics import room_bytes
from server.repository import Catalogue
from server.resources import places_of
from server.settings import Settings, WrongSettingsError, read, unknown_variables
from server.slots import more_room, needed_bytes

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "cuda-bindings",
    "pillow",
    "cykooz_resizer",
    "numpy",
    "fastapi",
    "uvicorn",
    "grpcio",
    "opentelemetry-sdk",
    "prometheus-client",
)
IMAGE_LIBRARIES = ("libjpeg_turbo", "zlib", "webp", "libtiff", "avif", "littlecms2")
MEMINFO = Path("/proc/meminfo")
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
ENVIRONMENT = re.compile("(SERVER|OTEL|ORT|OMP|CUDA|NVIDIA|OPENVINO|MALLOC|LD)_.*|TMPDIR")
SECRET = re.compile("HEADERS|KEY$|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
USERINFO = re.compile(r"(?<=//)[^/@\s]+@")


@dataclass(frozen=True)
class Problem:
    """What is wrong, what to do about it, and whether it keeps the server from starting."""

    what: str
    advice: str
    stops: bool = False


@dataclass
class Report:
    """Everything found, section by section."""

    sections: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def stop(self, what: str, advice: str) -> None:
        """Note a problem that would keep the server from starting."""
        self.problems.append(Problem(what, advice, stops=True))

    def warn(self, what: str, advice: str) -> None:
        """Note a problem with which the server would still start."""
        self.problems.append(Problem(what, advice))


def main(arguments: Sequence[str]) -> int:
    """Print the report; return 1 if the server would not start, 2 for wrong settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    options, flags = parser.parse_known_args(arguments)
    try:
        settings = read(flags)
    except WrongSettingsError as error:
        print(f"python -m server doctor: {error}", file=sys.stderr)
        return 2
    report = examine(settings)
    print(json.dumps(asdict(report), indent=1, default=str) if options.json else _text(report))
    return int(any(problem.stops for problem in report.problems))


def examine(settings: Settings) -> Report:
    """Examine everything. A section that fails shows its error; the report goes on."""
    report = Report()
    sections: dict[str, Callable[[Settings, Report], Mapping[str, Any]]] = {
        "versions": _versions,
        "runtimes": _runtimes,
        "gpus": _gpus,
        "cpu": _cpu,
        "engines": _engines,
        "memory": _memory,
        "folders": _folders,
        "ports": _ports,
        "settings": _settings,
        "environment": _environment,
        "repository": _repository,
    }
    for name, look in sections.items():
        try:
            report.sections[name] = look(settings, report)
        except Exception as error:  # the report is there to show whatever is odd about this machine
            report.sections[name] = {"cannot be told": repr(error)}
    return report


def _versions(settings: Settings, report: Report) -> dict[str, Any]:
    if settings.grpc_port is not None and find_spec("grpc") is None:
        report.stop("grpc_port is set, but gRPC is not installed", hints.install("grpc"))
    if settings.otlp_endpoint and not tracing.is_installed():
        report.stop("otlp_endpoint is set, but tracing is not installed", hints.install("tracing"))
    if refused := jpeg.why_not(settings):
        report.stop(f"decoder is {settings.decoder}", refused)
    return {
        "server": VERSION,
        "python": f"{platform.python_version()} {sys.executable}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        **{package: _version(package) for package in PACKAGES},
        **{name: features.version(name) or "missing" for name in IMAGE_LIBRARIES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _runtimes(settings: Settings, report: Report) -> dict[str, Any]:
    providers = inventory.onnx_providers()
    for provider in settings.providers:
        if provider not in providers:
            report.stop(f"ONNX Runtime has no {provider} here", f"--providers can be {', '.join(providers)}")
    try:
        devices = inventory.openvino_devices()
    except ImportError:
        devices = []
        if settings.backend == "openvino":
            report.stop("backend is openvino, which is not installed", hints.install("openvino"))
    return {"onnxruntime providers": providers, "openvino devices": devices}


def _gpus(_settings: Settings, _report: Report) -> dict[str, Any]:
    with gpus.management() as library:
        if library is None:
            return {"nvidia": "none: the driver or the package nvidia-ml-py is missing"}
        cuda = library.nvmlSystemGetCudaDriverVersion_v2()
        return {
            "cuda of the driver": f"{cuda // 1000}.{cuda % 1000 // 10}",
            **{str(gpu.number): gpu._asdict() for gpu in gpus.look(library)},
        }


def _cpu(_settings: Settings, _report: Report) -> dict[str, Any]:
    info = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", _first(cpus.CPUINFO), re.MULTILINE))
    flags = cpus.flags()
    quota = cgroup_quota()
    return {
        "model": info.get("model name", platform.processor()),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "of the machine": os.cpu_count(),
        "affinity": sorted(allowed_cpus()),
        "cgroup quota": quota if isfinite(quota) else "none",
        "used": available_cpus(),
        "load": os.getloadavg(),
    }


def _engines(settings: Settings, report: Report) -> dict[str, Any]:
    catalogue = _catalogue(settings)
    found = places_of(settings, catalogue)
    for key, model in catalogue.models.items():
        if beyond := [device for device in model.settings.devices or () if device >= len(found)]:
            report.warn(
                f"{key} is assigned to engines {beyond}, but there are only {len(found)}, counted from 0",
                f"correct its {repository.SETTINGS_FILE}, or raise --engines",
            )
    threads = {each.name: each.settings(settings).inference_threads for each in found}
    return {each.name: f"{each.device}, {threads[each.name]} threads per inference on the CPU" for each in found}


def _catalogue(settings: Settings) -> Catalogue:
    """The repository's models; none if it cannot be read, which `_repository` reports."""
    try:
        return repository.scan(settings.repository, settings.models, settings.default_model)
    except ManifestError:
        return Catalogue(settings.repository, {}, {}, {}, None)


def _memory(settings: Settings, report: Report) -> dict[str, Any]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kib = dict(re.findall(r"^(\w+): +(\d+) kB$", _first(MEMINFO), re.MULTILINE))
    available = int(kib["MemAvailable"]) * 1024 if kib else total  # unknown: no /proc/meminfo
    granted = _first(Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    limit = int(granted) if granted.isdecimal() else total  # without a limit: "max", or a number beyond all memory
    available = min(available, limit)
    uploads = settings.http_workers * settings.max_buffered_bytes
    decoding = settings.http_workers * settings.decode_threads * settings.max_pixels * PIXEL_BYTES
    if uploads + decoding > available:
        report.warn(
            f"uploads and the worst images may take {_size(uploads + decoding)}, but {_size(available)} are available",
            "lower --max-buffered-bytes, --max-pixels, --decode-threads or --http-workers if clients are not trusted",
        )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the server raises its own limit up to this one
    if 0 <= files < (needed := descriptors.needed(settings)):
        report.warn(
            f"only {files} files may be open (ulimit -Hn), and max_connections takes {needed}: it will be lowered",
            "raise that limit, or lower --max-connections",
        )
    return {
        "total": _size(total),
        "available": _size(available),
        "cgroup limit": _size(limit) if limit < total else "none",
        "uploads may take": _size(uploads),
        "decoding may take": _size(decoding),
        "open files": "no limit" if files == resource.RLIM_INFINITY else files,
    }


def _first(*paths: Path) -> str:
    return next((path.read_text().strip() for path in paths if path.is_file()), "")


def _folders(settings: Settings, report: Report) -> dict[str, Any]:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    catalogue = _catalogue(settings)
    processes = settings.http_workers + len(places_of(settings, catalogue)) + 1  # with the supervisor
    needed = processes * sum(room_bytes(len(catalogue.entries)).values())
    if free < needed:
        report.stop(f"{folder} has {_size(free)} left", f"free {_size(needed)} for metrics, or set TMPDIR")
    if run_folder.is_too_long():
        report.stop(f"{folder} is too long a path for a socket in it", "set TMPDIR to a short one, such as /tmp")
    shared = portable.shared_memory()
    return {
        "TMPDIR": f"{folder}, {_size(free)} free",
        shared: f"{_size(shutil.disk_usage(shared).free)} free",
    }


def _ports(settings: Settings, report: Report) -> dict[str, Any]:
    asked = {"port": settings.port, "grpc_port": settings.grpc_port}
    return {name: _port(settings.host, port, name, report) for name, port in asked.items() if port is not None}


def _port(host: str, port: int, name: str, report: Report) -> str:
    try:
        free_port(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        flag = name.replace("_", "-")
        report.stop(f"cannot listen on {host} port {port}: {reason}", f"choose another --host or --{flag}")
        return f"{port}: {reason}"
    return f"{port} is free"


def _settings(settings: Settings, _report: Report) -> dict[str, Any]:
    return {name: redacted(name, value) for name, value in settings.model_dump(mode="json").items()}


def _environment(_settings: Settings, report: Report) -> dict[str, Any]:
    for name in unknown_variables():
        report.warn(f"{name} is not a setting of the server", "correct its name, or unset it")
    return {name: redacted(name, os.environ[name]) for name in sorted(os.environ) if ENVIRONMENT.fullmatch(name)}


def redacted(name: str, value: Any) -> Any:
    """A value without its secrets. Paths of files are shown."""
    if not isinstance(value, str) or Path(value).is_file():
        return value
    return "***" if SECRET.search(name) else USERINFO.sub("***@", value)


def _repository(settings: Settings, report: Report) -> dict[str, Any]:
    try:
        catalogue = repository.scan(settings.repository, settings.models, settings.default_model)
    except ManifestError as error:
        what, _, advice = str(error).partition(": ")
        report.stop(what, advice or "see docs/guides/to_onnx.md")
        return {"folder": settings.repository.absolute()}
    refused = {str(key): refusal.reason for key, refusal in catalogue.refused.items()}
    models: dict[str, Any] = {}
    for key, found in catalogue.entries.items():
        shown: dict[str, Any] = {"backend": found.backend, "default": key.name == catalogue.default_model}
        if isinstance(found, Manifest):
            shown |= {"precision": found.precision, "size": _size(found.file.size_bytes), "sha256": found.file.sha256}
            try:
                manifest.read_model_file(settings.repository / key.name / str(key.version), found)
            except ManifestError as error:
                refused[str(key)] = str(error)
                continue
            reason = backends.why_not(found, settings.backend) if found.backend in backends.ONNX_BACKENDS else None
            if reason is None and set(settings.providers) == {"CPUExecutionProvider"}:
                reason = cpus.why_not(found, cpus.flags())
            if reason:
                refused[str(key)] = reason
                continue
        models[str(key)] = shown
    for what, reason in refused.items():
        report.warn(f"{what} is not served: {reason}", "repair it, export it again, or remove it")
    if not models:
        report.stop("no model can be served", f"{hints.export('to_onnx')} makes one")
    engines = len(places_of(settings, catalogue))
    _check_slots(settings, engines, (model.manifest for model in catalogue.models.values()), report)
    return {"folder": settings.repository.absolute(), "models": models, "refused": refused}


def _check_slots(settings: Settings, engines: int, found: Iterable[Manifest], report: Report) -> None:
    largest = max(prod(each.input_shape) for each in found)
    workers = settings.http_workers
    needed = needed_bytes(settings.slots, largest, workers, engines)
    free = shutil.disk_usage(portable.shared_memory()).free
    if needed > free:
        report.stop(
            f"{settings.queue_size} requests need {_size(needed)} of shared memory, but {_size(free)} are free",
            f"lower --queue-size, or {more_room()}",
        )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes < 10 * 2**30 else f"{size_bytes / 2**30:.0f} GiB"


def _text(report: Report) -> str:
    lines = []
    for title, section in report.sections.items():
        lines += [title, *(f"  {name}: {_value(value)}" for name, value in section.items())]
    lines += [f"problems: {len(report.problems) or 'none'}"]
    for problem in report.problems:
        lines += [f"  {'STOPS IT: ' if problem.stops else ''}{problem.what}", f"    {problem.advice}"]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(f"\n    {name}: {_in_line(each)}" for name, each in value.items()) or "none"
    return _in_line(value)


def _in_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_line(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)
