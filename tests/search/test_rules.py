"""Rules as samplers and as searchers: seeds, threads, convergence to the known optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from draws import Stream
from model import Model

from bdc.search import PUCB, PUCT, UCT, Forest, ForestError, GumbelRoot, Thompson, Widening

RULES = [UCT(), PUCT(), PUCB(), GumbelRoot(64, 4), Thompson(2), Thompson(0, "normal", 0.5, 1.0)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}")


def grow(rule, threads: int, seed: int, trees: int = 300, waves: int = 6) -> tuple[Forest, list[int]]:
    """Waves over the trees, of which some come twice in a call."""
    forest = Forest(rule, "mean", seed=seed, threads=threads, widening=Widening(1.5, 0.5))
    roots = forest.plant(trees)
    rng = np.random.default_rng(0)
    paths: list[int] = []
    for _ in range(waves):
        selection = forest.select(np.concatenate([roots, roots[:50]]), 2)
        paths += selection.path.tolist() + selection.agent.tolist()
        leaves = np.unique(selection.leaf)
        tags = rng.integers(0, 2, 2 * len(leaves))
        children = forest.expand(leaves, 2, rng.random(2 * len(leaves)), tags)
        forest.backup(children, rng.random(len(children)))
    forest.check()
    return forest, paths


@rules
@pytest.mark.parametrize("trees", [5, 300])  # few trees are shared out where a descent costs much
def test_same_for_any_number_of_threads(rule, trees) -> None:
    (one, paths), (four, other) = grow(rule, 1, 7, trees), grow(rule, 4, 7, trees)
    assert paths == other
    for tree in one.trees:
        assert (one.nodes(tree) == four.nodes(tree)).all()


@pytest.mark.parametrize("rule", [GumbelRoot(64, 4), Thompson(2)])
def test_the_seed_matters_for_sampling_rules(rule) -> None:
    assert grow(rule, 1, 7)[1] != grow(rule, 1, 8)[1]


# Least share of pulls of the best arm; sequential halving splits most of its pulls evenly between two finalists.
BANDIT = {UCT: 0.6, PUCT: 0.6, PUCB: 0.6, GumbelRoot: 0.3, Thompson: 0.6}


@pytest.mark.parametrize(
    "rule",
    [UCT(0.5), PUCT(c_init=0.5), PUCB(), GumbelRoot(400, 5), Thompson(0)],
    ids=lambda rule: type(rule).__name__,
)
def test_bandits_find_the_best_arm(rule) -> None:
    """Five Bernoulli arms (0.2 .. 0.8), 200 bandits, 400 pulls: the best arm has the most pulls in nearly all.

    Chance would give it a fifth of the pulls, and the first place in 40 of 200 (deviation 6).
    """
    forest = Forest(rule, "mean", gamma=1.0, seed=11)
    roots = forest.plant(200)
    arms = forest.expand(roots, 5).reshape(200, 5)
    rng = np.random.default_rng(5)
    for _ in range(400):
        selection = forest.select(roots)
        which = (selection.leaf[:, None] == arms).argmax(1)
        forest.backup(selection, (rng.random(200) < 0.2 + 0.15 * which).astype(float))
    pulls = forest.rows(arms.ravel())["n"].reshape(200, 5)
    assert pulls[:, 4].sum() / pulls.sum() > BANDIT[type(rule)]
    assert (pulls[:, 4] == pulls.max(1)).mean() > 0.85


def test_gumbel_root_halves_sequentially() -> None:
    """16 simulations over 4 of 8 children: 2 each for 4, then 4 each for the better 2; returns by value."""
    forest = Forest(GumbelRoot(simulations=16, considered=4), "mean", gamma=1.0)
    (root,) = forest.plant(1)
    children = forest.expand([root], 8)
    for _ in range(16):
        selection = forest.select([root])
        forest.backup(selection, [(selection.leaf[0] - children[0]) / 8])
    pulls = np.sort(forest.children(root)["n"])
    assert pulls.tolist() == [0, 0, 0, 0, 2, 2, 6, 6]
    visited = forest.children(root)
    visited = visited[visited["n"] > 0]
    assert set(np.argsort(visited["value"])[2:]) == set(np.flatnonzero(visited["n"] == 6))


def test_gumbel_first_pick_follows_the_priors() -> None:
    """The first simulation takes argmax(gumbel + ln p): a draw from the priors (3000 trees, 5 sigma)."""
    forest = Forest(GumbelRoot(8, 4), seed=3)
    roots = forest.plant(3000)
    priors = np.array([0.5, 0.3, 0.2])
    children = forest.expand(roots, 3, np.tile(priors, 3000)).reshape(3000, 3)
    share = (forest.select(roots).leaf[:, None] == children).mean(0)
    assert (abs(share - priors) < 5 * np.sqrt(priors * (1 - priors) / 3000)).all()


@pytest.mark.parametrize(("posterior", "wins"), [("beta", 0.9), ("normal", 0.9)])
def test_thompson_draws_from_the_posterior(posterior: str, wins: float) -> None:
    """Two children, 8 of 10 and 2 of 10: how often the first is taken (3000 trees), against numpy's own draws."""
    rule = Thompson(0, posterior, 1.0 if posterior == "beta" else 0.5, 1.0 if posterior == "beta" else 0.5)
    forest = Forest(rule, "mean", seed=2)
    roots = forest.plant(3000)
    children = forest.expand(roots, 2).reshape(3000, 2)
    for i in range(10):
        for child, hits in zip(children.T, (8, 2), strict=True):
            forest.backup(child, np.full(3000, float(i < hits)))
    share = (forest.select(roots).leaf == children[:, 0]).mean()
    rng = np.random.default_rng(9)
    if posterior == "beta":
        draws = [rng.beta(1 + hits, 11 - hits, 10**6) for hits in (8, 2)]
    else:
        draws = [(0.5 + hits) / 11 + 0.5 / math.sqrt(11) * rng.standard_normal(10**6) for hits in (8, 2)]
    expected = (draws[0] > draws[1]).mean()
    assert expected > wins
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 3000)


