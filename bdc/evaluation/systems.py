"""The systems that can be compared: each is a solver and the weights that its experts get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bdc.customize.customizer import MAIN, Weights
from bdc.errors import InputError
from bdc.evaluation.settings import SYSTEMS, expert_of, single_experts
from bdc.runs import Run

if TYPE_CHECKING:
    from bdc.customize import Solver

SINGLE, OURS, SEARCH = "single-lora", "bdc", "search"
_EACH = "experts"
_MERGES: tuple[Literal["ties", "dare"], ...] = ("ties", "dare")
_WEIGHTS = {"zero-shot": "none", SINGLE: "uniform", "nearest": "nearest", "uniform": "uniform", OURS: MAIN}
_LABELS = {
    "zero-shot": "Base model",
    SINGLE: "Single LoRA",
    "nearest": "Nearest expert",
    "uniform": "Uniform mix",
    OURS: "BDC",
    "ties": "TIES merge",
    "dare": "DARE merge",
    "expert-gate": "Expert gate",
    "no-centroids": "No centroids",
    SEARCH: "Search",
}


def label(name: str) -> str:
    """The name for a reader."""
    index = expert_of(name)
    return _LABELS.get(name, name) if index is None else f"Expert {index}"


@dataclass(frozen=True, slots=True)
class System:
    """A solver with the weights that it is asked under."""

    name: str
    solver: Solver
    weights: Weights


class Systems:
    """Opens systems of a run; at most two models are in memory, the solver's and the single LoRA's.

    Raises:
        InputError: an artefact of the earlier stages is missing, or a name is unknown.
    """

    def __init__(self, run: Run, base_model: str, dtype: str) -> None:
        from bdc.customize import Solver

        self._run, self._base_model, self._dtype = run, base_model, dtype
        self.solver = Solver.from_pretrained(run.solver_dir, dtype=dtype, base_model=base_model)

    def named(self, names: Sequence[str]) -> list[str]:
        """The systems of these names, each once, with one for each expert in place of "experts".

        Raises:
            InputError: this run has no system of a name.
        """
        experts = single_experts(self.solver.customizer.k)
        known = [*SYSTEMS, *experts, *(n for n in self.solver.customizer.networks if n != MAIN)]
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"evaluate.systems names {unknown[0]!r}; this run has {', '.join(known)}")
        return list(dict.fromkeys(each for name in names for each in (experts if name == _EACH else [name])))

    @contextlib.contextmanager
    def open(self, name: str, seed: int) -> Iterator[System]:
        """The system ``name``; ``seed`` is what DARE drops by."""
        from bdc.customize import Solver

        if name == SINGLE:
            single = Solver.from_adapters([self._run.experts_dir / "single"], self._base_model, dtype=self._dtype)
            yield System(name, single, _WEIGHTS[name])
            return
        merge = next((method for method in _MERGES if method == name), None)
        if merge is not None:
            with self.solver.merged(merge, seed=seed):
                yield System(name, self.solver, "none")
            return
        index = expert_of(name)
        yield System(name, self.solver, _WEIGHTS.get(name, name) if index is None else index)
