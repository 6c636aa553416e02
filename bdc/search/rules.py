"""Selection rules of a `Forest`. Q(e) is the edge's value, p(e) its prior, n(e) its returns, N(s) the visits of the
node it leaves (from 1); visits in flight count in n and N, never in Q. Ties: larger prior, smaller n, agents in turn,
lower id."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Literal

from bdc.search.errors import ForestError


@dataclass(frozen=True, slots=True)
class UCT:
    """UCB1 on trees (Kocsis and Szepesvari 2006): `Q + c * sqrt(ln N / n)`; edges without returns come first."""

    c: float = math.sqrt(2.0)


@dataclass(frozen=True, slots=True)
class PUCT:
    """AlphaZero: `Q + (ln((N + c_base + 1) / c_base) + c_init) * p * sqrt(N) / (1 + n)`.

    First-play urgency: an edge without returns has Q = `fpu`, or, with `fpu_reduction` = r, the value of its node minus
    `r * sqrt(sum of the visited siblings' priors)` (lc0).
    """

    c_base: float = 19652.0
    c_init: float = 1.25
    fpu: float = 0.0
    fpu_reduction: float | None = None


@dataclass(frozen=True, slots=True)
class PUCB:
    """P-UCB (PG-TD, arXiv 2303.05510; BDC): `Q + beta * p * sqrt(ln(1 + N)) / (1 + n)`,
    `beta = ln((N + c_base + 1) / c_base) + c`."""

    c_base: float = 10.0
    c: float = 4.0


@dataclass(frozen=True, slots=True)
class GumbelRoot:
    """Gumbel MuZero (Danihelka et al., ICLR 2022), for returns in [0, 1].

    At a root: sequential halving of `simulations` over the `considered` largest `gumbel + ln p + sigma(Q)`, with
    `sigma(Q) = (c_visit + max n) * c_scale * Q`. Below: the child whose share of visits lags most behind
    `softmax(ln p + sigma(completed Q))`. Past `simulations` the most visited root child goes on.
    """

    simulations: int = 64
    considered: int = 16
    c_visit: float = 50.0
    c_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Thompson:
    """Adaptive branching by Thompson sampling, as in AB-MCTS-A (arXiv 2503.04412), with O(1) statistics.

    At every node one draw per child from the posterior of its returns, and one per agent (`agents` generate arms) from
    the posterior of the first returns of the children this agent generated there (tag = agent). When a generate arm
    wins, selection stops at the node and `Selection.agent` says who shall add a child; `agents=0` only descends.
    Of 64 or more children most are ruled out by one random number each, which leaves the choice as likely as it was.
    `beta`: Beta(a + sum, b + n - sum), returns must lie in [0, 1]. `normal`: mean `(a + sum) / (1 + n)`, deviation
    `b / sqrt(1 + n)` (a: prior mean, b: scale of the returns).
    """

    agents: int = 1
    posterior: Literal["beta", "normal"] = "beta"
    a: float = 1.0
    b: float = 1.0


@dataclass(frozen=True, slots=True)
class Widening:
    """Progressive widening: selection stops at a node with fewer than `c * N ** alpha` open children, to add one."""

    c: float = 1.0
    alpha: float = 0.5


Rule = UCT | PUCT | PUCB | GumbelRoot | Thompson
_KINDS: tuple[type[Rule], ...] = (
    UCT,
    PUCT,
    PUCB,
    GumbelRoot,
    Thompson,
)  # the order of AnyRule in csrc/search/rules.hpp


def encode(rule: Rule) -> tuple[int, list[float]]:
    """The rule's number and parameters, as the extension takes them; it checks their ranges."""
    if type(rule) not in _KINDS:
        raise ForestError(f"rule is {rule!r:.100}; give a {', '.join(kind.__name__ for kind in _KINDS)}")
    return _KINDS.index(type(rule)), [_parameter(rule, field) for field in dataclasses.fields(rule)]


def _parameter(rule: Rule, field: dataclasses.Field[object]) -> float:
    value = getattr(rule, field.name)
    wanted = "a whole number" if field.type == "int" else "a number"
    if field.name == "posterior":
        if value in ("beta", "normal"):
            return float(value == "normal")
        wanted = "'beta' or 'normal'"
    elif field.name == "fpu_reduction":
        if value is None:
            return -1.0
        if isinstance(value, numbers.Real) and not value < 0:
            return float(value)
        wanted = "a number from 0, or None"
    elif isinstance(value, numbers.Real) and (field.type != "int" or float(value).is_integer()):
        return float(value)
    raise ForestError(f"{type(rule).__name__}: {field.name} is {value!r}; give {wanted}")


def decode(kind: int, parameters: list[float]) -> Rule:
    """The inverse of `encode`."""
    p = parameters
    if kind == 0:
        return UCT(p[0])
    if kind == 1:
        return PUCT(p[0], p[1], p[2], None if p[3] < 0 else p[3])
    if kind == 2:
        return PUCB(p[0], p[1])
    if kind == 3:
        return GumbelRoot(int(p[0]), int(p[1]), p[2], p[3])
    return Thompson(int(p[0]), "normal" if p[1] else "beta", p[2], p[3])
