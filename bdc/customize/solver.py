"""`Solver`: a base model that customises itself to every request (arXiv 2502.12492)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bdc.customize.customizer import Customizer, Weights
from bdc.customize.merging import Merge, merged
from bdc.customize.mixture import Mixture
from bdc.customize.stacks import stack_adapters, write_adapter
from bdc.customize.storage import SolverParts
from bdc.disentangle.examples import collate, encode, parts
from bdc.disentangle.loss import example_nll
from bdc.errors import InputError
from bdc.llm.base import Message
from bdc.llm.chat import encode_chat
from bdc.llm.packing import pack

if TYPE_CHECKING:
    from bdc.llm.generate import Generation

Prompt = str | Sequence[Message]

_LOSS_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ResponseLoss:
    """Negative log-likelihood of one response in nats, over its ``tokens`` (the end of turn included)."""

    nll: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.nll / self.tokens


class Solver:
    """A base model, K experts, and the hypernetwork that weighs them for each request of a batch.

    Prompts are chat messages, or strings that become one user message. What decides the weights is the bare problem
    statement that the hypernetwork was trained on: pass ``statements`` where a prompt holds more than that; without
    them the last user message counts as the statement.

    Attributes:
        model, tokenizer: the base model with the experts in it; called directly, it computes what the base model does.
        customizer: statements -> rank weights.
        parts: what :meth:`save_pretrained` stores.

    Args:
        int8_experts: serve experts rounded to 8 bits (:func:`bdc.ops.quantize_experts`); what is stored is not rounded.
    """

    def __init__(
        self, model: Any, tokenizer: Any, parts: SolverParts, *, encoder: Any = None, int8_experts: bool = False
    ) -> None:
        stack = parts.stack
        self.parts, self.model, self.tokenizer = parts, model, tokenizer
        self.customizer = Customizer(
            len(stack.modules),
            stack.k,
            stack.rank,
            stack.scaling,
            networks=parts.networks,
            centroids=parts.centroids,
            encoder=encoder,
        )
        self._mixture = Mixture(model, stack, self.customizer.scaling, int8=int8_experts)
        pack(model)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        base_model: str | Path | None = None,
        int8_experts: bool = False,
    ) -> Solver:
        """Load a solver's folder, its base model and its encoder.

        Args:
            base_model: where the base model is, if not where the folder says.
            int8_experts: serve experts rounded to 8 bits.

        Raises:
            InputError: the folder is no solver's, was changed, or does not fit the base model.
            ModelNotFoundError: the base model or the encoder is nowhere.
        """
        from bdc.llm import SentenceEncoder, load_model

        loaded = SolverParts.load(Path(path))
        encoder = SentenceEncoder(loaded.encoder) if loaded.encoder is not None else None
        model, tokenizer = load_model(base_model or loaded.base_model, dtype)
        return cls(model, tokenizer, loaded, encoder=encoder, int8_experts=int8_experts)

    @classmethod
    def from_adapters(cls, folders: Sequence[str | Path], base_model: str | Path, *, dtype: str = "auto") -> Solver:
        """A solver with fixed weights from PEFT LoRA adapters; with one adapter it *is* that adapter.

        This is how a single LoRA goes through the same code as the experts. Its default weights are "uniform".
        """
        from bdc.llm import load_model

        stack = stack_adapters([Path(folder) for folder in folders])
        model, tokenizer = load_model(base_model, dtype)
        return cls(model, tokenizer, SolverParts(str(base_model), stack))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.parts.save(Path(path))

    def rank_weights(self, prompts: Sequence[Prompt], *, weights: Sequence[Weights] | Weights | None = None) -> Tensor:
        """Each request's weight per adapted layer, expert and rank, float32 [N, L, K, r]; best of bare statements."""
        return self.customizer.rank_weights([_statement(prompt) for prompt in prompts], weights)

    def fits(self, prompt: Prompt, answer: str | int) -> bool:
        """Whether the model's context holds a prompt with its answer: a text, or so many tokens."""
        from bdc.llm.generate import context_length

        if isinstance(answer, str):
            tokens = len(encode(self.tokenizer, _messages(prompt), answer))
        else:
            tokens = len(encode_chat(self.tokenizer, _messages(prompt))) + answer
        return tokens <= (context_length(self.model) or tokens)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        statements: Sequence[str] | None = None,
        weights: Sequence[Weights] | Weights | None = None,
        max_new_tokens: Sequence[int] | int = 256,
        temperature: Sequence[float] | float = 0.0,
        top_p: Sequence[float] | float = 0.95,
        seeds: Sequence[int] | None = None,
        stop: Sequence[Sequence[str]] | None = None,
        progress: Any = None,
    ) -> list[Generation]:
        """Answer all prompts in one batch, each under its own rank weights.

        Args:
            statements: the bare problem statements, one per prompt.
            weights: "hypernetwork" (default), an ablation's name, "uniform", "nearest", "none" or an expert's index;
            one for all or one per prompt. max_new_tokens, temperature, top_p, seeds, stop, progress: as
            `bdc.llm.generate` takes them; seeds default to 0, 1, ...

        Raises:
            InputError: lists of different lengths, unknown weights, or what the generator refuses.
        """
        from bdc.llm.generate import generate

        table, rows = self._rows(prompts, statements, weights)
        weighted = self._mixture.weighing(table)

        def around(active: Tensor, tokens: int) -> AbstractContextManager[Any]:
            return weighted(rows[active.cpu()].repeat_interleave(tokens))

        return generate(
            self.model,
            self.tokenizer,
            [encode_chat(self.tokenizer, _messages(prompt)) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=range(len(prompts)) if seeds is None else seeds,
            stop=stop,
            forward_context=around,
            progress=progress,
        )

    @torch.no_grad()
    def loss(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        statements: Sequence[str] | None = None,
        weights: Sequence[Weights] | Weights | None = None,
    ) -> list[ResponseLoss]:
        """Loss of each response after its prompt; arguments as for :meth:`generate`."""
        if len(responses) != len(prompts):
            raise InputError(f"{len(responses)} responses for {len(prompts)} prompts; give one per prompt")
        table, rows = self._rows(prompts, statements, weights)
        examples = [
            encode(self.tokenizer, _messages(prompt), response, source=i)
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        out = [ResponseLoss(0.0, len(example.response)) for example in examples]
        for part in parts(examples, _LOSS_TOKENS):
            batch = collate(part, self.tokenizer.pad_token_id, self.model.device)
            sources = batch.sources.cpu()
            with self._mixture.weighted(table, rows[sources].repeat_interleave(batch.ids.shape[1])):
                sums = example_nll(self.model, batch)
            for i, nll in zip(sources.tolist(), sums.tolist(), strict=True):
                out[i] = ResponseLoss(nll, out[i].tokens)
        return out

    def merged(self, method: Merge, *, density: float = 0.3, seed: int = 0) -> AbstractContextManager[None]:
        """Inside, the base model's weights have all experts merged in; use it with weights "none", to compare.

        Args:
            method: "ties" or "dare".
            density: the share of each expert's change that is kept.
        """
        return merged(self._mixture.linears, self.parts.stack, method, density=density, seed=seed)

    def to_peft(
        self, prompt: Prompt, folder: str | Path, *, statement: str | None = None, weights: Weights | None = None
    ) -> Path:
        """Write the solver of one request as a plain PEFT LoRA of rank K*r: the rank weights are folded into A.

        Anything that loads LoRA adapters then serves this one request's solver, without bdc.
        """
        choice = None if weights is None else [weights]
        given = self.customizer.rank_weights([statement if statement is not None else _statement(prompt)], choice)[0]
        stack = self.parts.stack
        folded = {
            module: gate.flatten().unsqueeze(1) * stack.lora_a[module]
            for module, gate in zip(stack.modules, given, strict=True)
        }
        scaling = self.customizer.scaling
        write_adapter(Path(folder), folded, stack.lora_b, scaling, stack.target_modules, self.parts.base_model)
        return Path(folder)

    def _rows(
        self, prompts: Sequence[Prompt], statements: Sequence[str] | None, weights: Sequence[Weights] | Weights | None
    ) -> tuple[Tensor, Tensor]:
        """Distinct rank weights [M, L, K, r], and each request's row of them (-1: none)."""
        if statements is not None and len(statements) != len(prompts):
            raise InputError(f"{len(statements)} statements for {len(prompts)} prompts; give one per prompt")
        texts = list(statements) if statements is not None else [_statement(prompt) for prompt in prompts]
        wanted = self.customizer.check(len(prompts), weights)
        place: dict[tuple[str, Weights], int] = {}
        rows = []
        for text, choice in zip(texts, wanted, strict=True):
            by_text = isinstance(choice, str) and choice != "uniform"
            rows.append(-1 if choice == "none" else place.setdefault((text if by_text else "", choice), len(place)))
        table = self.customizer.rank_weights([text for text, _ in place], [choice for _, choice in place])
        return table, torch.tensor(rows, dtype=torch.long)


def _messages(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _statement(prompt: Prompt) -> str:
    users = [message["content"] for message in _messages(prompt) if message["role"] == "user"]
    if not users:
        raise InputError("a prompt has no user message to take the statement from; pass statements")
    return users[-1]
