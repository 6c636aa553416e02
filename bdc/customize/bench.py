"""`bdc bench solver`: what customised decoding costs over the base model, beside PEFT's ways, in one run.

A step decodes one token for every request of a batch, each request under rank weights of its own. Four systems take turns
in an order that chance changes every round: the base model alone; the solver; PEFT with one plain LoRA of the same total rank
for all requests; PEFT's `adapter_names` with an adapter per request, its rank weights merged into A. The peers step once a
round, the base and the solver oftener, since their difference is the smallest. All share one base model, packed as the solver
packs it, its cache and its decoding loop; what they compute is compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import math
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bdc.artefacts import atomic_write, make_way
from bdc.customize.stacks import Stack
from bdc.customize.storage import SolverParts
from bdc.errors import BdcError, InputError, needs_extra
from bdc.llm.loading import DTYPES, auto_dtype, load_model
from bdc.llm.packing import PackedLinear, pack, using_packed
from bdc.llm.registry import resolve
from bdc.ops import reference
from bdc.ops.bench.machine import describe
from bdc.ops.bench.report import as_text
from bdc.ranges import check_ranges, whole_numbers

# What needs transformers or peft is imported where it is used: --help does without.
if TYPE_CHECKING:
    from bdc.customize.solver import Solver
    from bdc.llm.generate import _Batch

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
TURNS = 3  # of the base and the solver in a round
PROMPT = 64  # tokens that each request has read before
BASE, OURS, PLAIN, MIXED, INT8 = "base", "bdc", "peft one", "peft mixed", "bdc int8"
SEMANTICS = {
    BASE: "the model without experts",
    OURS: "the solver, rank weights of its own for each request",
    PLAIN: "one plain LoRA of rank R for all requests, ungated: less work",
    MIXED: "adapter_names, one adapter of rank R per request, its rank weights merged into A beforehand",
    INT8: "the solver with experts of int8",
}
# Of the largest logit, after all layers: above what rounding makes of one model.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
# Of a layer's product, by norm: above what int8 rounds, far below what another request's rank weights give.
LAYER_TOLERANCE = 0.03


def stack_for(model: Any, experts: int, rank: int) -> Stack:
    """Random experts on every linear layer of the model's blocks, of a size that moves the logits and does not drown them."""
    generator = torch.Generator().manual_seed(0)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    lora_a, lora_b = {}, {}
    for name, layer in layers.items():
        ranks = experts * rank
        lora_a[name] = torch.randn(ranks, layer.in_features, generator=generator) * layer.in_features**-0.5
        lora_b[name] = torch.randn(layer.out_features, ranks, generator=generator) * 0.02 * ranks**-0.5
    names = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return Stack(lora_a, lora_b, k=experts, rank=rank, alpha=float(2 * rank), target_modules=names)


def floor_of(stack: Stack, model: Any) -> float:
    """c * R: bytes (and flops) of the experts over those of the layers they adapt."""
    layers = [model.get_submodule(name) for name in stack.modules]
    extra = sum(layer.in_features + layer.out_features for layer in layers) * stack.k * stack.rank
    return float(extra / sum(layer.in_features * layer.out_features for layer in layers))


def share(model: Any) -> Any:
    """A copy of the model's modules on the same weights, packed ones too."""
    kept: list[Any] = [*model.parameters(), *model.buffers()]
    kept += [module.packed for module in model.modules() if isinstance(module, PackedLinear)]
    return copy.deepcopy(model, {id(value): value for value in kept})


