"""Plain values travel unchanged, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdc.sandbox.compare import equal, output_difference
from bdc.sandbox.inside.values import Heap, NotPlainError, pack, unpack

numbers = st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.complex_numbers(allow_nan=False)
texts = st.text() | st.text(st.characters(categories=["Cs"])) | st.binary()
scalars = st.none() | st.booleans() | numbers | texts | st.fractions() | st.decimals(allow_nan=False)
hashable = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars)
plain = st.recursive(
    hashable,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashable, inner) | st.sets(hashable),
    max_leaves=20,
)


def mixed(value: Any) -> bool:
    """Whether a value holds a Decimal and an int over 1024 bits, which do not travel together."""
    text = repr(value)
    return "Decimal(" in text and re.search(r"\d{308}", text) is not None


def typed(value: Any) -> Any:
    """The value's shape with types, so that 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    return type(value)


@given(plain)
def test_round_trip(value: Any) -> None:
    back = unpack(json.loads(json.dumps(pack(value))), trusted=mixed(value))
    assert equal(value, back) or "nan" in repr(value).lower()
    assert typed(back) == typed(value)


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(),
        lambda i: st.lists(i) | st.dictionaries(st.text() | st.sampled_from("tdszkcbuyrqDFif@"), i),
    )
)
def test_hostile_data_is_refused_or_plain(data: Any) -> None:
    with contextlib.suppress(NotPlainError):
        pack(unpack(data))


def sent(data: Any) -> Any:
    return json.loads(json.dumps(data))


@given(plain)
def test_a_heap_takes_a_value_there_and_back(value: Any) -> None:
    here, there = Heap(), Heap()
    packed = sent([pack(value, heap=here), pack([value], heap=here)])
    copy, _ = copies = tuple(unpack(item, there, trusted=True) for item in packed)
    assert typed(copy) == typed(value)
    assert copies[1][0] is copy or not isinstance(value, (list, dict, set))
    assert there.changes(copies, packed) == [] or "frozenset" in repr(value)  # it may have another order there
    if isinstance(copy, list):
        copy.append(copy)
    if not mixed(value):
        here.apply(sent(there.changes(copies, packed)))
    elif isinstance(copy, list):
        value.append(value)
    assert not isinstance(value, list) or value.pop() is value
    first, second = unpack(sent(pack([copy, copy], heap=there)), here, trusted=True)
    assert first is second or not isinstance(value, (list, dict, set))
    assert first is value or not isinstance(value, (list, dict, set))


@pytest.mark.parametrize("one", [1, 1.0, True, 0.0, -0.0, "1"])
@pytest.mark.parametrize("other", [1, 1.0, True, 0.0, -0.0, "1"])
@pytest.mark.parametrize("kind", [lambda x: [x], lambda x: {"k": x}, lambda x: {x: 1}, lambda x: {x}])
def test_a_heap_sees_a_change_to_an_equal_value_of_another_type(kind: Any, one: Any, other: Any) -> None:
    there, packed = Heap(), [pack(kind(one), heap=Heap())]
    copy = unpack(packed[0], there)
    copy.clear()
    (copy.extend if isinstance(copy, list) else copy.update)(kind(other))
    assert bool(there.changes((copy,), packed)) is (repr(one) != repr(other))


hostile = st.recursive(
    st.none() | st.integers(-1, 3) | st.text("@dsqytk", max_size=1),
    lambda i: st.lists(i, max_size=3) | st.dictionaries(st.sampled_from("@dsqytk"), i, max_size=2),
)


@given(hostile | st.lists(st.lists(hostile, min_size=2, max_size=2)))
def test_hostile_changes_are_refused_or_keep_to_the_objects_of_the_call(changes: Any) -> None:
    inner, kept = [1], {"other": [2]}
    objects = [inner, {3}, {4: inner}]
    heap = Heap()
    pack(tuple(objects), heap=heap)
    with contextlib.suppress(NotPlainError):
        heap.apply(changes)
    assert [type(item) for item in objects] == [list, set, dict]
    assert kept == {"other": [2]}


@pytest.mark.parametrize(
    "changes",
    [None, [5], [[0, 5]], [[0, {"d": []}]], [[2, []]], [[-1, []]], [[True, []]], [[1, 5]], [[0, [2]], [0, [{"@": 1}]]]],
)
def test_changes_that_no_heap_makes_are_refused(changes: Any) -> None:
    heap, value = Heap(), [1]
    pack(value, heap=heap)
    with pytest.raises(NotPlainError):
        heap.apply(changes)
    assert value == [1]


