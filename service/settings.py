"""What the service can be told at start, from `SERVICE_…` variables or command-line flags."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict

from service.storage import expanded

PREFIX = "SERVICE_"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:\d+)?|[a-z]+://\[[0-9a-f:]+\](:\d+)?")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class BadSettings(ValueError):
    """A setting is unknown or out of its range; the message is one line that names it."""


def _origins(text: str) -> str:
    """Pass origins with commas, as a browser sends them; ValueError for others, which none would ever be."""
    origins = [each.strip() for each in text.split(",") if each.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin} is no origin; one is written like https://example.org or http://localhost:3000")
    return ",".join(origins)


def _directory(model: str) -> str:
    """Pass the directory of a diffusers pipeline; ValueError for any other."""
    path = Path(model)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError("the directory has no model_index.json, so it is not a diffusers pipeline")
    elif path.exists():
        raise ValueError("this is a file; the directory of a diffusers pipeline is needed")
    else:
        raise ValueError("there is no such directory")
    return model


def _directory_or_hub_id(model: str) -> str:
    """Pass a diffusers directory, or a name of the form owner/model that is no path here."""
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else _directory(model)


def _findable(path: Path) -> Path:
    """Pass a path whose ~ names a user's folder; ValueError for any other."""
    expanded(path)
    return path


def _postgres(url: str) -> str:
    if url.partition("://")[0] not in ("postgres", "postgresql"):
        raise ValueError("a postgresql:// address is needed")
    return url


@dataclass(frozen=True)
class ApiKey:
    """A client's name, the SHA-256 of its key, and how often a minute it may ask where that is not as for all."""

    name: str
    digest: bytes
    per_minute: int | None = None


def _api_keys(given: object) -> object:
    """NAME:KEY or NAME/PER_MINUTE:KEY,… as `ApiKey`s; ValueError, without the keys, for any other text."""
    if not isinstance(given, str):
        return given
    keys = []
    for entry in filter(None, (part.strip() for part in given.split(","))):
        who, _, key = entry.partition(":")
        parts = re.fullmatch(r"([\w.-]{1,64})(?:/(\d{1,9}))?", who, re.ASCII)
        if not parts or not re.fullmatch(r"[!-~]{16,256}", key):
            takes = "NAME:KEY or NAME/REQUESTS_A_MINUTE:KEY, the key of 16 to 256 visible characters without a comma"
            raise ValueError(f"each must be {takes}")
        limit = None if parts[2] is None else int(parts[2])
        keys.append(ApiKey(parts[1], hashlib.sha256(key.encode()).digest(), limit))
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have one name")
    return tuple(keys)


def _places(given: object) -> object:
    """A list as JSON or with commas; ValueError for JSON that is none."""
    if not isinstance(given, str):
        return given
    if not given.lstrip().startswith("["):
        return [part for part in map(str.strip, given.split(",")) if part]
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f"this is no JSON: {error}") from error


