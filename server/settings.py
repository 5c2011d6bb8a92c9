"""Every setting of the server, from flags (`--max-batch 16`) or the environment (`SERVER_MAX_BATCH=16`); flags win."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from models.errors import ExpectedError, first_mistake
from models.manifest import ModelName
from server.cpus import available_cpus


def _split(names: object) -> object:
    return tuple(filter(None, map(str.strip, names.split(",")))) if isinstance(names, str) else names


CommaSeparated = BeforeValidator(_split)


MaxBatch = Annotated[int, Field(ge=1, le=1024)]
MaxWait = Annotated[float, Field(ge=0, le=10_000)]
QueueSize = Annotated[int, Field(ge=1, le=65536)]
Timeout = Annotated[float, Field(gt=0, le=3_600_000)]
Instances = Annotated[int, Field(ge=0, le=8)]
PriorityName = Literal["high", "normal", "low"]


LINK = re.compile("(tcp|udp|sctp)://")
"""How Kubernetes tells each container of a Service beside it, in a variable `<NAME>_PORT`."""


OF_CANDIDATES = frozenset({"shadow_of", "canary_of", "share"})
"""Settings of a model that no engine needs to know."""


class ModelSettings(BaseModel):
    """What one model has in its own way: `<repository>/<model>/serving.json`. Without a value: as all models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: MaxBatch | None = None
    max_wait_ms: MaxWait | None = None
    queue_size: QueueSize | None = None
    timeout_ms: Timeout | None = None
    instances: Instances | None = None
    devices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """numbers of the engines that have it; None: all"""
    priority: PriorityName = "normal"
    """of requests that name none"""
    shadow_of: ModelName | None = None
    """the model whose images it gets, too, once they are answered; nobody sees its answers"""
    canary_of: ModelName | None = None
    """the model some of whose requests it answers"""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """how much of either"""

    @model_validator(mode="after")
    def _one_share_of_one(self) -> Self:
        if self.shadow_of and self.canary_of:
            raise ValueError("shadow_of and canary_of exclude each other: first the one, then the other")
        if (self.share is None) != (self.candidate_for is None):
            raise ValueError("share goes with shadow_of or canary_of: say which of them, and how much, from 0 to 1")
        return self

    @property
    def candidate_for(self) -> str | None:
        """The model that it may replace."""
        return self.shadow_of or self.canary_of


