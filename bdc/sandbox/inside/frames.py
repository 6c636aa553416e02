"""Length-prefixed JSON frames over a stream socket, both ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

MAX_FRAME = 4 << 20  # from a program: the judge decodes it
MAX_ORDER = 256 << 20  # from the judge or a referee
_HEADER = 4
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
# Each function and object that a fresh child touches costs it a page: straight to the parts in C, where there are any.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _pieces(make: Any) -> Callable[[Any, int], Iterable[str]]:
    if make is None:
        return lambda message, _: _ENCODER.iterencode(message)
    text = json.encoder.encode_basestring_ascii
    return make(None, _ENCODER.default, text, None, ":", ",", False, False, False)  # type: ignore[no-any-return]


_encode = _pieces(json.encoder.c_make_encoder)  # type: ignore[attr-defined]


class ProtocolError(Exception):
    """The other end broke the protocol: no frame, an oversized frame, or a frame without the nonce."""


def text(message: Any) -> str:
    """Return a message as JSON."""
    return "".join(_encode(message, 0))


def dump(message: Any, nonce: bytes = b"", limit: int = MAX_FRAME) -> bytes:
    """Return one frame: length, nonce, JSON; ProtocolError when it is longer than ``limit``."""
    body = nonce + text(message).encode("ascii")
    if len(body) > limit:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {limit}")
    return len(body).to_bytes(_HEADER, "big") + body


def load(body: bytes, nonce: bytes = b"") -> Any:
    """Return the message of a frame's body; refuse a body that does not begin with the nonce."""
    if not body.startswith(nonce):
        raise ProtocolError("a frame does not carry the nonce")
    try:
        message, end = _scan(body[len(nonce) :].decode("ascii"), 0)
    except (ValueError, RecursionError, StopIteration) as error:
        raise ProtocolError("a frame is not JSON") from error
    if end != len(body) - len(nonce):
        raise ProtocolError("a frame holds more than one message")
    return message


class Blocking:
    """Frames over a blocking descriptor: the end that runs inside."""

    def __init__(self, fd: int, nonce: bytes = b"") -> None:
        self.fd, self.nonce = fd, nonce

    def send(self, message: Any, limit: int = MAX_FRAME) -> None:
        """Write one frame, or raise BrokenPipeError when the other end is gone."""
        data = dump(message, self.nonce, limit)
        while (written := os.write(self.fd, data)) < len(data):
            data = data[written:]

    def receive(self, nonce: bytes = b"", limit: int = MAX_ORDER) -> Any:
        """Read one frame; EOFError when the other end is gone."""
        size = int.from_bytes(self._exactly(_HEADER), "big")
        if size > limit:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {limit}")
        return load(self._exactly(size), nonce)

    def _exactly(self, size: int) -> bytes:
        data = os.read(self.fd, size)
        if len(data) == size:
            return data
        parts, missing = [data], size - len(data)
        while missing:
            if not parts[-1]:
                raise EOFError
            parts.append(os.read(self.fd, missing))
            missing -= len(parts[-1])
        return b"".join(parts)


class Buffer:
    """Frames from bytes as they come: the end that must never block on a hostile writer."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what was read."""
        self._data += data

    def next(self) -> bytes | None:
        """Return the body of the next whole frame, or None."""
        if len(self._data) < _HEADER:
            return None
        size = int.from_bytes(self._data[:_HEADER], "big")
        if size > MAX_FRAME:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {MAX_FRAME}")
        if len(self._data) < _HEADER + size:
            return None
        body = bytes(self._data[_HEADER : _HEADER + size])
        del self._data[: _HEADER + size]
        return body
