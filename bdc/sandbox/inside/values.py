"""Plain Python values as JSON with types: what may travel between a program and its judge.

Only data crosses: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range,
deque, Decimal, Fraction, and these types by name. A value of a subclass travels as its built-in base (a Counter as a dict, a namedtuple as a
tuple), so no method that a program wrote ever runs on the judge's side.

Alone, a value travels as a tree. With a `Heap` at both ends its lists, dicts and the like keep their identity: they are numbered in the order in
which they are packed and unpacked, and an object that comes again is written as its number.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from operator import is_
from typing import Any

from bdc.sandbox.inside.frames import text

MAX_DEPTH = 200
_SMALL = 1 << 62
_TYPES: tuple[type, ...] = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
_MUTABLE = (list, dict, set, deque, bytearray)
_NAMED = {kind.__name__: kind for kind in _TYPES}
_AT_ONCE = 32  # elements put into a set or dict between two looks at the clock
_FILL_SECONDS = 0.5  # of CPU time; the most that fits in a frame takes 0.1
_MAX_FRACTION_BITS = 1 << 18
_LONG_INT_BITS = 1 << 10


class NotPlainError(Exception):
    """The value (or a part of it) is no plain data and cannot travel."""


def pack(value: Any, depth: int = 0, heap: Heap | None = None) -> Any:
    """Return a JSON-ready form of ``value``; with ``heap`` an object that is there already is referred to.

    Raises:
        NotPlainError: some part is no plain data, or the nesting is deeper than `MAX_DEPTH` (so are cycles).
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _pack_str(value)
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested deeper than {MAX_DEPTH}")
    if heap is not None and isinstance(value, _MUTABLE):
        if (number := heap.numbers.get(id(value))) is not None:
            return {"@": number}
        heap.add(value)
    if kind is list:
        return _pack_all(value, depth + 1, heap)
    exact = _EXACT.get(kind)
    if heap is not None and (exact is None or (kind is deque and value.maxlen is not None)):
        heap.inexact = True
    if exact:
        return exact(value, depth + 1, heap)
    for base, packer in _PACKERS:
        if isinstance(value, base):
            return packer(value, depth + 1, heap)
    if isinstance(value, type) and _NAMED.get(value.__name__) is value:
        return {"n": value.__name__}
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return pack(value.item(), depth + 1)
    raise NotPlainError(f"a value of type {kind.__name__!r}")


