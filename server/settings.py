"""Every setting of the server, from flags (`--max-batch 16`) or the environment (`SERVER_MAX_BATCH=16`); flags win."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from models.errors import ExpectedError, first_mistake
from models.manifest import ModelName
from server.cpus import available_cpus


def _split(names: object) -> object:
    return tuple(filter(None, map(str.strip, names.split(",")))) if isinstance(names, str) else names


def _size(size: object) -> object:
    """Refuse what pydantic would read only the beginning of: it takes `4,5GiB` for 4 bytes."""
    if isinstance(size, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*[kmgtpe]?(i?b)?\s*", size, re.ASCII | re.IGNORECASE):
        raise ValueError(f"{size!r} is not a size: give bytes, or a number with a unit, such as 4GiB or 500MB")
    return size


def _origin(origin: str) -> str:
    """Refuse what no browser ever sends as the origin of a page."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+", origin):
        raise ValueError(f"{origin!r} is not an origin: write it as browsers do, such as https://page.example or *")
    return origin


CommaSeparated = BeforeValidator(_split)


MaxBatch = Annotated[int, Field(ge=1, le=1024)]
MaxWait = Annotated[float, Field(ge=0, le=10_000)]
QueueSize = Annotated[int, Field(ge=1, le=65536)]
Timeout = Annotated[float, Field(gt=0, le=3_600_000)]
Size = Annotated[ByteSize, Field(ge=1), BeforeValidator(_size), WithJsonSchema({"type": "string", "format": "bytes"})]
Instances = Annotated[int, Field(ge=1, le=8)]
PriorityName = Literal["high", "normal", "low"]

GPU_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
"""ONNX Runtime's execution providers for NVIDIA GPUs."""


LINK = re.compile("(tcp|udp|sctp)://")
"""Kubernetes sets a variable `<NAME>_PORT` with such a value in each container, for each Service of its namespace."""


OF_CANDIDATES = frozenset({"shadow_of", "canary_of", "share"})
"""Settings of a model that do not concern the engines."""


class ModelSettings(BaseModel):
    """Settings of one model, from `<repository>/<model>/serving.json`. A setting without a value is the server's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_batch: MaxBatch | None = None
    """The model's own `max_batch`."""
    max_wait_ms: MaxWait | None = None
    """The model's own `max_wait_ms`."""
    queue_size: QueueSize | None = None
    """The model's own `queue_size`, within the server's."""
    timeout_ms: Timeout | None = None
    """The model's own `timeout_ms`."""
    instances: Instances | None = None
    """The model's own `instances`."""
    devices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Numbers of the engines that load the model, counted from 0. Not given: all."""
    priority: PriorityName = "normal"
    """Priority of requests that do not state one."""
    pinned: bool = False
    """With `max_loaded` or `memory_budget`: keep the model loaded at all times."""
    shadow_of: ModelName | None = None
    """The model whose images this one classifies, too, after they are answered. No client sees its answers."""
    canary_of: ModelName | None = None
    """The model some of whose requests this one answers instead."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """With `shadow_of` or `canary_of`, the share of that model's images or requests, from 0 to 1."""

    @model_validator(mode="after")
    def _one_share_of_one(self) -> Self:
        if self.shadow_of and self.canary_of:
            raise ValueError("shadow_of and canary_of exclude each other: try one first, then the other")
        if (self.share is None) != (self.candidate_for is None):
            raise ValueError("share goes with shadow_of or canary_of: say which of them, and how much, from 0 to 1")
        return self

    @property
    def candidate_for(self) -> str | None:
        """The model that this one may replace."""
        return self.shadow_of or self.canary_of