@pytest.mark.parametrize(
    "data",
    [
        {"c": []}, {"c": {}}, {"c": ["x", "y"]}, {"i": "z"}, {"F": ["1e999999999"]}, {"F": [{"D": "1E+999999999"}]},
        {"F": [1, 0]}, {"F": [{"i": hex(3**999999)}, {"i": hex(7**999999)}]}, {"D": "x"}, {"s": [{"D": "sNaN"}]},
        {"d": [[1]]}, {"r": [1.5]}, {"n": "object"}, {"u": "zz"}, {"b": 5}, {"t": "ab"}, {"t": 1, "s": 2}, {},
        {"s": [{"i": hex(10**800_000)}, {"D": "1E+800000"}]}, {"t": [{"D": "1"}, {"F": [{"i": hex(7**999)}, 1]}]}, [1 << 62],
    ],
)  # fmt: skip
def test_frames_that_no_value_packs_to_are_refused_at_once(data: Any) -> None:
    started = time.process_time()
    with pytest.raises(NotPlainError):
        unpack(data)
    assert time.process_time() - started < 1


def test_a_decimal_and_a_long_int_travel_to_a_program_together() -> None:
    value = [Decimal("1e400"), 10**400]
    assert unpack(pack(value), trusted=True) == value
    for part in value:
        assert unpack(pack(part)) == part


@pytest.mark.parametrize("value", [object(), print, (i for i in ()), type, [lambda: 1], {1: object()}, math])
def test_other_objects_do_not_travel(value: Any) -> None:
    with pytest.raises(NotPlainError):
        pack(value)


def test_hooks_of_a_program_are_not_called() -> None:
    class Liar(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise AssertionError

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert unpack(pack(Liar({1: 2}))) == {1: 2}


def colliding_keys(size: int, small: int, large: int) -> list[int]:
    """Ints of different hashes that a dict inserts slowly: the small ones occupy the first slots of the sequence
    i -> 5 i + 1 by which CPython probes on, and the large ones meet occupied slots alone until they join it."""
    mask, slots = size - 1, [0]
    while len(slots) < small:
        slots.append((5 * slots[-1] + 1) & mask)
    occupied = np.zeros(size, bool)
    occupied[slots] = True
    keys = np.random.default_rng(0).integers(size, size << 10, 400 * large)
    place, rest = keys & mask, keys.copy()
    held = occupied[place]
    while rest.any():
        rest >>= 5
        place = (5 * place + rest + 1) & mask
        held &= occupied[place]
    found = np.unique(keys[held])
    assert len(found) >= large
    return [*slots, *found[:large].tolist()]


def test_keys_chosen_to_collide_are_refused() -> None:
    keys = colliding_keys(1 << 17, 60_000, 27_000)
    assert len(set(map(hash, keys))) == len(keys)
    with pytest.raises(NotPlainError, match="collide"):
        unpack({"d": [[key, 0] for key in keys]})
    assert len(unpack({"d": [[key, 0] for key in range(500_000)]})) == 500_000
    assert len(unpack({"z": [str(key) for key in range(400_000)]})) == 400_000


@pytest.mark.parametrize("tag", ["s", "z", "k"])
def test_many_sets_of_keys_that_collide_are_refused_as_soon_as_one(tag: str) -> None:
    one = {tag: [{"i": hex(n * (2**61 - 1))} for n in range(2, 6002)]}
    started = time.process_time()
    with pytest.raises(NotPlainError, match="collide"):
        unpack([one] * 20)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("expected", "actual", "agrees"),
    [
        ("1 2\n3", "1\n2 3 ", True),
        ("0.5", "0.50000001", True),
        ("0.5", "0.5001", False),
        ("1e9", "1000000000.0", True),
        ("1000000.5", "1000000.9", True),
        ("1", "1.0", False),
        ("1", "1.0000001", False),
        ("yes", "YES", False),
        ("", "x", False),
        ("x", "", False),
        ("nan", "nan", True),
        ("inf", "-inf", False),
        ("2.0", "2", True),
        ("3.0", "\N{ARABIC-INDIC DIGIT THREE}.\N{ARABIC-INDIC DIGIT ZERO}", False),
        ("1 2", "1\x1c2", False),
        ("1 2", "1\xa02", False),
        ("1 2", "1\r\n\t2", True),
    ],
)
def test_printed_output(expected: str, actual: str, agrees: bool) -> None:
    assert (output_difference(expected, actual) is None) is agrees