@pytest.mark.parametrize("posterior", ["beta", "normal"])
def test_thompson_draws_among_many_children(posterior: str) -> None:
    """Of 150 children most are ruled out without a draw: each is still taken as often as with numpy's draws for all.

    Two samples of 40000 in 150 classes: chi-square with 149 degrees of freedom, of which 99.9 % lie below 208.1.
    """
    a, b = (0.5, 1.3) if posterior == "beta" else (0.4, 0.7)
    forest = Forest(Thompson(0, posterior, a, b), "mean", gamma=1.0, seed=3)
    (root,) = forest.plant(1)
    children = forest.expand([root], 150)
    rng = np.random.default_rng(4)
    n = rng.integers(1, 7, 150)
    mean = 0.3 + 0.4 * rng.random(150)
    forest.backup(np.repeat(children, n), np.repeat(mean, n))
    taken = forest.select([root], 40_000).leaf - children[0]  # each sees one more in flight, and draws anew
    if posterior == "beta":
        draws = rng.beta(a + n * mean, b + n * (1 - mean), (40_000, 150))
    else:
        draws = (a + n * mean) / (1 + n) + b / np.sqrt(1 + n) * rng.standard_normal((40_000, 150))
    ours, theirs = np.bincount(taken, minlength=150), np.bincount(draws.argmax(1), minlength=150)
    seen = ours + theirs > 0
    assert ((ours - theirs)[seen] ** 2 / (ours + theirs)[seen]).sum() < 208.1
    assert ours.max() < 20_000  # it is no matter of one child


@pytest.mark.parametrize(
    ("posterior", "n", "total", "floor", "tail"),
    [
        ("beta", 2, 1.0, 0.8, 0.104),  # Beta(2, 2); a binomial's sum
        ("beta", 1, 0.0, 0.6, 0.16),  # Beta(1, 2)
        ("beta", 9, 6.0, 0.8, 0.12087),  # Beta(7, 4), not far above the mean
        ("normal", 3, 1.5, 1.0, 0.05066),  # mean 0.5, deviation 0.25 ** 0.5 * 0.61
    ],
)
def test_a_draw_above_a_floor_is_as_likely_as_the_posterior_says(
    posterior: str, n: int, total: float, floor: float, tail: float
) -> None:
    """Of the model, which the core agrees with in every draw. 60000 draws, four standard errors (99.99 %)."""
    a, b = (1.0, 1.0) if posterior == "beta" else (0.5, 0.61)
    model, draws = Model(Thompson(0, posterior, a, b)), 60_000
    chance = np.random.default_rng(5).random(draws)
    above = sum(model.draw_above(Stream(key), chance[key], n, total, floor) > floor for key in range(draws))
    assert abs(above / draws - tail) < 4 * (tail * (1 - tail) / draws) ** 0.5


