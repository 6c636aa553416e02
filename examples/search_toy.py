"""All selection rules on a game whose optimum is known, with their regret.

The game: `DEPTH` moves of `WIDTH` choices each. Every move pays a Bernoulli reward in 1 / DEPTH shares; at move d the
choice `(3 * d + 1) % WIDTH` pays with probability 0.8, all others with 0.4. The best play earns 0.8 on average, any fixed
other play at most 0.8 - 0.4 / DEPTH. A search asks for a play, the game returns its noisy sum, and the regret of that
simulation is 0.8 minus the expected return of what was played. A rule that learns has a regret that falls; the play it
would settle for is the path of the best means. GumbelRoot is made for that last choice, not for the sum of the regret: it
shares its visits at the root evenly among the finalists.

`python examples/search_toy.py [--trees 100] [--simulations 2000] [--svg FILE]`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bdc.search import PUCB, PUCT, UCT, Forest, GumbelRoot, Rule, Thompson

DEPTH, WIDTH = 3, 4
GOOD, BAD = 0.8, 0.4
RULES: dict[str, Rule] = {
    "UCT": UCT(0.3),
    "PUCT": PUCT(c_init=0.6, fpu=0.6),
    "PUCB": PUCB(c=0.6),
    "GumbelRoot": GumbelRoot(simulations=2000, considered=WIDTH, c_scale=0.1),  # 1 trusts noisy returns too soon
    "Thompson": Thompson(agents=0),
}


def chances(moves: NDArray[np.int64]) -> NDArray[np.float64]:
    """[trees, DEPTH] probability that each move pays."""
    return np.where(moves == (3 * np.arange(DEPTH) + 1) % WIDTH, GOOD, BAD)


def play(rule: Rule, trees: int, simulations: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """[simulations] regret of every simulation, averaged over independent searches; the share of the searches whose path of
    best means is the best play."""
    forest = Forest(rule, "mean", gamma=1.0, seed=seed)
    roots = forest.plant(trees)
    rng = np.random.default_rng(seed)
    level = roots
    for _ in range(DEPTH):  # the whole game tree: every simulation is a play
        level = forest.expand(level, WIDTH)
    place = np.full(len(forest), -1)  # which choice a node is
    for row in forest.rows(np.arange(len(forest))):
        if row["parent"] >= 0:
            place[row["id"]] = (row["id"] - roots[-1] - 1) % WIDTH
    regret = np.empty(simulations)
    for i in range(simulations):
        selection = forest.select(roots)
        moves = place[selection.path.reshape(trees, DEPTH + 1)[:, 1:]]
        chance = chances(moves)
        forest.backup(selection, (rng.random(chance.shape) < chance).mean(1))
        regret[i] = GOOD - chance.mean()
    settled = np.stack([place[forest.best_path(int(root), by="mean")[1:]] for root in roots])
    return regret, float((chances(settled) == GOOD).all(1).mean())


def svg(curves: dict[str, NDArray[np.float64]]) -> str:
    """Average regret over windows of simulations, both axes logarithmic."""
    width, height, left, bottom = 640, 400, 60, 40
    colours = ["#1b6ca8", "#c8553d", "#2e7d32", "#7b3fa0", "#a67c00"]
    n = len(next(iter(curves.values())))
    edges = np.unique(np.geomspace(1, n, 40).astype(int))
    x = left + (width - left - 120) * np.log(edges) / np.log(n)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
    ]
    top = GOOD - BAD
    for tick in (0.4, 0.1, 0.01, 0.001):
        y = 20 + (height - bottom - 20) * np.log(top / tick) / np.log(top / 5e-4)
        parts.append(f'<line x1="{left}" x2="{width - 120}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{tick:g}</text>')
    for (name, curve), colour in zip(curves.items(), colours, strict=True):
        total = np.concatenate([[0.0], np.cumsum(curve)])
        starts = edges // 2
        mean = np.maximum((total[edges] - total[starts]) / (edges - starts), 5e-4)
        y = 20 + (height - bottom - 20) * np.log(top / mean) / np.log(top / 5e-4)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 114}" y="{y[-1] + 4:.0f}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{left}" y="{height - 12}">simulations 1 to {n}; regret per simulation</text></svg>')
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=100, help="independent searches per rule")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="draw the regret here")
    args = parser.parse_args(argv)
    results = {name: play(rule, args.trees, args.simulations, args.seed) for name, rule in RULES.items()}
    tenth = max(1, args.simulations // 10)
    print(f"{'rule':12} {'first tenth':>12} {'last tenth':>12} {'sum':>9} {'best play':>10}")
    for name, (curve, best) in results.items():
        print(f"{name:12} {curve[:tenth].mean():12.4f} {curve[-tenth:].mean():12.4f} {curve.sum():9.1f} {best:10.0%}")
    if args.svg:
        args.svg.write_text(svg({name: curve for name, (curve, _) in results.items()}), encoding="utf-8")


if __name__ == "__main__":
    main()