class Settings(BaseSettings):
    """Serve the cascade over HTTP. Every option is also a variable: --sr-steps is SERVICE_SR_STEPS."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    base_model: Annotated[str, AfterValidator(_directory_or_hub_id)] | None = Field(
        default=None,
        description="text-to-image model: a diffusers directory or hub id; none: the bundled one",
    )
    sr_model: Annotated[str, AfterValidator(_directory)] | None = Field(
        default=None, description="super-resolution model: an SR3Pipeline directory; none: the bundled one"
    )
    allow_download: bool = Field(
        default=False, description="fetch a base model named by a hub id that is not on this machine yet"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)(,(cpu|mps|cuda(:\d+)?))*$",
        description="auto, cpu, mps, cuda or cuda:N; several with commas between them get a worker each",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="number format of the weights"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="where the base model waits in main memory until it is called, for one larger than the card's: "
        "part by part or layer by layer",
    )
    attention_slicing: bool = Field(default=False, description="less memory for the base model's attention, more time")
    vae_tiling: bool = Field(default=False, description="less memory for its decoder, which works in tiles")
    base_steps: int = Field(default=20, ge=1, le=100, description="base model's steps when a request names none")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="guidance when a request names none; none: the model's own default",
    )
    sr_steps: int = Field(default=4, ge=0, le=50, description="enlarging steps when a request names none")
    aug_level: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="noise added to a generated picture before it is enlarged, when a request names none",
    )
    max_prompt_chars: int = Field(default=1000, ge=1, le=100_000, description="longest prompt, in characters")
    max_body_bytes: int = Field(default=65_536, ge=1024, description="longest request body without a picture, in bytes")
    max_upload_bytes: int = Field(default=64 * 2**20, ge=1024, description="longest request body with a picture")
    max_input_pixels: int = Field(default=4096 * 4096, ge=64, description="largest picture taken, in pixels")
    max_pixels: int = Field(
        default=8192 * 8192, ge=1, description="largest picture delivered, in pixels; service.batch has 2**30"
    )
    max_base_pixels: int | None = Field(
        default=None,
        ge=1,
        description="largest picture that the base model draws, in pixels; none: 4 times what it draws by itself, "
        "at least 256×256",
    )
    max_images: int = Field(default=8, ge=1, le=8, description="most pictures of one request")
    queue_size: int = Field(
        default=32,
        ge=1,
        description="pictures that may wait, of one client as many as it leaves places free, alone half; more are "
        "answered 429",
    )
    max_per_client: int = Field(default=64, ge=1, description="pictures of one client that may wait and run at most")
    requests_per_minute: int = Field(default=0, ge=0, description="taken from one client; 0: as many as it sends")
    max_batch: int = Field(default=4, ge=1, le=64, description="equal requests worked on together; 1: none are")
    batch_wait_ms: float = Field(
        default=3, ge=0, le=1000, description="how long a request waits for one more of its kind"
    )
    request_timeout: float = Field(
        default=600,
        gt=0,
        description="seconds in which a body arrives, else 408 (an archive has them for each max-upload-bytes that it "
        "may have), and then from a request to its end, else 504",
    )
    result_seconds: float = Field(default=600, ge=0, description="how long a result can be fetched under its id")
    result_bytes: int = Field(
        default=256 * 2**20, ge=0, description="most bytes of results kept to be fetched, beside the newest"
    )
    heartbeat_seconds: float = Field(default=5, gt=0, description="silence after which a worker is not ready")
    stall_seconds: float = Field(default=300, gt=0, description="time without a step after which a worker is killed")
    shutdown_seconds: int = Field(default=30, ge=0, description="time given to running requests at shutdown")
    data_dir: Annotated[Path, AfterValidator(_findable)] = Field(
        default=Path("~/.local/share/sr3-cascade"), description="folder for the database of jobs and for uploads"
    )
    database_url: Annotated[str, AfterValidator(_postgres)] | None = Field(
        default=None,
        description="postgresql://… where several machines share the jobs; none: SQLite in the data folder",
    )
    storage_roots: Annotated[list[str], NoDecode, BeforeValidator(_places)] = Field(
        default=[],
        description="folders and s3://, gs://, az:// prefixes below which jobs may read and write, with commas or as "
        "JSON",
    )
    uploads: str | None = Field(
        default=None, description="folder or bucket prefix, the same for all workers, for uploaded archives' pictures"
    )
    max_archive_bytes: int = Field(default=2**30, ge=1, description="largest ZIP of pictures, packed and unpacked")
    job_workers: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="job workers that the server starts itself; none: one a device, with Postgres 0",
    )
    job_batch: int = Field(default=1, ge=1, le=64, description="pictures of equal size that share a batch in a job")
    job_patience: float = Field(
        default=900.0, ge=0, description="seconds that a job waits for a full disk or a silent bucket"
    )

    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_api_keys)] = Field(
        default=(), description="NAME:KEY,NAME/PER_MINUTE:KEY…; whoever asks needs one", repr=False
    )
    allow_anonymous: bool = Field(
        default=False, description="serve without keys on an address that others may reach too"
    )
    allowed_hosts: str = Field(
        default="",
        description="names in the Host header, with commas; none: on loopback its own names, else any; "
        "an IP address passes always",
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        default="", description="origins, with commas, whose pages may use this server; * for all"
    )
    log_format: Literal["json", "text"] = Field(default="json", description="lines of JSON or of text")
    log_prompts: bool = Field(default=False, description="write prompts into the log")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")

    def uploads_place(self) -> str:
        """The folder or bucket prefix that uploaded archives are unpacked into."""
        return self.uploads or str(self.data_dir.expanduser() / "uploads")

    @property
    def most_images(self) -> int:
        """Of one request: `max_images`, or fewer where no more are ever taken from one client at a time."""
        return min(self.max_images, self.queue_size, self.max_per_client)

    @property
    def origins(self) -> list[str]:
        """Those of `cors_origins`."""
        return self.cors_origins.split(",") if self.cors_origins else []

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> "Settings":
        if not (self.on_loopback or self.api_keys or self.allow_anonymous):
            raise ValueError("others can reach this address: set SERVICE_API_KEYS, or SERVICE_ALLOW_ANONYMOUS=true")
        return self


def load_settings(argv: Sequence[str]) -> Settings:
    """Settings from flags, then the environment, then defaults; BadSettings where one is wrong.

    An unknown flag, and --help, end the program, as argparse does.
    """
    known = [name.upper() for name in sorted(Settings.model_fields)]
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known are {PREFIX}… {', '.join(known)}"
            raise BadSettings(f"{variable} is not a setting; {hint}")
    try:
        return CliApp.run(Settings, cli_args=list(argv))
    except ValidationError as error:
        raise BadSettings("; ".join(_sentence(one) for one in error.errors())) from error


def _sentence(error: Mapping[str, object]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])  # type: ignore[index]
    flag = "--" + name.replace("_", "-")
    got = "" if name == "api_keys" else f", got {error['input']!r}"
    return f"{PREFIX}{name.upper()} or {flag}: {message}{got}"
