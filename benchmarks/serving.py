"""What customised requests cost in vLLM: the solver beside the base model, and beside vLLM's own LoRA adapters.

Each system is an engine of its own; they take turns in an order that chance changes every round. A turn decodes one batch
to its end: prompts of random tokens, the same for all systems, and so many new tokens for each request, which may not end
earlier. vLLM's LoRA gets what a user would give it without this package: one adapter of rank R per request, its rank
weights merged into A. Before anything is timed, the most probable first token of every request and its probability must
be the same with both. `python -m benchmarks.serving --help`; needs vllm (docs/serving.md).
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BASE, OURS, LORA = "base", "bdc", "vllm lora"
SEMANTICS = {
    BASE: "the model without experts",
    OURS: "the solver, rank weights of its own for each request",
    LORA: "vLLM's LoRA, one adapter of rank R per request, its rank weights merged into A beforehand",
}
PROMPT = 32  # tokens
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}  # of the logarithm of a probability


class Bench:
    """The engines on one base model."""

    def __init__(self, name: str, dtype: str, experts: int, rank: int, most: int, folder: Path, *, peer: bool) -> None:
        import torch
        import vllm

        from bdc.customize.bench import floor_of, stack_for
        from bdc.customize.stacks import write_adapter
        from bdc.customize.storage import SolverParts
        from bdc.llm.loading import load_model
        from bdc.llm.registry import resolve
        from bdc.serving.wire import KEY, encode

        base = str(resolve(name))
        model, _ = load_model(base, "float32")
        stack = stack_for(model, experts, rank)
        self.name, self.dtype, self.rank = name, dtype, experts * rank
        self.vocabulary, self.floor = model.config.get_text_config().vocab_size, floor_of(stack, model)
        del model
        solver = folder / "solver"
        SolverParts(base, stack).save(solver)
        shape = (most, len(stack.modules), experts, rank)
        table = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        options: dict[str, Any] = {"dtype": dtype, "max_model_len": 512, "max_num_seqs": most}
        if not torch.cuda.is_available():
            options["gpu_memory_utilization"] = 0.3  # of the machine's memory, on a CPU
        options |= {"enable_prefix_caching": False, "enforce_eager": True, "disable_log_stats": True}
        worker = {"worker_cls": "bdc.serving.worker.Worker", "additional_config": {"bdc_solver": str(solver)}}
        self.engines = {BASE: vllm.LLM(model=base, **options), OURS: vllm.LLM(model=base, **options, **worker)}
        self._extra = [{KEY: encode(weights)} for weights in table]
        self._adapters: list[Any] = []
        if peer:
            from vllm.lora.request import LoRARequest

            self.engines[LORA] = vllm.LLM(
                model=base, **options, enable_lora=True, max_loras=most, max_lora_rank=self.rank
            )
            for number, weights in enumerate(table, 1):
                path = folder / str(number)
                write_adapter(path, stack.folded(weights), stack.lora_b, stack.scaling, stack.target_modules, base)
                self._adapters.append(LoRARequest(str(number), number, str(path)))

    def answer(self, system: str, prompts: list[list[int]], tokens: int) -> tuple[float, list[Any]]:
        """Seconds of one turn, and vLLM's outputs."""
        import vllm

        extra = self._extra if system == OURS else [None] * len(prompts)
        settings = [
            vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=own, logprobs=logprobs)
            for own, logprobs in zip(extra, [0 if tokens == 1 else None] * len(prompts), strict=False)
        ]
        adapters = {"lora_request": self._adapters[: len(prompts)]} if system == LORA else {}
        started = time.perf_counter()
        found = self.engines[system].generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False, **adapters
        )
        return time.perf_counter() - started, [output.outputs[0] for output in found]

    def check(self, requests: int) -> None:
        """The solver must be what vLLM's adapters are.

        Raises:
            BdcError: a request's first token, or its probability, differs.
        """
        from bdc.errors import BdcError

        if LORA not in self.engines:
            return
        prompts = self._prompts(requests, random.Random(1))
        first = {system: self.answer(system, prompts, 1)[1] for system in (OURS, LORA)}
        for ours, theirs in zip(first[OURS], first[LORA], strict=True):
            error = abs(ours.cumulative_logprob - theirs.cumulative_logprob)
            if ours.token_ids != theirs.token_ids or not error <= TOLERANCE[self.dtype]:
                raise BdcError(f"the solver's first token differs from that of vLLM's adapter by {error:.1e}")

    def run(self, requests: int, tokens: int, seconds: float) -> dict[str, Any]:
        """Tokens a second of each system, [p10, median, p90], and what the medians' steps cost over the base."""
        self.check(requests)
        chance = random.Random(0)
        times: dict[str, list[float]] = {system: [] for system in self.engines}
        order = list(self.engines)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times[BASE]) < 6:
            prompts = self._prompts(requests, chance)
            chance.shuffle(order)
            for system in order:
                times[system].append(self.answer(system, prompts, tokens)[0])
        for system in order:
            del times[system][0]  # of a first batch
        medians = {system: statistics.median(values) for system, values in times.items()}
        deciles = {s: statistics.quantiles(values, n=10, method="inclusive") for s, values in times.items()}
        rate = requests * tokens
        return {
            "model": self.name,
            "dtype": self.dtype,
            "requests": requests,
            "rank": self.rank,
            "new_tokens": tokens,
            "rounds": len(times[BASE]),
            "tokens_per_s": {
                s: [round(rate / t, 2) for t in (deciles[s][-1], medians[s], deciles[s][0])] for s in self.engines
            },
            "overhead": {s: round(medians[s] / medians[BASE] - 1, 4) for s in self.engines if s != BASE},
            "floor": round(self.floor, 4),
        }

    def _prompts(self, requests: int, chance: random.Random) -> list[list[int]]:
        return [[chance.randrange(self.vocabulary) for _ in range(PROMPT)] for _ in range(requests)]


