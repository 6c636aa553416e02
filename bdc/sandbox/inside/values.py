"""Plain Python values as JSON with types: what may travel between a program and its judge.

Only data crosses: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range,
deque, Decimal, Fraction, and these types by name. A value of a subclass travels as its built-in base (a Counter as a dict, a namedtuple as a
tuple), so no method that a program wrote ever runs on the judge's side.

Alone, a value travels as a tree. With a `Heap` at both ends its lists, dicts and the like keep their identity: the same object stays the same one
for the length of a call, and what the call does to it is repeated at the other end.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

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
    """Return a JSON-ready form of ``value``; with ``heap`` what can change in place is put there and referred to.

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
        return heap.refer(value)
    if kind is list:
        return [pack(item, depth + 1) for item in value]
    for base, packer in _PACKERS:
        if kind is base or isinstance(value, base):
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


def _many(tag: str, items: Iterable[Any], depth: int, heap: Heap | None) -> Any:
    return {tag: [pack(item, depth, heap) for item in items]}


def _pack_dict(value: dict[Any, Any], depth: int, heap: Heap | None) -> Any:
    return {"d": [[pack(key, depth, heap), pack(item, depth, heap)] for key, item in dict.items(value)]}


_PACKERS: tuple[tuple[type, Callable[[Any, int, Heap | None], Any]], ...] = (
    (tuple, lambda v, d, h: _many("t", tuple.__iter__(v), d, h)),
    (dict, _pack_dict),
    (list, lambda v, d, h: [pack(item, d, h) for item in list.__iter__(v)]),
    (set, lambda v, d, h: _many("s", set.__iter__(v), d, h)),
    (frozenset, lambda v, d, h: _many("z", frozenset.__iter__(v), d, h)),
    (str, lambda v, d, h: _pack_str(str.__str__(v))),
    (int, lambda v, d, h: pack(int.__index__(v))),
    (float, lambda v, d, h: pack(float.__float__(v))),
    (complex, lambda v, d, h: {"c": [repr(v.real), repr(v.imag)]}),
    (bytes, lambda v, d, h: {"b": bytes.hex(v)}),
    (bytearray, lambda v, d, h: {"y": bytearray.hex(v)}),
    (range, lambda v, d, h: _many("r", (v.start, v.stop, v.step), d, h)),
    (deque, lambda v, d, h: _many("q", deque.__iter__(v), d, h)),
    (type({}.keys()), lambda v, d, h: _many("s", v, d, h)),
    (Decimal, lambda v, d, h: {"D": Decimal.__str__(v)}),
    (Fraction, lambda v, d, h: _many("F", (v.numerator, v.denominator), d, h)),
)


class _Seen:
    """What a value holds so far. Comparing a Decimal with a long int takes quadratic time: no value may hold both."""

    decimal = long_int = False

    def __init__(self, heap: Heap | None, trusted: bool) -> None:
        self.heap, self.trusted = heap, trusted

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
        return [_unpack(item, depth + 1, seen) for item in data]
    if type(data) is not dict:
        if type(data) is int and not -_SMALL < data < _SMALL:
            raise NotPlainError("a long int that is not marked as one")
        return data
    try:
        ((tag, body),) = data.items()
        return _UNPACKERS[tag](body, depth + 1, seen)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NotPlainError("a value that cannot be read back") from error


def _items(body: Any, depth: int, seen: _Seen) -> list[Any]:
    if type(body) is not list:
        raise NotPlainError("a value that cannot be read back")
    return [_unpack(item, depth, seen) for item in body]


def _filled(collection: Any, items: list[Any]) -> Any:
    """Put elements into a set or dict, unless they are chosen to collide, which would take quadratic time."""
    started = time.thread_time() if len(items) > _AT_ONCE else 0.0
    for start in range(0, len(items), _AT_ONCE):
        collection.update(items[start : start + _AT_ONCE])
        if start and time.thread_time() - started > _FILL_SECONDS:
            raise NotPlainError("a set or dict whose elements collide")
    return collection


def _unpack_frozenset(body: Any, depth: int, seen: _Seen) -> frozenset[Any]:
    items = _items(body, depth, seen)
    _filled(set(), items)
    return frozenset(items)


def _unpack_dict(body: Any, depth: int, seen: _Seen) -> dict[Any, Any]:
    pairs = [(_unpack(key, depth, seen), _unpack(item, depth, seen)) for key, item in body]
    return _filled({}, pairs)  # type: ignore[no-any-return]


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
    numerator, denominator = _items(body, depth, seen)
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
    "t": lambda b, d, s: tuple(_items(b, d, s)),
    "d": _unpack_dict,
    "s": lambda b, d, s: _filled(set(), _items(b, d, s)),
    "z": _unpack_frozenset,
    "n": lambda b, d, s: _NAMED[b],
    "c": lambda b, d, s: complex(float(b[0]), float(b[1])),
    "b": lambda b, d, s: bytes.fromhex(b),
    "u": lambda b, d, s: bytes.fromhex(b).decode("utf-8", "surrogatepass"),
    "y": lambda b, d, s: bytearray.fromhex(b),
    "r": lambda b, d, s: range(*_items(b, d, s)),
    "q": lambda b, d, s: deque(_items(b, d, s)),
    "D": _unpack_decimal,
    "F": _unpack_fraction,
    "@": _referred,
}


class Heap:
    """The objects of one call that can change in place, under the same numbers at both ends.

    Each end sends the `changes` since the last ones and applies the other's.
    """

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by identity
        self._contents: list[Any] = []  # as last sent or received

    def refer(self, value: Any) -> Any:
        """Return the packed form of an object that can change, its number."""
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return {"@": number}

    def object(self, number: Any) -> Any:
        """Return the object of a number. Raises NotPlainError."""
        if type(number) is not int or not 0 <= number < len(self._objects):
            raise NotPlainError("an object that there is not")
        return self._objects[number]

    def changes(self) -> list[Any]:
        """Return number and packed contents of each object that is new or changed; NotPlainError as `pack`."""
        found: list[Any] = []
        for number, value in enumerate(self._objects):  # which grows by what the contents refer to
            packer = next(packer for base, packer in _PACKERS if isinstance(value, base))
            content = packer(value, 1, self)
            if number == len(self._contents):
                self._contents.append(None)
            if content != self._contents[number]:
                self._contents[number] = content
                found.append([number, content])
        return found

    def apply(self, changes: Any, trusted: bool = False) -> None:
        """Make the objects what the other end's `changes` say; unless ``trusted``, these may be hostile.

        Raises:
            NotPlainError: the data is not what `changes` makes; no object has changed then.
        """
        if type(changes) is not list or not all(type(change) is list and len(change) == 2 for change in changes):
            raise NotPlainError("changes that cannot be read back")
        for number, content in changes:
            if number == len(self._objects):
                self.refer(_empty(content))
                self._contents.append(None)
        new = [(self.object(number), unpack(content, self, trusted)) for number, content in changes]
        if not all(any(isinstance(item, kind) for kind in _MUTABLE if isinstance(old, kind)) for old, item in new):
            raise NotPlainError("an object of another type")
        for (number, content), (old, item) in zip(changes, new, strict=True):
            self._contents[number] = content
            _refill(old, item)


def _empty(content: Any) -> Any:
    """Return an empty object of the type of packed contents."""
    if type(content) is list:
        return []
    kinds: dict[str, Callable[[], Any]] = {"d": dict, "s": set, "q": deque, "y": bytearray}
    for tag in content if type(content) is dict and len(content) == 1 else ():
        if tag in kinds:
            return kinds[tag]()
    raise NotPlainError("an object of a type that cannot change")


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
