"""A run's configuration: one TOML file, read into each stage's own settings."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bdc.boost.settings import AgentSettings, BoostSettings
from bdc.customize.settings import CustomizeSettings
from bdc.disentangle.settings import DisentangleSettings
from bdc.errors import InputError
from bdc.evaluation.settings import SYSTEMS, EvaluateSettings


@dataclass(frozen=True, slots=True)
class ProblemSettings:
    """Where problems come from (`bdc.problems.load`) and how many go into each split."""

    sources: tuple[str, ...] = ("mini",)
    train: int = 36
    validation: int = 8
    test: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("problems.sources is empty; name at least one problem set")
        if self.train < 1 or self.validation < 0 or self.test < 1:
            raise InputError(
                f"problems.train, validation and test are {self.train}, {self.validation} and {self.test}; "
                "train and test must be at least 1, validation 0 or more"
            )


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """How programs are run; limits are per test (seconds, MiB, KiB)."""

    level: Literal["auto", "L3", "L2", "L1", "L0"] = "auto"
    workers: int = 0
    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a run depends on."""

    problems: ProblemSettings = field(default_factory=ProblemSettings)
    agents: tuple[AgentSettings, ...] = ()
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    boost: BoostSettings = field(default_factory=BoostSettings)
    disentangle: DisentangleSettings = field(default_factory=DisentangleSettings)
    customize: CustomizeSettings = field(default_factory=CustomizeSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    seed: int | None = None

    def __post_init__(self) -> None:
        known = (*SYSTEMS, *self.customize.ablations)
        if unknown := [name for name in self.evaluate.systems if name not in known]:
            raise InputError(f"evaluate.systems names {unknown[0]!r}; this configuration makes {', '.join(known)}")

    def section(self, name: str) -> dict[str, Any]:
        """A section as plain data, for digests."""
        value = getattr(self, name)
        return {"agents": [dataclasses.asdict(a) for a in value]} if name == "agents" else dataclasses.asdict(value)


def load_config(path: str | Path) -> tuple[Config, str]:
    """Read and check a TOML file; returns the configuration and the file's text.

    Raises:
        InputError: the file is missing, is no TOML, or a field is unknown or has a wrong value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_config(text, str(path)), text


def parse_config(text: str, name: str) -> Config:
    """As :func:`load_config`, from the text of a file called ``name``."""
    from pydantic import TypeAdapter, ValidationError

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}") from error
    _refuse_unknown(data, Config, name, "")
    if isinstance(seed := data.get("seed"), int):  # one seed for all stages that name none
        for section in ("problems", "boost", "disentangle", "customize", "evaluate"):
            data.setdefault(section, {}).setdefault("seed", seed)
    try:
        return TypeAdapter(Config).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{name}: {where}: {first['msg']}, got {first['input']!r:.80}") from error


def _refuse_unknown(data: Any, kind: Any, name: str, where: str) -> None:
    """pydantic ignores unknown keys of standard dataclasses; a typing error should not pass silently."""
    if not isinstance(data, dict):
        return
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in data.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise InputError(f"{name}: {where}{key} is not a known field; known here: {known}")
        default = fields[key].default_factory
        if key == "agents":
            for item in value if isinstance(value, list) else []:
                _refuse_unknown(item, AgentSettings, name, "agents.")
        elif dataclasses.is_dataclass(default):
            _refuse_unknown(value, default, name, f"{where}{key}.")