class _Mixed:
    """A PEFT model that answers each row of a batch with an adapter of its own, called as its number."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def rows(self, active: Tensor, tokens: int) -> AbstractContextManager[None]:
        """Around a forward of these rows."""
        self.names = [str(row) for row in active.tolist()]
        return contextlib.nullcontext()

    def __call__(self, **arguments: Any) -> Any:
        return self.model(**arguments, adapter_names=self.names)


def _adapted(base: Any, stack: Stack, gates: Sequence[Tensor]) -> Any:
    """PEFT on a copy of the base with an adapter per gate [L, R], folded into A."""
    from peft import LoraConfig, get_peft_model

    ranks = stack.k * stack.rank
    config = LoraConfig(
        r=ranks,
        lora_alpha=stack.scaling * ranks,  # type: ignore[arg-type]
        target_modules=list(stack.target_modules),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(share(base), config, adapter_name="0", autocast_adapter_dtype=False)
    for number in range(1, len(gates)):
        model.add_adapter(str(number), config)
    dtype = base.dtype
    for number, gate in enumerate(gates):
        for name, lora_a in stack.folded(gate).items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A[str(number)].weight.data = lora_a.to(dtype)
            layer.lora_B[str(number)].weight.data = stack.lora_b[name].to(dtype, copy=True)
    model.set_adapter("0")
    return model.eval().requires_grad_(False)


class _Stream:
    """One system that decodes a batch, step by step, on tokens given from outside."""

    def __init__(self, model: Any, prompts: list[list[int]], context: Any = None) -> None:
        from bdc.llm.generate import _prefill

        self.model, self.context = model, context
        self.batch: _Batch = _prefill(model, prompts, context)

    def step(self, tokens: Tensor) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.batch.forward(self.model, tokens, self.context)
        return time.perf_counter() - started


class Bench:
    """The systems on one base model."""

    def __init__(self, name: str, dtype: torch.dtype, experts: int, rank: int, *, int8: bool = False) -> None:
        from bdc.customize.solver import Solver

        self.name, self.dtype = name, dtype
        self.base, tokenizer = load_model(name, dtype)
        pack(self.base)
        self.stack = stack_for(self.base, experts, rank)
        self.floor = floor_of(self.stack, self.base)
        parts = SolverParts(name, self.stack)
        self.solver = Solver(share(self.base), tokenizer, parts)
        self.solvers = {OURS: self.solver}
        if int8:
            self.solvers[INT8] = Solver(share(self.base), tokenizer, parts, int8_experts=True)

    def run(self, requests: int, seconds: float, peers: bool) -> dict[str, Any]:
        """Milliseconds of a step of each system, [p10, median, p90], and the overheads of medians over the base."""
        from bdc.llm.attention import decoding

        generator = torch.Generator().manual_seed(requests)
        stack, vocabulary = self.stack, self.base.config.get_text_config().vocab_size
        table = 2 * torch.rand(requests, len(stack.modules), stack.k, stack.rank, generator=generator)
        prompts = torch.randint(vocabulary, (requests, PROMPT), generator=generator).tolist()
        gates = table.flatten(2)

        for name, solver in self.solvers.items():
            self._check_layers(name, solver, table)

        def around(solver: Solver) -> Callable[[Tensor, int], AbstractContextManager[Any]]:
            weighted = solver._mixture.weighing(table)
            return lambda active, tokens: weighted(active.repeat_interleave(tokens))

        with torch.inference_mode(), contextlib.ExitStack() as stacked:
            for model in (self.base, *(solver.model for solver in self.solvers.values())):
                stacked.enter_context(using_packed(model))
            streams = {BASE: _Stream(self.base, prompts)}
            streams |= {name: _Stream(s.model, prompts, around(s)) for name, s in self.solvers.items()}
            if peers:
                plain = _adapted(self.base, stack, [torch.ones_like(gates[0])])
                mixed = _Mixed(_adapted(self.base, stack, list(gates)))
                streams |= {PLAIN: _Stream(plain, prompts), MIXED: _Stream(mixed, prompts, mixed.rows)}
            for stream in streams.values():
                stacked.enter_context(decoding(stream.model))
            drawn = self._tokens(vocabulary, requests)
            self._check(streams, next(drawn))
            times = _interleaved(streams, drawn, seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        overhead = {name: medians[name] / medians[BASE] - 1 for name in medians if name != BASE}
        deciles = {name: statistics.quantiles(values, n=10, method="inclusive") for name, values in times.items()}
        gc.collect()
        return {
            "model": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "requests": requests,
            "rank": stack.k * stack.rank,
            "layers": len(stack.modules),
            "steps": {name: len(values) for name, values in times.items()},
            "ms": {
                name: [round(1e3 * v, 3) for v in (deciles[name][0], medians[name], deciles[name][-1])]
                for name in times
            },
            "overhead": {name: round(value, 4) for name, value in overhead.items()},
            "floor": round(self.floor, 4),
            "target": round(1.5 * self.floor + 0.03, 4),
        }

    def _tokens(self, vocabulary: int, requests: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(vocabulary, (requests,), generator=generator)

    def _check(self, streams: dict[str, _Stream], tokens: Tensor) -> None:
        """The solver's logits must be those of PEFT's merged adapters."""
        for stream in streams.values():
            stream.step(tokens)
        if MIXED not in streams:
            return
        base, ours, mixed = (streams[name].batch.logits.double() for name in (BASE, OURS, MIXED))
        error = float((ours - mixed).abs().max() / base.abs().max())
        if not error <= TOLERANCE[self.dtype]:
            raise BdcError(
                f"the solver differs from PEFT's merged adapters by {error:.1e} of the largest logit, so nothing was timed"
            )

    def _check_layers(self, name: str, solver: Solver, table: Tensor) -> None:
        """Each layer must add the product of each request's own rank weights, [N, L, K, r]."""
        generator, stack = torch.Generator().manual_seed(2), self.stack
        eps = torch.finfo(self.dtype).eps  # of the base's output, to which the product is added
        with torch.inference_mode(), solver._mixture.weighing(table)(torch.arange(len(table))):
            for module, gate in zip(stack.modules, table.flatten(2).double().unbind(1), strict=True):
                layer: Any = solver.model.get_submodule(module)
                x = torch.randn(len(table), layer.in_features, generator=generator).to(self.dtype)
                lora_a, lora_b = (experts[module].double() for experts in (stack.lora_a, stack.lora_b))
                truth = reference.rankwise_lora(x.double(), lora_a, lora_b, gate, scaling=stack.scaling)
                base = layer.base(x).double()
                error = float((layer(x).double() - base - truth).norm())
                if not error <= LAYER_TOLERANCE * float(truth.norm()) + eps * float((base + truth).norm()):
                    share = error / float(truth.norm())
                    raise BdcError(f"{name}: {module} is wrong by {share:.1e} of its product, so nothing was timed")