HEADER = f"{'model':24}{'dtype':>9}{'requests':>9}{'R':>5}{'base/s':>9}{'bdc/s':>9}{'lora/s':>9}{'bdc':>9}{'lora':>9}{'c R':>7}"


def row(cell: dict[str, Any]) -> str:
    """The line of the table for one cell: tokens a second, and what is over the base's time."""
    rates = "".join(f"{cell['tokens_per_s'].get(s, ['', ''])[1]:>9}" for s in (BASE, OURS, LORA))
    over = "".join(f"{cell['overhead'][s]:>9.1%}" if s in cell["overhead"] else f"{'':9}" for s in (OURS, LORA))
    return f"{cell['model']:24}{cell['dtype']:>9}{cell['requests']:9}{cell['rank']:5}{rates}{over}{cell['floor']:7.1%}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="name, folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32", help="default: %(default)s")
    parser.add_argument("--requests", default="1,8,32", help="batches (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens for each request (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=4, help="rank of an expert (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each batch size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each engine, on a CPU (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="without vLLM's LoRA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table and optionally writes JSON. Returns the exit code."""
    args = _parser().parse_args(argv)
    # Before torch and vllm start; the engines inherit them.
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError:
        print("benchmarks.serving: vllm is not installed: pip install 'bdc[serve]' (docs/serving.md)", file=sys.stderr)
        return 2

    from bdc.artefacts import atomic_write, make_way
    from bdc.ops.bench.machine import describe
    from bdc.ops.bench.report import as_text
    from bdc.ranges import whole_numbers

    batches = whole_numbers(args.requests)
    if args.json:
        make_way(args.json)
    about = describe() | {"vllm": vllm.__version__, "threads": args.threads, "prompt_tokens": PROMPT}
    about |= {"semantics": {s: m for s, m in SEMANTICS.items() if s != LORA or not args.no_peers}}
    about["command"] = shlex.join(["python", "-m", "benchmarks.serving", *(sys.argv[1:] if argv is None else argv)])
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            args.model, args.dtype, args.experts, args.rank, max(batches), Path(folder), peer=not args.no_peers
        )
        print(f"{about['device']}; vllm {about['vllm']}; torch {about['torch']}; commit {about['commit']}\n{HEADER}")
        for requests in batches:
            cells.append(bench.run(requests, args.tokens, args.seconds))
            print(row(cells[-1]), flush=True)
            if args.json:  # after each batch size, so that an interruption leaves those that were measured
                atomic_write(args.json, as_text(about, cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
