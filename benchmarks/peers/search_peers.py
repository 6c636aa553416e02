"""One cell of `bdc bench search` for one peer, in the peers' own environment; prints one line of JSON.

`python search_peers.py SYSTEM TREES NODES BRANCHING`: simulations per CPU second of select, expand with B children, back
up a constant. LightZero is read from the folder in LIGHTZERO, its unpacked wheel, without its package's dependencies.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path


def lightzero(trees: int, simulations: int, branching: int) -> float:
    """The loop of LightZero's MuZeroMCTSCtree.search with a constant model."""
    (path,) = Path(os.environ["LIGHTZERO"]).glob("lzero/mcts/ctree/ctree_muzero/mz_tree*.so")
    spec = importlib.util.spec_from_file_location("mz_tree", path)
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    rewards, values, players = [0.0] * trees, [0.5] * trees, [-1] * trees
    logits = [[0.0] * branching for _ in range(trees)]
    start = time.process_time()
    roots = tree.Roots(trees, [list(range(branching)) for _ in range(trees)])
    roots.prepare_no_noise(rewards, logits, players)
    stats = tree.MinMaxStatsList(trees)
    stats.set_delta(0.01)
    for simulation in range(simulations):
        results = tree.ResultsWrapper(num=trees)
        *_, to_play = tree.batch_traverse(roots, 19652, 1.25, 0.9, stats, results, list(players))
        tree.batch_backpropagate(simulation + 1, 0.9, rewards, values, logits, stats, results, to_play)
    return time.process_time() - start


compiled: dict = {}


def compile_mctx(trees: int, simulations: int, branching: int):
    """The jitted search, called once, and its key."""
    import jax
    import jax.numpy as jnp
    import mctx as library

    zeros = jnp.zeros((trees, branching))
    value = jnp.full((trees,), 0.5)
    root = library.RootFnOutput(prior_logits=zeros, value=value, embedding=jnp.zeros((trees,)))

    def step(_params, _key, _action, embedding):
        output = library.RecurrentFnOutput(
            reward=jnp.zeros((trees,)), discount=jnp.full((trees,), 0.9), prior_logits=zeros, value=value
        )
        return output, embedding

    @jax.jit
    def search(key):
        return library.muzero_policy((), key, root, step, simulations, dirichlet_fraction=0.0).action

    key = jax.random.PRNGKey(0)
    search(key).block_until_ready()
    return search, key


def mctx(trees: int, simulations: int, branching: int) -> float:
    """`mctx.muzero_policy` on the CPU, compiled before the clock starts."""
    if "search" not in compiled:
        compiled["search"] = compile_mctx(trees, simulations, branching)
    search, key = compiled["search"]
    start = time.process_time()
    search(key).block_until_ready()
    return time.process_time() - start


def compile_gumbel_mcts(branching: int):
    """Its kernels, and a game with one-cell boards in which every move is legal and nobody wins."""
    import numba
    import numpy as np

    from kernels import puct_kernels

    @numba.njit
    def step(board, _action, _player):
        return 0.0, 0, False, board

    @numba.njit
    def legal(board, _player):
        return np.ones(branching, dtype=np.float32)

    return puct_kernels, step, legal


def gumbel_mcts(trees: int, simulations: int, branching: int) -> float:
    """The loop of gumbel-mcts' `PUCT.run_simulation_batch` over its numba kernels, a constant in place of the model."""
    import numpy as np

    first = "gumbel" not in compiled
    if first:
        compiled["gumbel"] = compile_gumbel_mcts(branching)
        gumbel_mcts(1, 2, branching)  # compiles
    kernels, step, legal = compiled["gumbel"]
    start = time.process_time()
    size = trees * (simulations + 1) + 1
    children = np.full((size, branching), -1, np.int32)
    parents, visits = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    values, terminal_values = np.zeros(size), np.zeros(size)
    priors, depths = np.zeros((size, branching)), np.zeros(size, np.int32)
    expanded, terminal = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    boards, players, edges = np.zeros((size, 1), np.int8), np.ones(size, np.int8), np.zeros(size, np.int16)
    games = np.arange(trees, dtype=np.int32)
    roots = games + 1
    free = np.array([trees + 1], np.int32)
    constant = np.full(trees, 0.5)
    leaves = roots
    for _ in range(simulations + 1):  # the first one only expands the roots
        expanded[leaves] = True
        priors[leaves] = 1.0 / branching
        kernels.backpropagate_batch(leaves, constant, parents, visits, values)
        leaves = kernels.select_leaves_batch(
            step, legal, branching, 1, 2, games, roots, children, visits, values, priors, expanded, terminal,
            terminal_values, boards, players, parents, edges, free, 19652, 1.25, size, depths, 1 << 30
        )  # fmt: skip
    return time.process_time() - start


def treequest(trees: int, simulations: int, branching: int) -> float:
    """`StandardMCTS`, whose step expands one node by B samples."""
    from treequest import StandardMCTS

    start = time.process_time()
    for _ in range(trees):
        algorithm = StandardMCTS(samples_per_action=branching)
        state = algorithm.init_tree()
        for _ in range(simulations):
            state = algorithm.step(state, {"a": lambda parent: ("x", 0.5)})
    return time.process_time() - start


def treequest_thompson(trees: int, simulations: int, branching: int) -> float:
    """`ABMCTSA`; a step adds one child, so B does not matter."""
    from treequest import ABMCTSA

    start = time.process_time()
    for _ in range(trees):
        algorithm = ABMCTSA()
        state = algorithm.init_tree()
        for _ in range(simulations):
            state = algorithm.step(state, {"a": lambda parent: ("x", 0.5)})
    return time.process_time() - start


SYSTEMS = {
    "LightZero": lightzero,
    "mctx": mctx,
    "gumbel-mcts": gumbel_mcts,
    "TreeQuest": treequest,
    "TreeQuest AB-MCTS-A": treequest_thompson,
}
PACKAGES = {
    "LightZero": None,
    "mctx": "mctx",
    "gumbel-mcts": "gumbel-mcts",
    "TreeQuest": "treequest",
    "TreeQuest AB-MCTS-A": "treequest",
}


def main() -> None:
    system = sys.argv[1]
    trees, nodes, branching = map(int, sys.argv[2:5])
    simulations = nodes // branching
    rates = []
    SYSTEMS[system](trees, simulations, branching)  # not counted
    for _ in range(5):
        spent, repeats = 0.0, 0
        while spent < 0.1:  # small cells often enough to time
            spent += SYSTEMS[system](trees, simulations, branching)
            repeats += 1
        rates.append(trees * simulations * repeats / spent)
    package = PACKAGES[system]
    version = importlib.metadata.version(package) if package else Path(os.environ["LIGHTZERO"]).name
    print(json.dumps({"rates": rates, "version": version}))


if __name__ == "__main__":
    main()
