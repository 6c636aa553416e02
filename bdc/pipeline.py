"""The five stages over one run directory: what each depends on, and when it can be skipped."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from bdc.artefacts import sha256_of
from bdc.config import Config, SandboxSettings
from bdc.errors import InputError
from bdc.problems import Problem, file_of, load, split, without_duplicates
from bdc.progress import Progress
from bdc.runs import STAGES, Run, digest
from bdc.sandbox import Limits, Sandbox
from bdc.sandbox.cluster import RaySandbox
from bdc.splits import store_problems

# The sections of the configuration that are a stage's own settings.
_SECTIONS = {
    "boost": ("problems", "agents", "sandbox", "boost"),
    "disentangle": ("disentangle",),
    "customize": ("customize",),
    "evaluate": ("evaluate",),
    "report": (),
}


class Pipeline:
    """A run directory with its configuration.

    Args:
        run: the open run.
        config: as read from its config.toml.
        progress: where stages report to.
        ray: address of the Ray cluster that judges programs, instead of this machine; it changes no result.
    """

    def __init__(self, run: Run, config: Config, progress: Progress, ray: str | None = None) -> None:
        self.run, self.config, self.progress, self.ray = run, config, progress, ray
        self._stages: dict[str, Callable[[], dict[str, Any]]] = {
            "boost": self._boost,
            "disentangle": self._disentangle,
            "customize": self._customize,
            "evaluate": self._evaluate,
            "report": self._report,
        }

    def _inputs(self, stage: str) -> str:
        """Digest of all that a stage's result is a function of: its settings, the problem files, and what the stage before left."""
        own = [self.config.section(name) for name in _SECTIONS[stage]]
        position = STAGES.index(stage)
        return digest(stage, own, self._left_by(STAGES[position - 1]) if position else self._sources)

    def _left_by(self, stage: str) -> str:
        return digest(self._inputs(stage), self.run.results(stage))

    @functools.cached_property
    def _sources(self) -> dict[str, str | None]:
        """SHA-256 of each source's file. The run keeps a copy of its problems, so a file that is gone counts as unchanged."""
        found: dict[str, str | None] = {}
        for source in self.config.problems.sources:
            file = file_of(source)
            try:
                found[source] = sha256_of(file) if file else None
            except OSError:
                found[source] = self.run.meta(f"source {source}")
        return found

    def all(self) -> None:
        """Run every stage that has not finished on the present inputs.

        Raises:
            InputError: the problem files cannot be read, or do not hold the problems that are asked for.
            ModelNotFoundError: a model that any stage needs is nowhere; found out before the first stage starts.
        """
        if self.run.finished("boost", self._inputs("boost")) is None:
            self._store_problems()  # what is wrong with them is told before any model is fetched
        self._find_models()
        for stage in STAGES:
            self.stage(stage)

    def _find_models(self) -> None:
        """Every local model in its folder, fetched if need be, unless the last stage to use models is done."""
        if self.run.finished("evaluate", self._inputs("evaluate")) is not None:
            return
        from bdc.llm import resolve

        experts = self.config.disentangle
        agents = [agent.model for agent in self.config.agents if agent.backend == "local"]
        for name in dict.fromkeys((*agents, experts.base_model)):
            resolve(name, kind="causal", progress=self.progress.say)
        resolve(experts.encoder, kind="encoder", progress=self.progress.say)

    def stage(self, name: str) -> dict[str, Any]:
        """Run one stage; its upstream must have finished on the present settings.

        Raises:
            StaleArtifactError: an upstream stage is missing or was made from other settings.
        """
        inputs = self._inputs(name)
        done = self.run.finished(name, inputs)
        if done is not None:
            self.progress.say(f"{name}: done already ({_short(done)})")
            return done
        for upstream in STAGES[: STAGES.index(name)]:  # in order, so that the refusal names the first stage to repeat
            self.run.require(upstream, self._inputs(upstream), wanted_by=name)
        self.run.begin(name)
        self.progress.say(f"{name}: started")
        started = time.monotonic()
        summary = self._stages[name]()
        seconds = time.monotonic() - started
        self.run.finish(name, inputs, seconds, summary)
        self.progress.say(f"{name}: finished in {seconds:.0f} s ({_short(summary)})")
        return summary

    def _sandbox(self) -> tuple[Sandbox | RaySandbox, Limits]:
        settings: SandboxSettings = self.config.sandbox
        workers = settings.workers or None
        pool = Sandbox(workers, settings.level) if self.ray is None else RaySandbox(self.ray, workers, settings.level)
        return pool, settings.limits()

    def _boost(self) -> dict[str, Any]:
        from bdc.boost.stage import run as boost

        self._store_problems()
        sandbox, limits = self._sandbox()
        with sandbox:
            return boost(self.run, self.config.boost, self.config.agents, sandbox, limits, self.progress)

    def _store_problems(self) -> None:
        settings = self.config.problems
        made_from = digest(self.config.section("problems"), self._sources)
        if self.run.meta("problems") == made_from:
            return  # the files may be gone
        problems = [problem for source in settings.sources for problem in load(source)]
        if copies := len(problems) - len(without_duplicates(problems)):
            self.progress.say(f"boost: left out as copies of others: {copies} of {len(problems)} problems")
        parts = split(problems, settings.train, settings.validation, settings.test, settings.seed)
        if not any(parts.values()):
            raise InputError(f"the sources {', '.join(settings.sources)} hold no problem")
        files = {f"source {source}": sha256 for source, sha256 in self._sources.items() if sha256}
        store_problems(self.run, parts, files | {"problems": made_from})

    def _disentangle(self) -> dict[str, Any]:
        from bdc.disentangle.stage import run as disentangle

        return disentangle(self.run, self.config.disentangle, self.progress)

    def _customize(self) -> dict[str, Any]:
        from bdc.customize.stage import run as customize

        return customize(self.run, self.config.customize, self.progress)

    def _evaluate(self) -> dict[str, Any]:
        from bdc.boost.solve import solve
        from bdc.evaluation.answers import Answer
        from bdc.evaluation.stage import run as evaluate

        sandbox, limits = self._sandbox()
        experts, boost, agents = self.config.disentangle, self.config.boost, self.config.agents

        def search(problems: Sequence[Problem]) -> list[Answer]:
            found = solve(self.run, problems, boost, agents, sandbox, limits, self.progress, stage="evaluate")
            return [Answer(each.program, **asdict(each.spent), cut_short=each.cut_short) for each in found]

        with sandbox:
            return evaluate(
                self.run,
                self.config.evaluate,
                experts.base_model,
                sandbox,
                limits,
                self.progress,
                inputs=self._left_by("customize"),
                dtype=experts.dtype,
                search=search,
            )

    def _report(self) -> dict[str, Any]:
        from bdc.report.stage import run as report

        stages, agents = self.config.disentangle, self.config.agents
        return report(self.run, self.progress, [stages.base_model, stages.encoder, *(agent.model for agent in agents)])


def _short(summary: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in summary.items() if isinstance(value, int | float | str))[:200]
