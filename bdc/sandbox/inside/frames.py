"""Length-prefixed JSON frames over a stream socket, both ends."""

from __future__ import annotations

import json
import os
from typing import Any

MAX_FRAME = 4 << 20  # from a program: the judge decodes it
MAX_ORDER = 256 << 20  # from the judge
_HEADER = 4
# Made once: each object that a fresh child touches costs it a page.
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().raw_decode


class ProtocolError(Exception):
    """The other end broke the protocol: no frame, an oversized frame, or a frame without the nonce."""


def dump(message: Any, nonce: bytes = b"", limit: int = MAX_FRAME) -> bytes:
    """Return one frame: length, nonce, JSON; ProtocolError when it is longer than ``limit``."""
    body = nonce + _encode(message).encode("ascii")
    if len(body) > limit:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {limit}")
    return len(body).to_bytes(_HEADER, "big") + body


def load(body: bytes, nonce: bytes = b"") -> Any:
    """Return the message of a frame's body; refuse a body that does not begin with the nonce."""
    if not body.startswith(nonce):
        raise ProtocolError("a frame does not carry the nonce")
    try:
        message, end = _decode(body[len(nonce) :].decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame is not JSON") from error
    if end != len(body) - len(nonce):
        raise ProtocolError("a frame holds more than one message")
    return message


class Blocking:
    """Frames over a blocking descriptor: the end that runs inside."""

    def __init__(self, fd: int, nonce: bytes = b"") -> None:
        self.fd, self.nonce = fd, nonce

    def send(self, message: Any) -> None:
        """Write one frame, or raise BrokenPipeError when the other end is gone."""
        view = memoryview(dump(message, self.nonce))
        while view:
            view = view[os.write(self.fd, view) :]

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
