"""Where an answer ends: what the chat template puts behind it, whatever the end-of-text token is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bdc.llm.chat import end_of_turn

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>BODY{% endfor %}"
TEMPLATES = {
    "directly": (TURNS.replace("BODY", "{{ m['content'] }}<|end|>"), "<|end|>"),
    "stripped, after a newline": (TURNS.replace("BODY", "{{ m['content'] | trim }}\n<|end|>\n"), "<|end|>"),
    "before the end of text": (TURNS.replace("BODY", "{{ m['content'] }}<|end|>\n") + "{{ eos_token }}", "<|end|>"),
    "by the end of text": (TURNS.replace("BODY", "{{ m['content'] }}{{ eos_token }}"), "<|system|>"),
    "by nothing": (TURNS.replace("BODY", "{{ m['content'] }}\n"), "<|system|>"),
    "no answers": ("{% if messages[1:] %}{{ raise_exception('one message') }}{% endif %}<|end|>", "<|system|>"),
    "no contents": ("<|user|>", "<|system|>"),
    "no template": (None, "<|system|>"),
}


@pytest.mark.parametrize(("template", "end"), TEMPLATES.values(), ids=list(TEMPLATES))
def test_the_template_says_what_ends_an_answer(template: str | None, end: str, tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.eos_token, tokenizer.chat_template = "<|system|>", template
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.models
def test_smollm2_ends_with_its_end_of_text_token(smollm2: tuple[Any, Any]) -> None:
    assert end_of_turn(smollm2[1]) == smollm2[1].eos_token_id