def _pack_str(value: str) -> Any:
    """JSON would join two halves of a surrogate pair, which Python keeps apart."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        return {"u": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _pack_all(items: Iterable[Any], depth: int, heap: Heap | None) -> list[Any]:
    """Pack each of ``items``; short ints, of which large values are made, without a call."""
    return [item if type(item) is int and -_SMALL < item < _SMALL else pack(item, depth, heap) for item in items]


def _pack_dict(value: dict[Any, Any], depth: int, heap: Heap | None) -> Any:
    keys, items = _pack_all(dict.keys(value), depth, heap), _pack_all(dict.values(value), depth, heap)
    return {"d": [[key, item] for key, item in zip(keys, items, strict=True)]}


_PACKERS: tuple[tuple[type, Callable[[Any, int, Heap | None], Any]], ...] = (
    (tuple, lambda v, d, h: {"t": _pack_all(tuple.__iter__(v), d, h)}),
    (dict, _pack_dict),
    (list, lambda v, d, h: _pack_all(list.__iter__(v), d, h)),
    (set, lambda v, d, h: {"s": _pack_all(set.__iter__(v), d, h)}),
    (frozenset, lambda v, d, h: {"z": _pack_all(frozenset.__iter__(v), d, h)}),
    (str, lambda v, d, h: _pack_str(str.__str__(v))),
    (int, lambda v, d, h: pack(int.__index__(v))),
    (float, lambda v, d, h: pack(float.__float__(v))),
    (complex, lambda v, d, h: {"c": [repr(v.real), repr(v.imag)]}),
    (bytes, lambda v, d, h: {"b": bytes.hex(v)}),
    (bytearray, lambda v, d, h: {"y": bytearray.hex(v)}),
    (range, lambda v, d, h: {"r": _pack_all((v.start, v.stop, v.step), d, h)}),
    (deque, lambda v, d, h: {"q": _pack_all(deque.__iter__(v), d, h)}),
    (type({}.keys()), lambda v, d, h: {"k": _pack_all(v, d, h)}),
    (Decimal, lambda v, d, h: {"D": Decimal.__str__(v)}),
    (Fraction, lambda v, d, h: {"F": _pack_all((v.numerator, v.denominator), d, h)}),
)
_EXACT = dict(_PACKERS)


class _Seen:
    """What a value holds so far. Comparing a Decimal with a long int takes quadratic time: no value may hold both."""

    decimal = long_int = False
    fill_seconds = _FILL_SECONDS  # left to all its sets and dicts together

    def __init__(self, heap: Heap | None, trusted: bool) -> None:
        self.heap, self.trusted = heap, trusted

    def new(self, value: Any) -> Any:
        """Number a new object before what it holds, as `pack` does."""
        if self.heap is not None:
            self.heap.add(value)
        return value

    def check(self) -> None:
        if self.decimal and self.long_int and not self.trusted:
            raise NotPlainError("a Decimal beside a very long int")


def unpack(data: Any, heap: Heap | None = None, trusted: bool = False) -> Any:
    """Return the value that `pack` packed, with the same ``heap`` if any; unless ``trusted``, the data may be hostile.

    Raises:
        NotPlainError: the data is not what `pack` makes, or would take long to compare.
    """
    return _unpack(data, 0, _Seen(heap, trusted))


def _unpack(data: Any, depth: int, seen: _Seen) -> Any:
    if depth > MAX_DEPTH + 10:
        raise NotPlainError("a value nested too deeply")
    if type(data) is list:
        found = seen.new([])
        found += _unpack_all(data, depth + 1, seen)
        return found
    if type(data) is not dict:
        if type(data) is int and not -_SMALL < data < _SMALL:
            raise NotPlainError("a long int that is not marked as one")
        return data
    try:
        ((tag, body),) = data.items()
        return _UNPACKERS[tag](body, depth + 1, seen)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NotPlainError("a value that cannot be read back") from error


def _unpack_all(items: Any, depth: int, seen: _Seen) -> list[Any]:
    if type(items) is not list:
        raise NotPlainError("a value that cannot be read back")
    return [item if type(item) is int and -_SMALL < item < _SMALL else _unpack(item, depth, seen) for item in items]


def _filled(collection: Any, items: list[Any], seen: _Seen) -> Any:
    """Put elements into a set or dict, unless they are chosen to collide, which would take quadratic time."""
    if len(items) <= _AT_ONCE or seen.trusted:
        collection.update(items)
        return collection
    started = time.thread_time()
    for start in range(0, len(items), _AT_ONCE):
        collection.update(items[start : start + _AT_ONCE])
        if time.thread_time() - started > seen.fill_seconds:
            raise NotPlainError("a set or dict whose elements collide")
    seen.fill_seconds -= time.thread_time() - started
    return collection


def _unpack_dict(body: Any, depth: int, seen: _Seen, numbered: bool = True) -> dict[Any, Any]:
    found: dict[Any, Any] = seen.new({}) if numbered else {}
    keys = _unpack_all([key for key, _ in body], depth, seen)
    items = _unpack_all([item for _, item in body], depth, seen)
    _filled(found, list(zip(keys, items, strict=True)), seen)
    return found


def _unpack_set(body: Any, depth: int, seen: _Seen) -> set[Any]:
    found: set[Any] = seen.new(set())
    _filled(found, _unpack_all(body, depth, seen), seen)
    return found


def _unpack_frozenset(body: Any, depth: int, seen: _Seen) -> frozenset[Any]:
    return frozenset(_filled(set(), _unpack_all(body, depth, seen), seen))


def _unpack_keys(body: Any, depth: int, seen: _Seen) -> Any:
    return _filled({}, [(key, None) for key in _unpack_all(body, depth, seen)], seen).keys()


def _unpack_deque(body: Any, depth: int, seen: _Seen) -> deque[Any]:
    found: deque[Any] = seen.new(deque())
    found.extend(_unpack_all(body, depth, seen))
    return found


def _unpack_int(body: Any, depth: int, seen: _Seen) -> int:
    value = int(body, 16)
    if value.bit_length() > _LONG_INT_BITS:
        seen.long_int = True
        seen.check()
    return value


def _unpack_decimal(body: Any, depth: int, seen: _Seen) -> Decimal:
    seen.decimal = True
    seen.check()
    return Decimal(body)


def _unpack_fraction(body: Any, depth: int, seen: _Seen) -> Fraction:
    """Take two ints of a size whose common divisor is quickly found; a text such as 1e999999999 would be written out."""
    numerator, denominator = _unpack_all(body, depth, seen)
    if type(numerator) is not int or type(denominator) is not int:
        raise NotPlainError("a fraction not of two ints")
    if max(numerator.bit_length(), denominator.bit_length()) > _MAX_FRACTION_BITS:
        raise NotPlainError("a fraction of very long ints")
    return Fraction(numerator, denominator)


def _referred(body: Any, depth: int, seen: _Seen) -> Any:
    if seen.heap is None:
        raise NotPlainError("a value that cannot be read back")
    return seen.heap.object(body)


_UNPACKERS: dict[str, Callable[[Any, int, _Seen], Any]] = {
    "i": _unpack_int,
    "f": lambda b, d, s: float(b),
    "t": lambda b, d, s: tuple(_unpack_all(b, d, s)),
    "d": _unpack_dict,
    "s": _unpack_set,
    "z": _unpack_frozenset,
    "k": _unpack_keys,
    "n": lambda b, d, s: _NAMED[b],
    "c": lambda b, d, s: complex(float(b[0]), float(b[1])),
    "b": lambda b, d, s: bytes.fromhex(b),
    "u": lambda b, d, s: bytes.fromhex(b).decode("utf-8", "surrogatepass"),
    "y": lambda b, d, s: s.new(bytearray.fromhex(b)),
    "r": lambda b, d, s: range(*_unpack_all(b, d, s)),
    "q": _unpack_deque,
    "D": _unpack_decimal,
    "F": _unpack_fraction,
    "@": _referred,
}


class Heap:
    """The objects of one call that can change in place, under the same numbers at both ends."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # by identity
        self.inexact = False  # whether a value was packed that arrives as another type

    def add(self, value: Any) -> None:
        """Give an object the next number."""
        self.numbers[id(value)] = len(self._objects)
        self._objects.append(value)

    def object(self, number: Any) -> Any:
        """Return the object of a number. Raises NotPlainError."""
        if type(number) is not int or not 0 <= number < len(self._objects):
            raise NotPlainError("an object that there is not")
        return self._objects[number]

    def changes(self, values: tuple[Any, ...], packed: list[Any]) -> list[Any]:
        """Return number and packed contents of each object that changed since ``packed`` was unpacked to ``values``.

        Raises:
            NotPlainError: as `pack`.
        """
        now = Heap()
        if _same([pack(value, heap=now) for value in values], packed) and all(map(is_, now._objects, self._objects)):
            return []
        before: list[Any] = []
        _flat_all(packed, before)
        found: list[Any] = []
        for number, old in enumerate(before):
            value = self._objects[number]
            content = _pack_contents(value, self)
            if not _same(content, old) and not (isinstance(value, set) and _sorted(content) == _sorted(old)):
                found.append([number, content])
        return found

    def apply(self, changes: Any) -> None:
        """Make the objects what the other end's `changes` say, which may be hostile.

        Raises:
            NotPlainError: the data is not what `changes` makes; no object has changed then.
        """
        seen = _Seen(self, trusted=False)
        try:
            new = [(old := self.object(number), _unpack_contents(old, body, seen)) for number, body in changes]
        except (TypeError, ValueError) as error:
            raise NotPlainError("changes that cannot be read back") from error
        for old, item in new:
            _refill(old, item)


