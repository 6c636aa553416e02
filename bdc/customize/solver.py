"""`Solver`: a base model that customises itself to every request (arXiv 2502.12492)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bdc.customize.customizer import Weights
from bdc.customize.merging import Merge, merged
from bdc.customize.mixture import Mixture
from bdc.customize.stacks import stack_adapters, write_adapter
from bdc.customize.storage import SolverParts, foreign_file
from bdc.disentangle.examples import collate, encode, parts
from bdc.disentangle.loss import example_nll
from bdc.errors import InputError
from bdc.llm.base import Message
from bdc.llm.chat import encode_chat
from bdc.llm.packing import pack, using_packed

if TYPE_CHECKING:
    from bdc.llm.generate import Generation, Stop

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

    Threads may share a solver: it answers one call at a time.

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
        self.parts, self.model, self.tokenizer = parts, model, tokenizer
        self.customizer = parts.customizer(encoder)
        # Rank weights in force, merged weights and the packed ones are the whole model's.
        self._lock = threading.RLock()
        self._mixture = Mixture(model, parts.stack, self.customizer.scaling, int8=int8_experts)
        pack(model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        base_model: str | Path | None = None,
        encoder: str | Path | None = None,
        int8_experts: bool = False,
    ) -> Solver:
        """Load a solver's folder, its base model and its encoder.

        Args:
            base_model, encoder: where these models are, if not where the folder says.
            int8_experts: serve experts rounded to 8 bits.

        Raises:
            InputError: the folder is no solver's, was changed, or does not fit the base model.
            ModelNotFoundError: the base model or the encoder is nowhere.
            MissingExtraError: a package of the extra `run` is not installed.
        """
        from bdc.llm import SentenceEncoder, load_model

        loaded = SolverParts.load(Path(path))
        if base_model is not None:
            loaded = replace(loaded, base_model=str(base_model))
        if encoder is not None:
            loaded = replace(loaded, encoder=str(encoder))
        reader = SentenceEncoder(loaded.encoder) if loaded.encoder is not None else None
        model, tokenizer = load_model(loaded.base_model, dtype)
        try:
            return cls(model, tokenizer, loaded, encoder=reader, int8_experts=int8_experts)
        except InputError as error:
            raise InputError(f"{path} does not fit the base model {loaded.base_model}: {error}") from error

    @classmethod
    def from_adapters(cls, folders: Sequence[str | Path], base_model: str | Path, *, dtype: str = "auto") -> Solver:
        """A solver with fixed weights from PEFT LoRA adapters; with one adapter it *is* that adapter.

        This is how a single LoRA goes through the same code as the experts. Its default weights are "uniform".

        Raises:
            InputError: no adapters, one that is no plain LoRA, or adapters that differ in shape or do not fit the model.
            ModelNotFoundError: the base model is nowhere.
            MissingExtraError: a package of the extra `run` is not installed.
        """
        from bdc.llm import load_model

        stack = stack_adapters([Path(folder) for folder in _listed("adapters", folders)])
        model, tokenizer = load_model(base_model, dtype)
        return cls(model, tokenizer, SolverParts(str(base_model), stack))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads, in the place of a solver's or an empty one.

        Raises:
            InputError: it cannot be written, or something else is there.
            MissingExtraError: safetensors is not installed.
        """
        folder = Path(path).resolve()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder")
        if folder.exists() and (foreign := foreign_file(folder)) is not None:
            raise InputError(f"{folder} holds {foreign}, which is no part of a solver; name another folder")
        self.parts.save(folder)

    def rank_weights(self, prompts: Sequence[Prompt], *, weights: Sequence[Weights] | Weights | None = None) -> Tensor:
        """Each request's weight per adapted layer, expert and rank, float32 [N, L, K, r].

        Args:
            prompts: N of them; best the bare statements, since of a conversation the last user message is read.
            weights: as for :meth:`generate`.

        Raises:
            InputError: something else where a list or a prompt belongs, unknown weights, or weights that need an encoder
                where there is none.
        """
        statements = [_statement(prompt) for prompt in _listed("prompts", prompts)]
        with self._lock:
            return self.customizer.rank_weights(statements, weights)

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
        stop: Stop = None,
        progress: Any = None,
    ) -> list[Generation]:
        """Answer all prompts in one batch, each under its own rank weights.

        Args:
            statements: the bare problem statements, one per prompt.
            weights: "hypernetwork" (default), an ablation's name, "uniform", "nearest", "none" or an expert's index; one
                for all or one per prompt, as the next three are.
            max_new_tokens: most tokens to sample, at least 1; with its prompt they must fit the model's context.
            temperature: 0 is greedy, 1 the model's own distribution.
            top_p: in (0, 1]; sampling is from the smallest set of tokens that has this probability.
            seeds: whole numbers, one per prompt (default: 0, 1, ...); the same batch with the same seeds gives the same
                answers.
            stop: strings before which an answer ends: one or a list for all prompts, or a list of such lists.
            progress: called as ``progress(tokens sampled, answers finished)`` after every step; what it raises ends the
                call.

        Returns:
            One `Generation` per prompt, in order: ``text``, ``tokens`` and ``finish_reason`` ("stop" or "length").

        Raises:
            InputError: lists of different lengths, something else where a list or a prompt belongs, unknown weights, or
                what the generator refuses.
        """
        from bdc.llm.generate import generate

        with self._lock:
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
        """Loss of each response after its prompt; arguments as for :meth:`generate`.

        Raises:
            InputError: as :meth:`generate` does; also an empty prompt, or one that the context does not hold with its
                response (see :meth:`fits`).
        """
        from bdc.llm.generate import context_length

        _texts("responses", responses, len(_listed("prompts", prompts)))
        examples = [
            encode(self.tokenizer, _messages(prompt), response, source=i)
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        context = context_length(self.model)
        for i, example in enumerate(examples):
            if context is not None and len(example) > context:
                raise InputError(
                    f"prompt {i} and its response have {len(example)} tokens, but the model's context is {context}"
                )
        out = [ResponseLoss(0.0, len(example.response)) for example in examples]
        with self._lock, using_packed(self.model):
            table, rows = self._rows(prompts, statements, weights)
            for part in parts(examples, _LOSS_TOKENS):
                batch = collate(part, self.tokenizer.pad_token_id, self.model.device)
                sources = batch.sources.cpu()
                with self._mixture.weighted(table, rows[sources].repeat_interleave(batch.ids.shape[1])):
                    sums = example_nll(self.model, batch)
                for i, nll in zip(sources.tolist(), sums.tolist(), strict=True):
                    out[i] = ResponseLoss(nll, out[i].tokens)
        return out

    @contextlib.contextmanager
    def merged(self, method: Merge, *, density: float = 0.3, seed: int = 0) -> Iterator[None]:
        """Inside, the base model's weights have all experts merged in; use it with weights "none", to compare.

        Other threads' calls wait until it ends.

        Args:
            method: "ties" or "dare".
            density: the share of each expert's change that is kept, in (0, 1].

        Raises:
            InputError: an unknown method or a density outside its range.
        """
        with self._lock, merged(self._mixture.linears, self.parts.stack, method, density=density, seed=seed):
            yield

    def to_peft(
        self, prompt: Prompt, folder: str | Path, *, statement: str | None = None, weights: Weights | None = None
    ) -> Path:
        """Write the solver of one request as a plain PEFT LoRA of rank K*r: the rank weights are folded into A.

        Anything that loads LoRA adapters then serves this one request's solver, without bdc.

        Args:
            folder: made if need be; an adapter in it is replaced.
            statement: the bare problem statement (default: the prompt's last user message).
            weights: as for :meth:`generate`, one.

        Returns:
            The folder.

        Raises:
            InputError: the folder cannot be written, something else where a prompt or a statement belongs, unknown weights,
                or weights that need an encoder where there is none.
            MissingExtraError: peft or safetensors is not installed.
        """
        choice = None if weights is None else [weights]
        text = _statement(prompt) if statement is None else _texts("statement", [statement], 1)[0]
        with self._lock:
            given = self.customizer.rank_weights([text], choice)[0]
        stack = self.parts.stack
        scaling = self.customizer.scaling
        write_adapter(
            Path(folder), stack.folded(given), stack.lora_b, scaling, stack.target_modules, self.parts.base_model
        )
        return Path(folder)

    def _rows(
        self, prompts: Sequence[Prompt], statements: Sequence[str] | None, weights: Sequence[Weights] | Weights | None
    ) -> tuple[Tensor, Tensor]:
        """Distinct rank weights [M, L, K, r], and each request's row of them (-1: none)."""
        _listed("prompts", prompts)
        if statements is None:
            texts = [_statement(prompt) for prompt in prompts]
        else:
            texts = _texts("statements", statements, len(prompts))
        wanted = self.customizer.check(len(prompts), weights)
        place: dict[tuple[str, Weights], int] = {}
        rows = []
        for text, choice in zip(texts, wanted, strict=True):
            by_text = isinstance(choice, str) and choice != "uniform"
            rows.append(-1 if choice == "none" else place.setdefault((text if by_text else "", choice), len(place)))
        table = self.customizer.rank_weights([text for text, _ in place], [choice for _, choice in place])
        return table, torch.tensor(rows, dtype=torch.long)


def _listed(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, (str, Path, Mapping)) or not hasattr(values, "__len__"):
        raise InputError(f"{name} must be a list with one for each, not a single {type(values).__name__}")
    return values


def _texts(name: str, values: Sequence[Any], n: int) -> list[str]:
    if len(_listed(name, values)) != n:
        raise InputError(f"{len(values)} {name} for {n} prompts; give one per prompt")
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"{name} must be text, not {value!r:.100}")
    return list(values)


def _messages(prompt: Prompt) -> Sequence[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not all(isinstance(message, Mapping) for message in prompt):
        raise InputError(
            f"a prompt must be a string or a list of messages, not {prompt!r:.100}; prompts are a list of those"
        )
    for message in prompt:
        if not all(isinstance(message.get(part), str) for part in ("role", "content")):  # type: ignore[union-attr]
            raise InputError(f"a message must have a role and a content, both text, unlike {message!r:.100}")
    return prompt  # type: ignore[return-value]


def _statement(prompt: Prompt) -> str:
    users = [message["content"] for message in _messages(prompt) if message["role"] == "user"]
    if not users:
        raise InputError("a prompt has no user message to take the statement from; pass statements")
    return users[-1]
