"""Stop strings, found while tokens arrive."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import islice
from typing import Any


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text of the tokens as sampled: no special tokens, no tidying of spaces."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def special_tokens(tokenizer: Any) -> set[int]:
    """Ids of the tokens that leave no text."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(token for token, added_token in added if added_token.special)}


class StopStrings:
    """The stop strings of one row. Each step decodes only the last tokens that can matter."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        # A token that is not special carries at least one byte, and a window's first character may be torn over four.
        self.window = max((len(stop.encode()) for stop in self.stops), default=0) + 4

    @functools.cached_property
    def special(self) -> set[int]:
        """See `special_tokens`."""
        return special_tokens(self.tokenizer)

    def hit(self, tokens: Sequence[int]) -> bool:
        """True if the newest token completed a stop string."""
        if not self.stops:
            return False
        shown = (token for token in reversed(tokens) if token not in self.special)
        tail = decode(self.tokenizer, list(islice(shown, self.window))[::-1])
        return any(stop in tail for stop in self.stops)

    def cut(self, text: str) -> str:
        """The text before the earliest stop string."""
        ends = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        return text[: min(ends)] if ends else text