class Settings(BaseSettings):
    """Serve the models of a repository.

    Each setting may also be a variable, SERVER_MAX_BATCH=16, also in a file, --env-file FILE; flags win. The README
    explains the defaults. `python -m server doctor` examines this machine, with the same flags; `python -m server tune`
    finds settings for it.
    """

    model_config = SettingsConfigDict(
        env_prefix="SERVER_",
        frozen=True,
        extra="forbid",
        dotenv_filtering="match_prefix",  # a file that other programs read, too
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
    )

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """port to listen on; 0 for any free one"""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """port for gRPC, 0 for any free one; not given: no gRPC"""
    tls_certificate: Path | None = None
    """PEM file of the certificate and its chain; with tls_key, and then there is only TLS, on both ports"""
    tls_key: Path | None = None
    """PEM file of its private key, unencrypted"""
    api_keys: Path | None = None
    """file of the hashes of API keys; not given: anybody who reaches the port may do anything"""
    metrics_role: Literal["none", "classify", "admin"] = "classify"
    """with api_keys, the role that reads /metrics; none: anybody"""
    cors_origins: Annotated[tuple[str, ...], NoDecode, CommaSeparated] = ()
    """origins whose pages may call this server from a browser, comma-separated; * for all"""
    repository: Path = Path("model_repository")
    """folder with <model>/<version>/manifest.json"""
    models: Annotated[tuple[ModelName, ...], NoDecode, CommaSeparated] = ()
    """serve only these models, comma-separated; none given: all in the repository"""
    reload_ms: Annotated[float, Field(ge=0, le=3_600_000)] = 5_000
    """how often to look for changes in the repository, and serve what is there by then; 0: only when asked to"""
    default_model: ModelName | None = None
    """answers requests that name no model; not given: the only one, else resnet50, else efficientnet_lite0"""
    backend: Literal["onnx", "openvino"] | None = None
    """what runs ONNX files: ONNX Runtime or OpenVINO; not given: what each model's manifest names"""
    providers: Annotated[tuple[str, ...], NoDecode, CommaSeparated] = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers, comma-separated, the preferred first; those of GPUs were not run on a GPU"""
    cuda_graph: bool = False
    """CUDAExecutionProvider: start each batch as one recorded graph; not run on a GPU"""
    tf32: bool = False
    """CUDAExecutionProvider and torch on a GPU: compute FP32 with 10 bits of mantissa, faster; not run on a GPU"""
    torch_compile: bool = False
    """programs of torch are compiled when they are loaded"""
    max_batch: MaxBatch = 8
    """most images in one inference"""
    max_wait_ms: MaxWait = 0
    """how long the oldest waiting image may wait for a fuller batch while the engine is free"""
    queue_size: QueueSize = 256
    """most requests between upload and answer; more are refused with 429"""
    timeout_ms: Timeout = 30_000
    """from the last byte of an upload to its answer; later is 504"""
    header_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 10_000
    """from a connection, or the first byte of a request, to the end of its headers; later is closed"""
    keep_alive_ms: Annotated[float, Field(ge=1_000, le=3_600_000)] = 75_000
    """from an answer to the next request on its connection; then it is closed"""
    body_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 30_000
    """from the first to the last byte of an upload; later is 408"""
    max_body_bytes: Annotated[int, Field(ge=1)] = 30 * 2**20
    """largest upload; more is 413"""
    max_batch_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """most images in one POST /classify/batch; more are 413"""
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """answers that one HTTP worker remembers for images that come again, up to 2 KiB each; 0: none"""
    max_buffered_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """all uploads held at one time by one HTTP worker; more are refused with 429"""
    max_pixels: Annotated[int, Field(ge=1, le=178_000_000)] = 50 * 2**20
    """largest image, of 20 bytes each while it is decoded; a JPEG may have more where it takes no more; else 413"""
    max_connections: Annotated[int, Field(ge=1)] = 1024
    """open connections of one HTTP worker; more are answered 503"""
    http_workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda known: min(available_cpus(), max(2, available_cpus() // 2), 8, known["queue_size"])
    )
    """processes that receive and decode; default: half the CPUs, but two to 8"""
    decode_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda known: max(1, min(4, available_cpus() // known["http_workers"]))
    )
    """images decoded at one time by one HTTP worker; default: the CPUs shared out to the workers, at most 4"""
    decoder: Literal["pillow", "nvimagecodec", "nvimagecodec-cpu"] = "pillow"
    """of JPEG: nvimagecodec on the GPU (not run on one), -cpu for comparison; what it refuses, Pillow decodes"""
    engines: Annotated[int, Field(ge=1, le=64)] | None = None
    """processes that run the models, each on a GPU or a share of the CPUs; not given: one for each GPU, else one"""
    inference_threads: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=available_cpus)
    """threads of one inference on the CPU; default: the CPUs, or an engine's share of them"""
    instances: Instances = 1
    """batches at one time on the CPU, which share those threads; 0: as many as ONNX Runtime gains by"""
    drain_delay_ms: Annotated[float, Field(ge=0, le=600_000)] = 0
    """after SIGTERM, how long to go on accepting while /readyz already fails, for load balancers to notice"""
    drain_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 30_000
    """after that, how long accepted requests may take to finish"""
    stall_timeout_ms: Annotated[float, Field(ge=3_000, le=3_600_000)] = 60_000
    """a process without a sign of progress for this long is killed and restarted"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """least severe log line to print"""
    log_format: Literal["text", "json"] = "text"
    """text for people, or one JSON object a line"""
    access_log: bool = False
    """one log line for each HTTP request"""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, CommaSeparated] = ()
    """addresses or networks, comma-separated, whose X-Forwarded-For says in the access log who the client is"""
    ready_file: Path | None = None
    """written once the server is ready, removed when it ends: JSON with its url, gRPC address and process ids"""
    otlp_endpoint: Annotated[str, Field(pattern="^https?://.")] | None = None
    """where a collector takes traces over HTTP: http://localhost:4318; not given: what OpenTelemetry's variables say"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.queue_size < self.http_workers:
            raise ValueError(f"queue_size {self.queue_size} leaves some of {self.http_workers} HTTP workers no place")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.max_wait_ms >= self.timeout_ms:
            raise ValueError(f"max_wait_ms {self.max_wait_ms:g} is not below timeout_ms {self.timeout_ms:g}")
        return self

    def of(self, model: ModelSettings) -> Self:
        """The same, where a model's own do not differ."""
        others = {"priority", "devices", *OF_CANDIDATES}
        return self.model_copy(update=model.model_dump(exclude=others, exclude_none=True))

    @property
    def slots_per_worker(self) -> int:
        """Requests one HTTP worker may have between upload and answer."""
        return self.queue_size // self.http_workers

    @property
    def slots(self) -> int:
        """Of all HTTP workers, and behind these one more of each, for what nobody waits for."""
        return (self.slots_per_worker + 1) * self.http_workers


class WrongSettingsError(ExpectedError):
    """They cannot be served with."""


def read(arguments: Sequence[str]) -> Settings:
    """From flags, the environment, and the file that `--env-file` names; of the latter two without what is empty.

    Raises:
        WrongSettingsError: one is not valid, or there is no such file.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--env-file", type=Path)  # before the settings: it is where some of them are
    options, flags = files.parse_known_args(arguments)
    if options.env_file and not options.env_file.is_file():
        raise WrongSettingsError(f"--env-file {options.env_file}: there is no such file")
    try:
        # Not of `model_config`: that would leave out flags without a value, too, which are to win over variables.
        return Settings(_cli_parse_args=flags, _env_file=options.env_file, _env_ignore_empty=True)
    except ValidationError as error:
        raise WrongSettingsError(_mistake(error, flags)) from error
    except SettingsError as error:
        raise WrongSettingsError(str(error)) from error


def _mistake(error: ValidationError, flags: Sequence[str]) -> str:
    """What is wrong; of a variable also its name, its value and what to do."""
    first, mistake, prefix = error.errors()[0], first_mistake(error), Settings.model_config["env_prefix"]
    if first["type"] == "extra_forbidden":  # a line of the file, whose name the error has without its prefix
        return f"{prefix.lower()}{mistake}"
    field = str(first["loc"][0]) if first["loc"] else ""
    name, flag = f"{prefix}{field}".upper(), f"--{field.replace('_', '-')}"
    value = {variable.upper(): value for variable, value in os.environ.items()}.get(name)
    if value is None or any(given.partition("=")[0] == flag for given in flags):
        return mistake
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
