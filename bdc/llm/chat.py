"""Chat messages to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bdc.errors import InputError
from bdc.llm.base import Message
from bdc.llm.stopping import special_tokens

_ANSWER = "bdc answers"  # text that a template neither strips nor has of its own


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation, ready for the assistant's turn.

    A final assistant message is continued. A tokenizer without a chat template (a base model) gets the contents,
    separated by blank lines; its prompt must not end in a newline, since such models then often answer nothing.

    Raises:
        InputError: no messages, a chat template that does not take them, or text that no tokenizer takes.
    """
    if not messages:
        raise InputError("A request has no messages; it needs at least one.")
    import jinja2

    try:
        if not tokenizer.chat_template:
            return list(tokenizer.encode("\n\n".join(message["content"] for message in messages).rstrip("\n")))
        resume = messages[-1]["role"] == "assistant"
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not resume, continue_final_message=resume
        )
        return list(tokenizer.encode(text, add_special_tokens=False))
    except jinja2.TemplateError as error:
        raise InputError(f"The chat template of {tokenizer.name_or_path} does not work: {error}") from error
    except (ValueError, TypeError, KeyError) as error:  # of the template's code and of the tokenizer
        raise InputError(f"{tokenizer.name_or_path} cannot encode a conversation: {error!r:.300}") from error


def end_of_turn(tokenizer: Any) -> int | None:
    """Id of the token that ends an answer, None without one.

    It is the first special token that the chat template puts after an assistant message's content; without a template
    or such a token, the end-of-text token.
    """
    import jinja2

    end: int | None = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return end
    messages = [{"role": "user", "content": "bdc asks"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError):  # a template that takes no answers
        return end
    _, found, behind = text.rpartition(_ANSWER)
    special = special_tokens(tokenizer)
    tokens = tokenizer.encode(behind, add_special_tokens=False) if found else []
    return next((token for token in tokens if token in special), end)
