"""Every setting of deepflow: one frozen tree, and the only reader of environment and TOML.

Where a value comes from, the first that says it wins:

1. an argument to :func:`load_settings`
2. the environment: ``DEEPFLOW_<NAME>`` (nested: ``DEEPFLOW_<GROUP>__<NAME>``)
3. the file named by ``DEEPFLOW_CONFIG``, else ``deepflow.toml`` in the working directory
4. the default written here

A name that is not a setting is refused with the nearest one that is. Nothing is read at import, and
nothing is kept: who needs settings is given them.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from deepflow.decide.compression import parse_compression
from deepflow.decide.place.registry import DEFAULT_POLICY, policy_named
from deepflow.decide.transport import address_fault
from deepflow.errors import ConfigurationError, nearest

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["Settings", "load_settings", "setting_sources"]

ENV_PREFIX: Final = "DEEPFLOW_"
ENV_CONFIG: Final = "DEEPFLOW_CONFIG"
DEFAULT_FILE: Final = "deepflow.toml"
_NESTED: Final = "__"
_OTHER_VARIABLES: Final = frozenset({ENV_CONFIG, "DEEPFLOW_PICTURES"})
"""Variables of ours that are no settings; the second is where tests keep their pictures."""

Source = Literal["default", "file", "environment", "argument"]


class Settings(BaseSettings):
    """What can be set, with unit, bounds and meaning. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=_NESTED,
        env_ignore_empty=True,
        validate_default=True,
    )

    address: str | None = Field(
        None,
        description="Address of a running Dask scheduler, such as tcp://10.0.0.5:8786, or "
        "auto://host for the fastest way to it. Without one, each flow run has an embedded "
        "cluster.",
    )
    tls: str | None = Field(
        None,
        min_length=1,
        description="Encryption inside the cluster. generated: certificates are made for the "
        "embedded cluster. Otherwise a folder with ca.pem, cert.pem and key.pem (`deepflow "
        "certificates`). Without it, nothing is encrypted.",
    )
    infra_retries: int = Field(
        3,
        ge=0,
        le=100,
        description="How often a task is tried again after the infrastructure broke it (a lost "
        "worker or connection). The task's own retries are counted apart.",
    )
    batch_target_s: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Mapped tiny tasks are grouped until a group is predicted to take this many "
        "seconds.",
    )
    batch_max_items: int = Field(
        256,
        ge=1,
        le=10_000,
        description="The most mapped tasks in one group. 1: no grouping.",
    )
    inline_result_bytes: int = Field(
        16_384,
        ge=0,
        le=16 * 1024**2,
        description="Results up to this many bytes travel with the report that a task is done.",
    )
    share_argument_bytes: int = Field(
        65_536,
        ge=1024,
        description="Arguments larger than this many bytes that go to many calls are sent once.",
    )
    record_wait_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="The most seconds to wait, at the end of a flow run, for the Prefect server "
        "to have recorded every task run. 0: do not wait.",
    )
    record_window_events: int = Field(
        2000,
        ge=10,
        le=10_000,
        description="The most events that the Prefect server may not have recorded yet, before "
        "sending waits. The server drops events beyond 10,000 in its queue.",
    )
    coalesce_after: int = Field(
        300,
        ge=0,
        description="With more unfinished task runs than this, the states between the first and "
        "the last of a short run are not sent.",
    )
    events: Literal["coalesce", "all"] = Field(
        "coalesce",
        description="coalesce: intermediate states of short task runs may be left out under "
        "load. all: every state is sent.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port on which the driver exports metrics for Prometheus. 0: any free one. "
        "Without one, the driver exports nothing.",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address that the driver's exporter listens on. 0.0.0.0: every network of "
        "the machine, and whoever reaches the port can read the metrics.",
    )
    placement: str = Field(
        DEFAULT_POLICY,
        min_length=1,
        description="Name of the policy that decides where and in which order tasks run. stock: "
        "Dask decides.",
    )
    state_dir: Path = Field(
        Path("~/.deepflow"),
        description="Folder for what is kept between flow runs: the history and the journals.",
    )
    history: str | None = Field(
        None,
        description="File or database URL of the history of run times. off: none is kept. Unless "
        "set: history.sqlite in state_dir.",
    )
    journal: bool = Field(
        True,
        description="Whether a flow run leaves a journal for `deepflow explain` and `deepflow "
        "replay`.",
    )
    artifact: bool = Field(
        True,
        description="Whether a flow run ends with a report of its placement in Prefect's UI.",
    )
    result_serializer: Literal["prefect", "deepflow"] = Field(
        "prefect",
        description="How results are persisted where neither task nor flow names a serializer. "
        "prefect: as Prefect's settings say. deepflow: compressed by type, and checked when "
        "read.",
    )
    transfer: Literal["deepflow", "stock"] = Field(
        "deepflow",
        description="How results travel between workers and to the driver. deepflow: in shared "
        "memory on one host, and compressed between hosts where that is faster. stock: as Dask "
        "sends them.",
    )
    compression: str = Field(
        "adaptive",
        description="Codec of results that travel. adaptive: the fastest for each, by sample, "
        "link and idle cores. off: none. Or one for all, such as zstd, zstd:3, shuffle+lz4, "
        "shuffle+zstd, pco, pco:2.",
    )
    shared_memory: str = Field(
        "/dev/shm",
        min_length=1,
        description="Folder in memory through which processes of one host hand results over. "
        "off: they are sent.",
    )
    shared_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="The most bytes that a worker keeps in shared memory. Unless set: a quarter "
        "of its memory. A tenth of the file system stays free in any case.",
    )
    tiers: Literal["deepflow", "stock"] = Field(
        "deepflow",
        description="What a worker does when its results outgrow its memory. deepflow: they go "
        "to compressed memory, then disk, then tier_url, in the background. stock: as Dask "
        "does.",
    )
    tier_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="The most bytes of compressed results that a worker keeps in memory. Unless "
        "set: a quarter of what Dask lets results take (distributed.worker.memory.target).",
    )
    tier_disk_bytes: int | None = Field(
        None,
        ge=0,
        description="The most bytes of results that a worker keeps in its local directory. 0: "
        "none. Unless set: all but a twentieth of the file system.",
    )
    tier_url: str | None = Field(
        None,
        min_length=1,
        description="Where results go that fit nowhere else: any URL that fsspec knows, such as "
        "s3://bucket/scratch. A stored result is removed with the result.",
    )
    preload: str = Field(
        "",
        description="Modules that workers of an embedded cluster have imported when they start, "
        "beside Prefect, Dask and those of the starting process: names with commas between them. "
        "off: each worker imports everything itself. On Linux.",
    )
    worker_silence_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds without a sign of life after which a worker counts as lost.",
    )
    shutdown_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="The most seconds that the end of a flow run waits for workers to hand over "
        "what they hold.",
    )

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, address: str | None) -> str | None:
        fault = None if address is None else address_fault(address)
        if fault is not None:
            raise ValueError(fault)
        return address

    @field_validator("preload")
    @classmethod
    def _preload_is_names(cls, preload: str) -> str:
        for name in filter(None, map(str.strip, preload.split(","))):
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"{name!r} is no module's name; give names such as polars,mylib")
        return preload

    @property
    def preloaded_modules(self) -> tuple[str, ...] | None:
        """The names in `preload`; None where workers import for themselves."""
        names = tuple(filter(None, map(str.strip, self.preload.split(","))))
        return None if names == ("off",) else names

    @field_validator("placement")
    @classmethod
    def _placement_is_known(cls, placement: str) -> str:
        policy_named(placement)
        return placement

    @field_validator("compression")
    @classmethod
    def _compression_is_known(cls, compression: str) -> str:
        return parse_compression(compression)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.coalesce_after > self.record_window_events:
            raise ValueError(
                f"coalesce_after={self.coalesce_after} is above record_window_events="
                f"{self.record_window_events}, so sending would stall before it coalesces; "
                "lower coalesce_after or raise record_window_events"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file; no dotenv and no secrets folder."""
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, _read_file(_config_path(os.environ))),
        )


def load_settings(**arguments: Any) -> Settings:
    """The settings in force now, with ``arguments`` on top. Reads environment and file each time.

    Raises :class:`ConfigurationError`, naming every wrong value, where it was said and what would
    be right.
    """
    _refuse_unknown(arguments, where="argument")
    _refuse_unknown_variables(os.environ)
    path = _config_path(os.environ)
    if path is not None:
        in_file = _read_file(path)
        _refuse_tables(in_file, path)
        _refuse_unknown(in_file, where=str(path))
    try:
        return Settings(**arguments)
    except ValidationError as error:
        words = _in_words(error, setting_sources(arguments), path)
    # Not within the handler: what pydantic says would be printed before it, and says less.
    raise ConfigurationError(words)


def setting_sources(arguments: Iterable[str] = ()) -> dict[str, Source]:
    """Where each top-level setting comes from now: argument, environment, file or default."""
    environment = {name.upper() for name in os.environ}
    in_file = set(_read_file(_config_path(os.environ)))
    given = set(arguments)
    sources: dict[str, Source] = {}
    for name in Settings.model_fields:
        variable = f"{ENV_PREFIX}{name}".upper()
        if name in given:
            sources[name] = "argument"
        elif any(e == variable or e.startswith(variable + _NESTED) for e in environment):
            sources[name] = "environment"
        else:
            sources[name] = "file" if name in in_file else "default"
    return sources


def _config_path(environment: Mapping[str, str]) -> Path | None:
    """The TOML file to read, None where there is none. A file asked for by name must exist."""
    named = environment.get(ENV_CONFIG)
    path = Path(named) if named else Path(DEFAULT_FILE)
    if path.is_file():
        return path
    if named:
        raise ConfigurationError(
            f"{ENV_CONFIG}={named!r} is no file; give the path of a TOML file, or unset it"
        )
    return None


def _refuse_tables(said: Mapping[str, object], path: Path) -> None:
    """Raise for a table in the file: settings have none, so whatever is in it would be lost."""
    for name, value in said.items():
        if isinstance(value, dict) and name not in Settings.model_fields:
            raise ConfigurationError(
                f"{path} has the table [{name}], but settings stand at the top of the file, "
                "without a table; take the line out"
            )


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as TOML ({error}); correct it, or name another file with "
            f"{ENV_CONFIG}"
        ) from None


def _refuse_unknown(said: Mapping[str, object], *, where: str) -> None:
    """Raise for the first name in ``said`` that is no setting."""
    known = tuple(Settings.model_fields)
    for name in said:
        if name not in known:
            raise ConfigurationError(f"unknown setting {name!r} ({where}); {_advice(name, known)}")


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Raise for a ``DEEPFLOW_*`` variable that sets nothing: it is a misspelt one."""
    known = tuple(f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields)
    allowed = {*known, *_OTHER_VARIABLES}
    for variable in environment:
        upper = variable.upper()
        if upper.startswith(ENV_PREFIX) and upper not in allowed:
            raise ConfigurationError(
                f"unknown setting in the environment variable {variable}; {_advice(upper, known)}"
            )


def _advice(name: str, known: tuple[str, ...]) -> str:
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else f"known are {', '.join(known)}"


def _in_words(error: ValidationError, sources: Mapping[str, Source], path: Path | None) -> str:
    """pydantic's findings, each as setting, value, where it was said, and what would be right."""
    found = []
    for finding in error.errors(include_url=False):
        name = ".".join(str(part) for part in finding["loc"])
        if not name:
            found.append(finding["msg"].removeprefix("Value error, "))
            continue
        source: object = sources.get(name.partition(".")[0], "default")
        source = path if source == "file" else source
        cause = _cause(finding, Settings.model_fields.get(name))
        said = f"{name}={finding['input']!r}"
        cause = cause.removeprefix(f"{said} ")
        goes_on = cause.startswith(("is ", "has ", "names ", "cannot "))
        found.append(f"{said} (from {source}){' ' if goes_on else ': '}{cause}")
    return "; ".join(found)


_NO_VALUE: Final = {
    "int": "is no whole number",
    "float": "is no number",
    "bool": "is neither true nor false",
    "string": "is no text",
    "path": "is no path",
}
"""What is wrong, by the first word of pydantic's type of error."""


_OUT_OF_BOUNDS: Final = {
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
}


def _cause(finding: ErrorDetails, field: FieldInfo | None) -> str:
    """Why a value cannot be, and which could."""
    kind = finding["type"]
    if kind in ("value_error", "assertion_error"):
        return finding["msg"].removeprefix("Value error, ")
    choices = _choices(field)
    if choices:
        close = nearest(str(finding["input"]), choices)
        meant = f"did you mean {close!r}?" if close else ""
        return f"is none of {', '.join(choices)}; {meant or 'choose one of them'}"
    wrong = _NO_VALUE.get(kind.partition("_")[0], "")
    if kind == "string_too_short":
        wrong = "is empty"
    elif kind in _OUT_OF_BOUNDS:
        wrong = _OUT_OF_BOUNDS[kind]
    elif not wrong:
        wrong = finding["msg"]
    return f"{wrong}; {_remedy(field)}"


def _choices(field: FieldInfo | None) -> tuple[str, ...]:
    """The values of a setting that has a few; empty for others."""
    if field is None or typing.get_origin(field.annotation) is not Literal:
        return ()
    return typing.get_args(field.annotation)


def _remedy(field: FieldInfo | None) -> str:
    """What to give, with the bounds."""
    if field is None:
        return "correct it"
    annotation = str(field.annotation)
    what = "a whole number" if "int" in annotation else "a number"
    if "bool" in annotation:
        return "give true or false"
    if "int" not in annotation and "float" not in annotation:
        return "give text"
    least = next((f"from {bound.ge}" for bound in field.metadata if isinstance(bound, Ge)), "")
    least = next((f"above {b.gt}" for b in field.metadata if isinstance(b, Gt)), least)
    most = next((f"up to {bound.le}" for bound in field.metadata if isinstance(bound, Le)), "")
    return " ".join(part for part in ("give", what, least, most) if part)
