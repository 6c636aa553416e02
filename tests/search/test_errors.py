"""Bad input raises ForestError with the offending index and changes nothing."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from bdc.errors import InputError
from bdc.search import PUCB, PUCT, UCT, Forest, ForestError, GumbelRoot, Selection, Thompson, Widening


def grown() -> tuple[Forest, Selection]:
    """Two trees; in the first, node 2 is pruned; one selection is in flight in each."""
    forest = Forest(threads=1)
    roots = forest.plant(2)
    children = forest.expand(roots, 3, [0.2, 0.5, 0.3] * 2)  # 2..7
    forest.backup(children, [0.1, 0.9, 0.3, 0.2, 0.4, 0.6])
    forest.prune([2], 7)
    return forest, forest.select(roots)


def image(forest: Forest, folder: Path) -> bytes:
    """Everything the forest knows, as its snapshot."""
    forest.save(folder / "image")
    return (folder / "image").read_bytes()


NAN, INF = math.nan, math.inf
BAD = {
    "rule class": (lambda f, s: Forest(UCT), None),
    "rule name": (lambda f, s: Forest("uct"), None),
    "select unknown": (lambda f, s: f.select([0, 99]), 1),
    "select negative id": (lambda f, s: f.select([-1]), 0),
    "select no root": (lambda f, s: f.select([1, 3]), 1),
    "select negative leaves": (lambda f, s: f.select([0], -1), None),
    "select floats": (lambda f, s: f.select([0.5]), None),
    "plant negative": (lambda f, s: f.plant(-1), None),
    "expand unknown": (lambda f, s: f.expand([3, 8], 1), 1),
    "expand lengths": (lambda f, s: f.expand([3, 4, 5], [1, 2]), None),
    "expand negative count": (lambda f, s: f.expand([3, 4], [1, -1]), 1),
    "expand huge count": (lambda f, s: f.expand([3], 1 << 40), 0),
    "expand over the limit": (lambda f, s: f.expand([3, 4, 3], [4000, 1, 4000]), 2),
    "expand missing priors": (lambda f, s: f.expand([3], 2, [0.5]), None),
    "expand empty priors": (lambda f, s: f.expand([3], 2, []), None),
    "expand nan prior": (lambda f, s: f.expand([3, 4], 1, [0.5, NAN]), 1),
    "expand huge prior": (lambda f, s: f.expand([3], 2, [1, 1.01e100]), 1),
    "expand inf prior": (lambda f, s: f.expand([3], 2, [INF, 1]), 0),
    "expand negative prior": (lambda f, s: f.expand([3], 2, [0.1, -0.1]), 1),
    "expand text priors": (lambda f, s: f.expand([3], 2, ["a", "b"]), None),
    "expand missing tags": (lambda f, s: f.expand([3], 2, None, [1]), None),
    "expand empty tags": (lambda f, s: f.expand([3], 2, None, np.array([], np.int32)), None),
    "expand negative tag": (lambda f, s: f.expand([3], 2, None, [0, -1]), 1),
    "expand large tag": (lambda f, s: f.expand([3], 1, None, [65536]), 0),
    "backup unknown": (lambda f, s: f.backup([3, 4, 1000], [0, 0, 0]), 2),
    "backup lengths": (lambda f, s: f.backup([3, 4], [0.0]), None),
    "backup nan": (lambda f, s: f.backup(s, [0.5, NAN]), 1),
    "backup huge": (lambda f, s: f.backup(s, [0.5, -1.01e100]), 1),
    "backup inf": (lambda f, s: f.backup(s, [-INF, 0.5]), 0),
    "backup pruned": (lambda f, s: f.backup([3, 2], [0.5, 0.5]), 1),
    "backup twice in a call": (lambda f, s: f.backup(s[[0, 1, 0]], [0.5, 0.5, 0.5]), 2),
    "backup foreign ticket": (lambda f, s: f.backup(s.leaf, [0.5, 0.5], tickets=s.ticket[::-1]), 0),
    "backup ticket count": (lambda f, s: f.backup(s.leaf, [0.5, 0.5], tickets=s.ticket[:1]), None),
    "backup selection and tickets": (lambda f, s: f.backup(s, [0.5, 0.5], tickets=s.ticket), None),
    "abandon selection and tickets": (lambda f, s: f.abandon(s, tickets=s.ticket), None),
    "step lengths": (lambda f, s: f.step(s, 2, [0.5]), None),
    "step nan": (lambda f, s: f.step(s, 2, [0.5, NAN]), 1),
    "step some rows, inf": (lambda f, s: f.step(s[[1, 0]], 2, [0.5, INF]), 1),
    "step counts": (lambda f, s: f.step(s, [1, 2, 3], [0.5, 0.5]), None),
    "step negative count": (lambda f, s: f.step(s, [1, -1], [0.5, 0.5]), 1),
    "step over the limit": (lambda f, s: f.step(s[[0, 1, 0]], 4000, [0.5, 0.5, 0.5]), 2),
    "step nan prior": (lambda f, s: f.step(s, 1, [0.5, 0.5], priors=[NAN, 0.5]), 0),
    "step missing priors": (lambda f, s: f.step(s, 2, [0.5, 0.5], priors=[0.5, 0.5]), None),
    "step large tag": (lambda f, s: f.step(s, 1, [0.5, 0.5], tags=[0, 65536]), 1),
    "step negative leaves": (lambda f, s: f.step(s, 1, [0.5, 0.5], leaves=-1), None),
    "step twice in a call": (lambda f, s: f.step(s[[0, 1, 0]], 1, [0.5, 0.5, 0.5]), 2),
    "step of another forest": (lambda f, s: f.step(grown()[0].select([0]), 1, [0.5]), 0),
    "abandon twice in a call": (lambda f, s: f.abandon(s[[1, 1]]), 1),
    "abandon idle": (lambda f, s: f.abandon([int(s.leaf[0]), 4]), 1),
    "abandon unknown": (lambda f, s: f.abandon([77]), 0),
    "prune unknown": (lambda f, s: f.prune([3, 88]), 1),
    "prune root": (lambda f, s: f.prune([3, 1]), 1),
    "prune reason": (lambda f, s: f.prune([3, 4], [1, 256]), 1),
    "prune reason zero": (lambda f, s: f.prune([3], 0), 0),
    "reopen unknown": (lambda f, s: f.reopen([2, 99]), 1),
    "refine inner": (lambda f, s: f.refine([3, 0]), 1),
    "refine unknown": (lambda f, s: f.refine([3, 99]), 1),
    "drop no root": (lambda f, s: f.drop([0, 5]), 1),
    "rows unknown": (lambda f, s: f.rows([0, 9]), 1),
    "children unknown": (lambda f, s: f.children(9), 0),
    "nodes no root": (lambda f, s: f.nodes(3), 0),
    "best path by": (lambda f, s: f.best_path(0, by="luck"), None),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_and_unchanged(name: str, tmp_path: Path) -> None:
    forest, selection = grown()
    call, index = BAD[name]
    before = image(forest, tmp_path)
    with pytest.raises(ForestError) as caught:
        call(forest, selection)
    assert isinstance(caught.value, InputError)
    assert caught.value.index == index
    assert image(forest, tmp_path) == before
    forest.check()
    forest.backup(selection, [0.5, 0.5])  # the tickets are still good
    assert forest.in_flight == 0


def test_a_ticket_is_resolved_once() -> None:
    forest, selection = grown()
    forest.backup(selection[0], [0.5])
    for again in (lambda: forest.backup(selection[0], [0.5]), lambda: forest.abandon(selection[0])):
        with pytest.raises(ForestError, match="exactly once"):
            again()
    forest.abandon(selection[1])
    assert forest.in_flight == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Forest(gamma=1.5),
        lambda: Forest(gamma=NAN),
        lambda: Forest(virtual_loss=-1.0),
        lambda: Forest(backup="median"),
        lambda: Forest(seed=-1),
        lambda: Forest(threads=0),
        lambda: Forest(virtual_loss=1.01e100),
        lambda: Forest(PUCB(c_base=0.0)),
        lambda: Forest(PUCT(c_base=1e-101)),
        lambda: Forest(UCT(1.01e100)),
        lambda: Forest(UCT(INF)),
        lambda: Forest(GumbelRoot(simulations=0)),
        lambda: Forest(Thompson(a=0.0)),
        lambda: Forest(Thompson(agents=65)),
        lambda: Forest(Thompson(agents=1.5)),
        lambda: Forest(Thompson(posterior="Normal")),
        lambda: Forest(GumbelRoot(considered=NAN)),
        lambda: Forest(PUCT(fpu_reduction=-3.0)),
        lambda: Forest(UCT("1")),
        lambda: Forest(widening=Widening(-1.0)),
    ],
)
def test_bad_settings(make) -> None:
    with pytest.raises(ForestError):
        make()


def test_a_selection_is_made_by_a_forest_only() -> None:
    with pytest.raises(TypeError):
        Selection()
    with pytest.raises(TypeError):
        Selection.__new__(Selection)
    with pytest.raises(TypeError):
        type("Mine", (Selection,), {})


def test_abandon_leaves_no_trace() -> None:
    forest, selection = grown()
    forest.abandon(selection)
    rows = forest.nodes(0)
    wave = forest.select([0, 1], 5)
    forest.abandon(wave.leaf)  # by node id
    assert (forest.nodes(0) == rows).all()
    assert forest.in_flight == 0


def test_all_siblings_pruned_reopens_the_best() -> None:
    forest, selection = grown()
    forest.abandon(selection)
    assert forest.prune([3, 4], [1, 2]).tolist() == [3]
    assert forest.children(0)["reason"].tolist() == [7, 0, 2]
    assert forest.select([0]).leaf.tolist() == [3]


def test_dropped_ids_are_unknown_and_compaction_renumbers() -> None:
    forest, selection = grown()
    forest.drop([0])
    with pytest.raises(ForestError):
        forest.backup(selection, [0.5, 0.5])
    before = forest.nodes(1)
    names = forest.compact()
    assert names.tolist() == [-1, 0, -1, -1, -1, 1, 2, 3]
    after = forest.nodes(0)
    assert (names[before["id"]] == after["id"]).all()
    for column in ("n", "value", "prior", "pending", "visits"):
        assert (before[column] == after[column]).all()
    forest.check()
    forest.backup(names[selection.leaf[1:]], [0.5], tickets=selection.ticket[1:])
    assert forest.in_flight == 0


def test_compaction_can_forget_pruned_subtrees() -> None:
    forest, _ = grown()
    forest.expand([2], 3)
    names = forest.compact(drop_pruned=True)
    assert names[2] == -1 and (names[8:11] == -1).all()
    assert forest.children(0)["id"].tolist() == names[[3, 4]].tolist()
    forest.check()


def test_calls_from_many_threads_take_turns() -> None:
    forest = Forest(threads=2)
    trees = forest.plant(64)
    failures = []

    def work(own: np.ndarray) -> None:
        try:
            for _ in range(40):
                wave = forest.select(own, 2)
                leaves = np.unique(wave.leaf)
                forest.backup(forest.expand(leaves, 3), np.full(3 * len(leaves), 0.5))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(trees[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    forest.check()
    assert forest.in_flight == 0
