"""Stop strings, token by token."""

from __future__ import annotations

from pathlib import Path

from bdc.llm.base import Request
from bdc.llm.stopping import StopStrings


def test_special_tokens_between_the_bytes_of_a_stop_string_do_not_hide_it(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    special = tokenizer.convert_tokens_to_ids("<|user|>")
    x, a, b = (tokenizer(letter)["input_ids"][0] for letter in "xab")
    stops = StopStrings(tokenizer, ["ab"])
    tokens = [x, a, *[special] * 8]
    assert not stops.hit(tokens) and not stops.hit([*tokens, x]) and not StopStrings(tokenizer, []).hit(tokens)
    assert stops.hit([*tokens, b]) and stops.cut("xab") == "x"


def test_one_stop_string_is_a_list_of_one() -> None:
    assert Request(({"role": "user", "content": "a"},), stop="ab").stop == ("ab",)  # type: ignore[arg-type]
