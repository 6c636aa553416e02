"""Snapshots: what was saved continues the same; whatever else is refused by name."""

from __future__ import annotations

import os
import random
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from bdc.search import PUCB, PUCT, UCT, Forest, ForestError, GumbelRoot, Thompson, Widening


def wave(forest: Forest, rng: np.random.Generator) -> list[int]:
    """One wave over all trees; the selected paths."""
    selection = forest.select(forest.trees, 2)
    leaves = np.unique(selection.leaf)
    agents = forest.rule.agents if isinstance(forest.rule, Thompson) else 3
    tags = rng.integers(0, max(agents, 1), 3 * len(leaves))
    children = forest.expand(leaves, 3, rng.random(3 * len(leaves)), tags)
    forest.backup(children, rng.random(len(children)))
    return selection.path.tolist()


SECTIONS, LOCATIONS = 7, 5  # entries in the table; where the large sections begin
RULES = [UCT(0.7), PUCT(fpu_reduction=0.2), PUCB(), GumbelRoot(32, 4), Thompson(2), Thompson(0, "normal", 0.5, 2.0)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("backup", ["max", "mean"])
def test_save_load_continue(rule, backup: str, tmp_path: Path) -> None:
    forest = Forest(rule, backup, seed=5, virtual_loss=0.1, widening=Widening(2.0, 0.5))
    forest.plant(3)
    rng = np.random.default_rng(1)
    for _ in range(20):
        wave(forest, rng)
    flying = forest.select(forest.trees)
    forest.save(tmp_path / "a")
    other = Forest.load(tmp_path / "a")
    assert (other.rule, other.backup_mode, other.gamma) == (forest.rule, forest.backup_mode, forest.gamma)
    other.backup(flying, [0.1, 0.2, 0.3])
    forest.backup(flying, [0.1, 0.2, 0.3])
    ours, theirs = np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(20):
        assert wave(forest, ours) == wave(other, theirs)
    for tree in forest.trees:
        assert (forest.nodes(tree) == other.nodes(tree)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]  # no temporary is left


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_mapped_snapshot_continues_the_same(rule, tmp_path: Path) -> None:
    """Opened without checks: grows out of the mapping, widens, reuses freed blocks; the file stays as it was."""
    forest = Forest(rule, seed=5, widening=Widening(2.0, 0.5))
    forest.plant(3)
    rng = np.random.default_rng(1)
    for _ in range(20):
        wave(forest, rng)
    flying = forest.select(forest.trees)
    forest.expand(flying.leaf[:2], 3)  # children that nobody has looked at
    forest.save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    other = Forest.load(tmp_path / "a", verify=False)
    other.check()
    for tree in forest.trees:
        assert (forest.nodes(tree) == other.nodes(tree)).all()
    other.backup(flying, [0.1, 0.2, 0.3])
    forest.backup(flying, [0.1, 0.2, 0.3])
    ours, theirs = np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(20):
        assert wave(forest, ours) == wave(other, theirs)
    other.check()
    assert (tmp_path / "a").read_bytes() == content
    other.save(tmp_path / "a")  # onto the file that is still mapped
    for tree in forest.trees:
        assert (forest.nodes(tree) == other.nodes(tree)).all()
        assert (forest.nodes(tree) == Forest.load(tmp_path / "a").nodes(tree)).all()


def test_a_mapped_snapshot_checks_its_small_sections(snapshot: bytes, tmp_path: Path) -> None:
    """The table, the configuration, the trees and the tickets come first; they are small."""
    (offset,) = struct.unpack_from("<Q", snapshot, 32 + 24 * LOCATIONS)
    rng = random.Random(6)
    used = [i for i in range(offset) if snapshot[i]]
    for _ in range(200):
        damaged = bytearray(snapshot)
        damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
        (tmp_path / "bad").write_bytes(damaged)
        with pytest.raises(ForestError):
            Forest.load(tmp_path / "bad", verify=False)


@pytest.fixture
def snapshot(tmp_path: Path) -> bytes:
    forest = Forest(Thompson(2), seed=5)
    forest.plant(2)
    rng = np.random.default_rng(1)
    for _ in range(4):
        wave(forest, rng)
    forest.expand(np.unique(forest.select(forest.trees, 2).leaf), 3)  # children that nobody has looked at
    forest.save(tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def refused(folder: Path, content: bytes) -> str:
    path = folder / "bad"
    path.write_bytes(content)
    with pytest.raises(ForestError) as caught:
        Forest.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_truncated_foreign_newer(snapshot: bytes, tmp_path: Path) -> None:
    for length in [0, 1, 31, 32, 100, 200, len(snapshot) // 2, len(snapshot) - 1]:
        refused(tmp_path, snapshot[:length])
    refused(tmp_path, snapshot + b"\0")
    assert "foreign" in refused(tmp_path, b"PK" + snapshot[2:])
    newer = bytearray(snapshot)
    for version, word in ((2, "older"), (5, "newer")):
        struct.pack_into("<I", newer, 8, version)
        assert word in refused(tmp_path, bytes(newer))
    with pytest.raises(ForestError, match="cannot be opened"):
        Forest.load(tmp_path / "nothing")
    with pytest.raises(ForestError):
        Forest.load(tmp_path)


def test_any_flipped_bit_is_noticed(snapshot: bytes, tmp_path: Path) -> None:
    rng = random.Random(3)
    used = [i for i, byte in enumerate(snapshot) if byte] + list(range(32 + 24 * SECTIONS))
    for _ in range(400):
        damaged = bytearray(snapshot)
        damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
        refused(tmp_path, bytes(damaged))


def mask(x: int) -> int:
    return x & (2**64 - 1)


def rotl(x: int, by: int) -> int:
    return mask(x << by) | (mask(x) >> (64 - by))


def checksum(data: bytes) -> int:
    """The format's checksum, written a second time."""
    prime, other = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
    lanes = [prime, other, mask(~prime), mask(~other)]
    whole = len(data) // 32 * 32
    for at, (word,) in enumerate(struct.iter_unpack("<Q", data[:whole])):
        lanes[at % 4] = mask(rotl(mask(lanes[at % 4] + word * other), 31) * prime)
    tail = 0
    for byte in data[whole:]:
        tail = mask(rotl(tail ^ mask(byte * other), 11) * prime)
    value = mask(len(data) * prime) ^ tail
    for lane in lanes:
        value = mask(rotl(value ^ lane, 27) * prime + other)
    value = mask((value ^ (value >> 33)) * other)
    return value ^ (value >> 29)


def resealed(content: bytearray) -> bytes:
    """The file with all its checksums made right again."""
    for section in range(SECTIONS):
        at = 32 + 24 * section
        offset, size, _ = struct.unpack_from("<QQQ", content, at)
        struct.pack_into("<Q", content, at + 16, checksum(bytes(content[offset : offset + size])))
    struct.pack_into("<Q", content, 24, checksum(bytes(content[32 : 32 + 24 * SECTIONS])))
    return bytes(content)


def test_hostile_files_with_good_checksums(snapshot: bytes, tmp_path: Path) -> None:
    """A forged file is refused, or yields a forest that works: never a crash."""
    assert resealed(bytearray(snapshot)) == snapshot
    rng = random.Random(4)
    outcomes = {"refused": 0, "loaded": 0}
    path = tmp_path / "forged"
    table = [struct.unpack_from("<QQ", snapshot, 32 + 24 * section) for section in range(SECTIONS)]
    words = [at for offset, size in table for at in range(offset, offset + size - 3, 4)]
    extreme = [0, 1, 2, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FF00000, 0xFFF80000]
    for _ in range(400):
        forged = bytearray(snapshot)
        for _ in range(rng.randint(1, 3)):
            at = rng.choice(words)
            (old,) = struct.unpack_from("<I", forged, at)
            new = rng.choice([rng.choice(extreme), old ^ (1 << rng.randrange(32)), mask(old + 1) & 0xFFFFFFFF])
            struct.pack_into("<I", forged, at, new)
        path.write_bytes(resealed(forged))
        try:
            forest = Forest.load(path)
        except ForestError:
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        forest.check()
        for tree in forest.trees:
            forest.nodes(int(tree))
            forest.best_path(int(tree))
        forest.abandon(forest.select(forest.trees, 2))
        forest.compact()
    assert outcomes["refused"] > 50
    assert outcomes["loaded"] > 20


def offsets(content: bytearray, *sections: int) -> list[int]:
    return [struct.unpack_from("<Q", content, 32 + 24 * section)[0] for section in sections]


def test_a_forged_ticket_leads_nowhere(tmp_path: Path) -> None:
    """All trees are checked before a ticket is followed: here tree 1 hides that the ticket's node is none."""
    forest = Forest(UCT())
    roots = forest.plant(3)
    forest.drop(roots[2:])
    forest.select(roots[:1])
    forest.save(tmp_path / "good")
    forged = bytearray((tmp_path / "good").read_bytes())
    trees, flights, locations = offsets(forged, 1, 3, LOCATIONS)
    struct.pack_into("<I", forged, trees + 24 + 8, 2)  # nodes of tree 1
    struct.pack_into("<I", forged, flights + 8, 2)  # the ticket's node, which lies
    struct.pack_into("<Q", forged, locations + 16, ((1 << 30) - 1000) << 12)  # far out in tree 0
    assert "reachable" in refused(tmp_path, resealed(forged))


@pytest.mark.parametrize("at", [8, 24])  # in a block: visits of the parent, returns of the first child
def test_counts_beyond_int32_are_refused(at: int, tmp_path: Path) -> None:
    forest = Forest(UCT())
    children = forest.expand(forest.plant(1), 2)
    forest.backup(children, [0.1, 0.2])
    forest.save(tmp_path / "good")
    forged = bytearray((tmp_path / "good").read_bytes())
    locations, grains = offsets(forged, LOCATIONS, LOCATIONS + 1)
    (place,) = struct.unpack_from("<Q", forged, locations + 8 * int(children[0]))
    for count in (2**31 - 1, 2**31, 2**32 - 1):
        struct.pack_into("<I", forged, grains + 32 * (place >> 12 & (1 << 30) - 1) + at, count)
        if count < 2**31:
            (tmp_path / "large").write_bytes(resealed(forged))
            Forest.load(tmp_path / "large").check()
        else:
            refused(tmp_path, resealed(forged))


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ForestError, match="no bdc forest snapshot"):
        Forest.load(tmp_path / "pipe")


@pytest.mark.parametrize("call", [Forest.save, lambda forest, path: Forest.load(path)])
@pytest.mark.parametrize("end", ["\0x", "\ud800"])
def test_a_path_that_no_file_has_is_refused(call, end: str, tmp_path: Path) -> None:
    forest = Forest()
    forest.save(tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    forest.plant(1)
    with pytest.raises(ForestError, match="path is '"):
        call(forest, f"{tmp_path}/kept{end}")
    assert (tmp_path / "kept").read_bytes() == before


def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff")
    forest = Forest()
    forest.plant(2)
    forest.save(path)
    assert len(Forest.load(path)) == len(Forest.load(path, verify=False)) == 2
    path.write_bytes(b"")
    with pytest.raises(ForestError, match="a\udcff is no bdc forest snapshot"):
        Forest.load(path)
    with pytest.raises(FileNotFoundError):
        forest.save(path.with_name(os.fsdecode(b"no\xff")) / "file")


def test_a_snapshot_is_the_same_without_waiting_for_the_disk(tmp_path: Path) -> None:
    forest = Forest()
    forest.plant(3)
    wave(forest, np.random.default_rng(1))
    forest.save(tmp_path / "waited")
    forest.save(tmp_path / "not", sync=False)
    assert (tmp_path / "not").read_bytes() == (tmp_path / "waited").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not", "waited"]


@pytest.mark.parametrize("sync", [True, False])
def test_a_save_without_room_keeps_the_old_file(sync: bool, tmp_path: Path) -> None:
    forest = Forest()
    forest.plant(1)
    forest.save(tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    forest.plant(1000)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), allowed[1]))
    try:
        with pytest.raises(OSError, match="kept"):
            forest.save(tmp_path / "kept", sync=sync)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert (tmp_path / "kept").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    forest = Forest()
    forest.plant(1)
    with pytest.raises(OSError, match="nowhere"):
        forest.save(tmp_path / "nowhere" / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError):
        forest.save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