def _interleaved(streams: dict[str, _Stream], drawn: Iterator[Tensor], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in streams}
    order, shuffler = list(streams), random.Random(0)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[BASE]) < 5:
        tokens = next(drawn)
        shuffler.shuffle(order)
        for name in order:
            times[name].append(streams[name].step(tokens))
        for name in order * (TURNS - 1):
            if name in (BASE, OURS, INT8):
                times[name].append(streams[name].step(tokens))
    return times


def row(cell: dict[str, Any]) -> str:
    """The line of the table for one cell."""
    overhead = cell["overhead"]
    peers = "".join(f"{overhead[name]:>12.1%}" if name in overhead else f"{'':12}" for name in (PLAIN, MIXED, INT8))
    return (
        f"{cell['model']:28} {cell['dtype']:9}{cell['requests']:9}{cell['rank']:5}{cell['ms'][BASE][1]:10.2f}"
        f"{cell['ms'][OURS][1]:10.2f}{overhead[OURS]:10.1%}{cell['floor']:8.1%}{cell['target']:8.1%}{peers}"
    )


HEADER = (
    f"{'model':28} {'dtype':9}{'requests':>9}{'R':>5}{'base ms':>10}{'bdc ms':>10}{'overhead':>10}{'floor':>8}{'target':>8}"
    f"{'peft one':>12}{'peft mixed':>12}{'bdc int8':>12}"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bdc bench solver",
        description="Decoding steps of the solver beside the base model, one plain PEFT LoRA, and PEFT's adapter_names; models "
        "are fetched. Set OMP_WAIT_POLICY=passive before it starts on a shared machine.",
    )
    parser.add_argument("--quick", action="store_true", help="the small model, 1 and 8 requests: under a minute")
    parser.add_argument("--threads", type=int, help="threads of torch and of the kernel")
    parser.add_argument("--models", help=f"names, folders or hub ids (default: {','.join(MODELS)})")
    parser.add_argument("--dtypes", help=f"of {', '.join(DTYPES)} (default: the machine's own, as the solver takes it)")
    parser.add_argument("--requests", type=whole_numbers, help="batches (default: 1,8,32)")
    parser.add_argument("--experts", type=int, default=8, help="experts (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=4, help="rank of an expert (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="time for each cell")
    parser.add_argument("--int8", action="store_true", help="the solver with experts of int8, too")
    parser.add_argument("--no-peers", action="store_true", help="only the base model and the solver")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table and optionally writes JSON. Returns the exit code."""
    args = _parser().parse_args(argv)
    command = shlex.join(["bdc", "bench", "solver", *(sys.argv[1:] if argv is None else argv)])
    names = args.dtypes.split(",") if args.dtypes else [str(auto_dtype()).removeprefix("torch.")]
    if any(name not in DTYPES for name in names):
        raise InputError(f"--dtypes must be of {', '.join(DTYPES)}, got {args.dtypes}")
    check_ranges(args, "--", "experts", "rank", low=1)
    if args.seconds is not None:
        check_ranges(args, "--", "seconds", low=0, high=math.inf, above=True, below=True)
    if args.threads is not None:
        check_ranges(args, "--", "threads", low=1, high=1024)
        torch.set_num_threads(args.threads)
    if args.json:
        make_way(args.json)
    with needs_extra("run"):
        import peft
        import transformers
    models = args.models.split(",") if args.models else MODELS[:1] if args.quick else MODELS
    for model in models:  # before anything is printed
        resolve(model, kind="causal")
    batches = args.requests or ((1, 8) if args.quick else (1, 8, 32))
    seconds = args.seconds or (3.0 if args.quick else 15.0)
    left_out = ([] if args.int8 else [INT8]) + ([PLAIN, MIXED] if args.no_peers else [])
    semantics = {name: meaning for name, meaning in SEMANTICS.items() if name not in left_out}
    about = describe() | {"peft": peft.__version__, "transformers": transformers.__version__, "semantics": semantics}
    about |= {"command": command, "prompt_tokens": PROMPT, "experts": args.experts, "seconds": seconds}
    print(
        f"{about['device']}; {about['backend']}; torch {about['torch']}; peft {about['peft']}; commit {about['commit']}"
    )
    for name, meaning in semantics.items():
        print(f"{name}: {meaning}")
    print(HEADER)
    found = []
    for model in models:
        for name in names:
            bench = Bench(model, DTYPES[name], args.experts, args.rank, int8=args.int8)
            for requests in batches:
                found.append(bench.run(requests, seconds, not args.no_peers))
                print(row(found[-1]), flush=True)
                if args.json:  # after each cell, so that an interruption leaves those that were measured
                    atomic_write(args.json, as_text(about, found))
    if args.json:
        print(f"wrote {args.json}", file=sys.stderr)
    return 0