class Settings(BaseSettings):
    """Serve the models of a repository.

    Each setting may also be a variable, SERVER_MAX_BATCH=16, or a line like that in a file, --env-file FILE. Flags win,
    then the environment; an empty variable counts as none. `python -m server doctor` examines this machine, with the
    same flags; `python -m server tune` finds settings for it.
    """

    model_config = SettingsConfigDict(
        env_prefix="SERVER_",
        frozen=True,
        extra="forbid",
        dotenv_filtering="match_prefix",  # other programs may read the file, too
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        use_attribute_docstrings=True,
    )

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. By default nothing is open to the network."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes any free one."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port for gRPC, which needs the extra `grpc`; 0 takes any free one. Not given: no gRPC."""
    tls_certificate: Path | None = None
    """PEM file of the certificate and its chain; needs tls_key. With it the server accepts only TLS, on both ports."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, unencrypted."""
    api_keys: Path | None = None
    """File with the hashes of the API keys. Not given: anybody who can reach the port may do everything, including
    loading and unloading models."""
    metrics_role: Literal["none", "classify", "admin"] = "classify"
    """With api_keys, the role that may read /metrics; none: anybody."""
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, CommaSeparated] = ()
    """Origins whose pages may call this server from a browser, comma-separated; * for all. Not given: none, so no page
    of another origin can read answers."""
    repository: Path = Path("model_repository")
    """Folder of models: <model>/<version>/manifest.json."""
    models: Annotated[tuple[ModelName, ...], NoDecode, CommaSeparated] = ()
    """Serve only these models, comma-separated; /readyz fails while one of them is missing. Not given: all in the
    repository."""
    max_loaded: Annotated[int, Field(ge=1)] | None = None
    """Number of models that each engine keeps loaded: a request loads the model that it names, and the engine unloads
    the least recently used one (see the guide on many models). Without this and `memory_budget`, all are loaded."""
    memory_budget: Size | None = None
    """Memory for the models of each engine, in bytes or as 4GiB. Works like `max_loaded`, by the measured memory of
    each model."""
    reload_ms: Annotated[float, Field(ge=0, le=3_600_000)] = 5_000
    """How often to check the repository for changes, which the server then serves. 0: only on request, or while
    something in the repository cannot be read."""
    default_model: ModelName | None = None
    """The model for requests that name none. Not given: the only one, else resnet50, else efficientnet_lite0, or the
    exact cascade of either, such as resnet50-exact, if there is one when the server starts."""
    backend: Literal["onnx", "openvino"] | None = None
    """Runtime for ONNX files: ONNX Runtime, or OpenVINO (extra `openvino`), which is faster for INT8. Not given: the
    one that each model's manifest names."""
    providers: Annotated[tuple[str, ...], NoDecode, CommaSeparated] = ("CPUExecutionProvider",)
    """ONNX Runtime's execution providers, comma-separated, the preferred one first; the server refuses one that is
    not installed. Those for GPUs have not run on a GPU yet."""
    cuda_graph: bool = False
    """CUDAExecutionProvider launches each batch as one recorded graph. Off, because not every file can be recorded.
    Not run on a GPU yet."""
    tf32: bool = False
    """CUDAExecutionProvider, and torch on a GPU, may compute FP32 with 10 bits of mantissa, which is faster. Off, so
    that answers do not depend on the machine. Not run on a GPU yet."""
    torch_compile: bool = False
    """Compile torch programs when loading them. Off, because that takes long and needs a C++ compiler."""
    max_batch: MaxBatch = 8
    """Most images in one inference. Larger batches gain next to nothing on a CPU and cost latency."""
    max_wait_ms: MaxWait = 0
    """How long the oldest image may wait for a fuller batch while the engine is free. 0: a lone request runs at once.
    """
    queue_size: QueueSize = 256
    """Most requests between upload and answer, divided evenly among the HTTP workers; the server refuses more with 429.
    Each takes 147 KiB of shared memory, for models of 224 x 224 pixels."""
    timeout_ms: Timeout = 30_000
    """Time limit from the last byte of an upload to its answer; then the server answers 504."""
    header_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 10_000
    """Time limit from a new connection, or the first byte of a request, to the end of its headers; then the server
    closes the connection."""
    keep_alive_ms: Annotated[float, Field(ge=1_000, le=3_600_000)] = 75_000
    """How long the server keeps an idle connection open after an answer. A load balancer in front must close idle
    connections sooner (most do after 60 s), or it will now and then send a request over one that is being closed."""
    body_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 30_000
    """Time limit from the first to the last byte of an upload; then the server answers 408."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 30 * 2**20
    """Largest upload; the server refuses more with 413. A JPEG of 24 megapixels has about 10 MB, one of 108 about 25
    MB."""
    max_batch_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Most images in one POST /classify/batch; the server refuses more with 413."""
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Answers that each HTTP worker caches for repeated images, up to 2 KiB each. 0: none, as few services see an image
    twice."""
    max_buffered_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Bytes of uploads that one HTTP worker holds in memory at one time; the server refuses more with 429."""
    max_pixels: Annotated[int, Field(ge=1, le=178_000_000)] = 50 * 2**20
    """Largest image; the server refuses more with 413. Decoding takes up to 20 bytes a pixel (for a transparent WebP),
    1 GB by default. A JPEG may have more pixels within the same memory, but never more than 200 million: the decoder
    halves a large one, once or more, and then needs 10 bytes for each remaining pixel, and if it is progressive, 2 for
    each sample of the whole image."""
    max_connections: Annotated[int, Field(ge=1)] = 1024
    """Open connections of one HTTP worker. On further ones the server answers only probes and /metrics, and 503 to
    everything else; beyond twice as many it closes them."""
    http_workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda known: min(available_cpus(), max(2, available_cpus() // 2), 8, known["queue_size"])
    )
    """Processes that receive and decode. Default: half the CPUs, but two to 8, and no more than CPUs or queue_size. On
    two CPUs, a second one raises throughput by a fifth for a network that costs nothing, and not at all for others."""
    decode_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda known: max(1, min(4, available_cpus() // known["http_workers"]))
    )
    """Images that one HTTP worker decodes at one time. Default: the CPUs divided by the workers, at most 4."""
    decoder: Literal["pillow", "nvimagecodec", "nvimagecodec-cpu"] = "pillow"
    """JPEG decoder. nvimagecodec decodes and resamples on the GPU (not run on one yet); nvimagecodec-cpu does the same
    on the CPU, for comparison. Pillow decodes the files that nvimagecodec refuses."""
    engines: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes that run the models, each on a GPU or a share of the CPUs; if one dies, the others answer its
    requests. Not given: one for each GPU; without GPUs one, or with 16 CPUs or more one for each NUMA node."""
    inference_threads: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=available_cpus)
    """Threads of one inference on the CPU. Default: all CPUs, or the engine's share of them."""
    instances: Instances = 2
    """Batches that run at one time on the CPU and share those threads, at most one a thread. A lone batch uses all
    threads. With more than one, a model's weights lie in memory twice."""
    drain_delay_ms: Annotated[float, Field(ge=0, le=600_000)] = 0
    """After SIGTERM, how long the server goes on accepting requests while /readyz already fails: a load balancer needs
    some seconds to notice."""
    drain_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 30_000
    """After that delay, how long accepted requests may take to finish."""
    stall_timeout_ms: Annotated[float, Field(ge=3_000, le=3_600_000)] = 60_000
    """The supervisor kills and restarts a process that shows no progress for this long, such as an HTTP worker whose
    decoder hangs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level to log."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log: text, or json, one object per line."""
    access_log: bool = False
    """Log each HTTP request: method, path, status, ms, bytes, ids, client. Off, because metrics cost less."""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, CommaSeparated] = ()
    """Addresses or networks of proxies, comma-separated, such as 10.0.0.0/8. The access log takes the client's address
    from X-Forwarded-For only if the request comes from one of them."""
    ready_file: Path | None = None
    """JSON file for scripts, with the server's url, gRPC address and process ids. The server writes it once it is
    ready, replaces it whenever it restarts a process, and removes it when it ends."""
    otlp_endpoint: Annotated[str, Field(pattern="^https?://.")] | None = None
    """Address of a collector that takes traces over HTTP, such as http://localhost:4318 (extra `tracing`). Not given:
    the one in OpenTelemetry's own variables, else no traces."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.queue_size < self.http_workers:
            raise ValueError(f"queue_size {self.queue_size} is below http_workers {self.http_workers}: each needs one")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.max_wait_ms >= self.timeout_ms:
            raise ValueError(f"max_wait_ms {self.max_wait_ms:g} is not below timeout_ms {self.timeout_ms:g}")
        return self

    def of(self, model: ModelSettings) -> Self:
        """These settings, overridden by the model's own."""
        others = {"priority", "devices", "pinned", *OF_CANDIDATES}
        return self.model_copy(update=model.model_dump(exclude=others, exclude_none=True))

    @property
    def slots_per_worker(self) -> int:
        """Requests one HTTP worker may have between upload and answer."""
        return self.queue_size // self.http_workers

    @property
    def slots(self) -> int:
        """Slots of all HTTP workers: those of requests first, then one per worker for background work."""
        return (self.slots_per_worker + 1) * self.http_workers


class WrongSettingsError(ExpectedError):
    """The settings are not valid."""


def read(arguments: Sequence[str]) -> Settings:
    """Read flags, the environment, and the file that `--env-file` names; empty values in the latter two are ignored.

    Raises:
        WrongSettingsError: one is not valid, or the file cannot be read.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--env-file", type=Path)  # parsed before the settings, some of which it contains
    options, flags = files.parse_known_args(arguments)
    if options.env_file and not options.env_file.is_file():
        raise WrongSettingsError(f"--env-file {options.env_file}: there is no such file")
    try:
        # Not in `model_config`: there it would also drop flags with an empty value, which must override variables.
        return Settings(_cli_parse_args=flags, _env_file=options.env_file, _env_ignore_empty=True)
    except ValidationError as error:
        raise WrongSettingsError(_mistake(error, flags, options.env_file)) from error
    except SettingsError as error:
        raise WrongSettingsError(str(error)) from error
    except OSError as error:
        raise WrongSettingsError(f"--env-file {options.env_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongSettingsError(f"--env-file {options.env_file}: it is not UTF-8: save it as text in UTF-8") from error


def _mistake(error: ValidationError, flags: Sequence[str], file: Path | None) -> str:
    """What is wrong; for a variable also its name, its value and what to do, for a line of the file its name."""
    first, mistake, prefix = error.errors()[0], first_mistake(error), Settings.model_config["env_prefix"]
    if first["type"] == "extra_forbidden":  # a line of the file; the error names it without its prefix
        return f"{prefix.lower()}{mistake} (in {file}: there is no such setting)"
    field = str(first["loc"][0]) if first["loc"] else ""
    name, flag = f"{prefix}{field}".upper(), f"--{field.replace('_', '-')}"
    value = {variable.upper(): value for variable, value in os.environ.items()}.get(name)
    if any(given.partition("=")[0] == flag for given in flags):
        return mistake
    if not value:
        return f"{mistake} (in {file})" if file and field else mistake
    if not LINK.match(value):
        return f"{mistake} ({name}={value!r}: correct the variable, or unset it)"
    service = name.removesuffix("_PORT").replace("_", "-").lower()
    return (
        f"{mistake} ({name}={value!r}, which Kubernetes sets for a Service named {service!r}: give the pod"
        f" enableServiceLinks: false, or the Service another name; or set {flag})"
    )


def unknown_variables() -> list[str]:
    """`SERVER_*` variables of the environment that match no setting."""
    prefix = Settings.model_config["env_prefix"]
    known = {prefix + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(prefix) and name not in known)
