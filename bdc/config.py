"""A run's configuration: one TOML file, read into each stage's own settings."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from bdc.boost.settings import AgentSettings, BoostSettings
from bdc.customize.settings import CustomizeSettings
from bdc.disentangle.settings import DisentangleSettings
from bdc.errors import InputError
from bdc.evaluation.settings import SYSTEMS, EvaluateSettings, expert_of, single_experts
from bdc.ranges import MOST_SEED, check_ranges
from bdc.sandbox import Limits


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
        check_ranges(self, "problems.", "train", "test", low=1)
        check_ranges(self, "problems.", "validation", low=0)
        check_ranges(self, "problems.", "seed", low=0, high=MOST_SEED)


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """How programs are run; limits are per test (seconds, MiB, KiB)."""

    level: Literal["auto", "L3", "L2", "L1", "L0"] = "auto"
    workers: int = 0
    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64

    def __post_init__(self) -> None:
        check_ranges(self, "sandbox.", "workers", low=0, high=4096)
        try:
            self.limits()
        except InputError as error:
            raise InputError(f"sandbox: {error}") from error

    def limits(self) -> Limits:
        """The limits of one test."""
        return Limits(self.cpu_seconds, self.wall_seconds, self.memory_mb, self.output_kb)


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
        names = [agent.name for agent in self.agents]
        if len(set(names)) < len(names):
            raise InputError(f"agent names must differ, got {', '.join(names)}")
        k = self.disentangle.k
        # "auto" is known once traces are.
        experts = (
            single_experts(k) if isinstance(k, int) else [n for n in self.evaluate.systems if expert_of(n) is not None]
        )
        known = (*SYSTEMS, *experts, *self.customize.ablations)
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
        data = tomllib.loads(text.removeprefix("\ufeff"))  # a byte order mark is what some editors write
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}") from error
    except (RecursionError, ValueError) as error:  # tomllib's own limits
        raise InputError(f"{name} is not valid TOML: a value is nested too deeply or a number is too long") from error
    _refuse_unknown(data, Config, name, "")
    if type(seed := data.get("seed")) is int:  # one seed for all stages that name none
        check_ranges(SimpleNamespace(seed=seed), f"{name}: ", "seed", low=0, high=MOST_SEED)
        for section in ("problems", "boost", "disentangle", "customize", "evaluate"):
            data.setdefault(section, {}).setdefault("seed", seed)

    def refuse_date(value: object) -> None:
        raise InputError(f"{name}: {value} is a date or a time, which no field takes; put a text in quotes")

    as_json = json.dumps(data, default=refuse_date)
    try:
        # Strict, or a quoted number or a truth value would pass as a number; as JSON, where a list is a tuple too.
        return TypeAdapter(Config).validate_json(as_json, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if isinstance(reason := first.get("ctx", {}).get("error"), InputError):  # of a settings class: names its field
            raise InputError(f"{name}: {reason}") from error
        raise InputError(f"{name}: {where}: {first['msg']}, got {first['input']!r:.80}") from error


def _refuse_unknown(data: Any, kind: Any, name: str, where: str) -> None:
    """Refuse unknown keys, which pydantic ignores in standard dataclasses, other values in place of tables, and whole
    numbers beyond TOML's 64 bits."""
    if not isinstance(data, dict):
        raise InputError(f"{name}: {where.rstrip('.')} is {_shown(data)}; it must be a table")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in data.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise InputError(f"{name}: {where}{key} is not a known field; known here: {known}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{name}: {where}{key} is a whole number of more than 64 bits")
        default = fields[key].default_factory
        if key == "agents":
            if not isinstance(value, list):
                raise InputError(f"{name}: agents is {_shown(value)}; write one [[agents]] table per agent")
            for item in value:
                _refuse_unknown(item, AgentSettings, name, "agents.")
        elif dataclasses.is_dataclass(default):
            _refuse_unknown(value, default, name, f"{where}{key}.")


def _shown(value: Any) -> str:
    return f"of type {type(value).__name__}" if isinstance(value, dict | list) else f"{value!r:.80}"