def test_thompson_generates_by_the_better_agent() -> None:
    """Agent 1's thoughts are worth 0.9, agent 0's 0.1: agent 1 is asked far more often."""
    forest = Forest(Thompson(agents=2), "mean", gamma=1.0, seed=1)
    roots = forest.plant(50)
    asked = np.zeros(2, int)
    for _ in range(60):
        selection = forest.select(roots)
        assert (selection.agent >= 0).all()  # every stop asks somebody
        children = forest.expand(selection.leaf, 1, None, selection.agent)
        forest.backup(children, np.where(selection.agent == 1, 0.9, 0.1), tickets=selection.ticket)
        asked += np.bincount(selection.agent, minlength=2)
    assert forest.in_flight == 0
    assert asked[1] > 2 * asked[0] > 0
    assert max(forest.stats(root).depth for root in roots) > 1  # it goes deep as well as wide


def test_beta_posteriors_refuse_other_returns() -> None:
    forest = Forest(Thompson())
    with pytest.raises(ForestError) as caught:
        forest.backup(forest.plant(2), [1.0, 1.01])
    assert caught.value.index == 1


def test_widening_keeps_children_below_its_curve() -> None:
    forest = Forest(PUCB(), widening=Widening(1.0, 0.5))
    (root,) = forest.plant(1)
    for _ in range(200):
        selection = forest.select([root])
        forest.backup(forest.expand(selection.leaf, 1), [0.5])
        row = forest.rows([root])[0]
        assert row["children"] == math.ceil(math.sqrt(row["visits"] - 1)) or row["children"] == 1
    assert row["visits"] == 201


def test_pending_visits_spread_a_wave() -> None:
    forest = Forest(PUCB())
    (root,) = forest.plant(1)
    children = forest.expand([root], 6)
    wave = forest.select([root], 6)
    assert sorted(wave.leaf.tolist()) == children.tolist()


def test_agents_take_turns_on_ties() -> None:
    forest = Forest(PUCB())
    (root,) = forest.plant(1)
    children = forest.expand([root], 6, np.full(6, 1 / 6), [0, 0, 1, 1, 2, 2])
    order = []
    for _ in range(6):
        selection = forest.select([root])
        order.append(int(selection.leaf[0] - children[0]))
        forest.backup(selection, [0.0])
    assert order == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize(
    "rule",
    [
        UCT(1e100),
        PUCT(1e-100, 1e100, fpu_reduction=1e100),
        PUCT(1e100, -1e100),
        PUCB(1e-100, 1e100),
        GumbelRoot(16, 4, c_visit=1e100, c_scale=1e100),
        Thompson(2, "normal", -1e100, 1e100),
        Thompson(2, "normal", 1e100, 1e-100),
        Thompson(2, "beta", 1e-100, 1e100),
    ],
    ids=repr,
)
def test_the_largest_numbers_leave_a_lane_to_choose(rule, backup) -> None:
    rng = np.random.default_rng(1)
    unit = isinstance(rule, Thompson) and rule.posterior == "beta"
    forest = Forest(rule, backup, threads=1)
    wave = forest.select(forest.plant(20), 3)
    for children in (3, 7, 40, 100, 2, 2):  # of each form of the inner loop
        rows = len(wave)
        returns = rng.choice([0.0, 1.0] if unit else [-1e100, 0.0, 1e100], rows)
        priors = rng.choice([0.0, 1e-100, 1.0, 1e100], rows * children)
        wave = forest.step(wave, children, returns, priors=priors, leaves=3)
    forest.check()
    rows = np.concatenate([forest.nodes(tree) for tree in forest.trees])
    assert all(np.isfinite(rows[name]).all() for name in ("prior", "value", "max", "mean"))