def _same(a: Any, b: Any) -> bool:
    """Compare packed data; == alone would take 1.0 for 1."""
    return bool(a == b) and text(a) == text(b)


def _sorted(items: list[Any]) -> list[str]:
    return sorted(map(text, items))


def _flat_all(items: list[Any], contents: list[Any]) -> list[Any]:
    return [_flat(item, contents) if type(item) in (list, dict) else item for item in items]


def _flat_pairs(pairs: list[Any], contents: list[Any]) -> list[Any]:
    return [[key, _flat(item, contents) if type(item) in (list, dict) else item] for key, item in pairs]


def _flat(data: Any, contents: list[Any]) -> Any:
    """Take packed data apart: append what each object holds to ``contents``, return the rest."""
    ((tag, body),) = [("", data)] if type(data) is list else data.items()
    if tag in "dsqy":  # "" is
        contents.append(body)
        number = len(contents) - 1
        if tag != "y":
            contents[number] = _flat_all(body, contents) if tag != "d" else _flat_pairs(body, contents)
        return {"@": number}
    return {tag: _flat_all(body, contents)} if tag in "tzkrF" else data


def _pack_contents(value: Any, heap: Heap) -> Any:
    """Pack what an object of a heap holds; of which type it is, the other end knows."""
    if isinstance(value, bytearray):
        return bytearray.hex(value)
    if isinstance(value, dict):
        return _pack_dict(value, 1, heap)["d"]
    items = next(kind for kind in (list, set, deque) if isinstance(value, kind)).__iter__(value)
    return _pack_all(items, 1, heap)


def _unpack_contents(old: Any, body: Any, seen: _Seen) -> Any:
    if isinstance(old, bytearray):
        return bytearray.fromhex(body)
    if isinstance(old, dict):
        return _unpack_dict(body, 1, seen, numbered=False)
    items = _unpack_all(body, 1, seen)
    return _filled(set(), items, seen) if isinstance(old, set) else items


def _refill(old: Any, new: Any) -> None:
    """Change an object in place, by the methods of its built-in base."""
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, dict):
        base = OrderedDict if isinstance(old, OrderedDict) else dict  # it keeps its order beside the table of its base
        base.clear(old)
        base.update(old, new)
    elif isinstance(old, set):
        set.clear(old)
        set.update(old, new)
    else:
        deque.clear(old)
        deque.extend(old, new)
