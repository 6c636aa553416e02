"""From a request's statement to what it takes along to vLLM: the solver without its experts and its base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdc.customize.customizer import Customizer, Weights
from bdc.customize.storage import SolverParts
from bdc.serving.wire import KEY, cache_salt, encode


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request's rank weights on their way.

    Attributes:
        extra_args: for ``vllm.SamplingParams``; empty for a request that is not customised.
        cache_salt: for vLLM's prompt (or for the field of that name of an OpenAI request): what is cached of a prompt
            depends on the rank weights, so that only requests with the same ones may share it. Empty likewise.
    """

    extra_args: dict[str, Any]
    cache_salt: str


class Gate:
    """Gives requests their rank weights.

    Attributes:
        customizer: statements -> rank weights.
    """

    def __init__(self, customizer: Customizer) -> None:
        self.customizer = customizer

    @classmethod
    def from_pretrained(cls, path: str | Path, *, encoder: str | Path | None = None) -> Gate:
        """Load the hypernetwork and the encoder of a solver's folder.

        Args:
            encoder: where the encoder is, if not where the folder says.

        Raises:
            InputError: the folder is no solver's, or was changed.
            ModelNotFoundError: the encoder is nowhere.
            MissingExtraError: a package of the extra `run` is not installed.
        """
        from bdc.llm import SentenceEncoder

        parts = SolverParts.load(Path(path))
        name = parts.encoder if encoder is None else encoder
        return cls(parts.customizer(None if name is None else SentenceEncoder(name)))

    def tickets(
        self, statements: Sequence[str], weights: Sequence[Weights] | Weights | None = None, salts: Sequence[str] = ()
    ) -> list[Ticket]:
        """One ticket per statement.

        Args:
            weights: as for :meth:`bdc.Solver.generate`.
            salts: one per statement, cache salts that the requests have already.

        Raises:
            InputError: unknown weights, or weights that need an encoder where there is none.
        """
        wanted = self.customizer.check(len(statements), weights)
        texts = [encode(own) for own in self.customizer.rank_weights(statements, wanted)]
        return [
            Ticket({}, "") if choice == "none" else Ticket({KEY: text}, cache_salt(text, salt))
            for choice, text, salt in zip(wanted, texts, salts or [""] * len(texts), strict=True)
        ]
