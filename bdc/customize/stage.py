"""The customize stage: traces, clusters and experts -> solver/."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from bdc.customize.customizer import MAIN, network_scaling
from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
from bdc.customize.mixture import Mixture
from bdc.customize.settings import CustomizeSettings
from bdc.customize.stacks import stack_adapters
from bdc.customize.storage import SolverParts
from bdc.customize.training import train_hypernetwork
from bdc.disentangle.examples import Example, encode, longest_example
from bdc.disentangle.stage import Clusters
from bdc.disentangle.traces import Trace, by_split, read_traces
from bdc.disentangle.training import Fit, checkpoint_in, remove_checkpoints
from bdc.errors import InputError
from bdc.progress import Progress, Task
from bdc.runs import Run, digest


def run(run: Run, settings: CustomizeSettings, progress: Progress | None = None) -> dict[str, Any]:
    """Stack the experts, train the hypernetwork over them, and store the solver.

    Raises:
        InputError: an artefact of the earlier stages is missing or unreadable.
    """
    from bdc.llm import load_model

    progress = progress or Progress("quiet")
    traces = read_traces(run.traces_path)
    clusters = Clusters.load(run.clusters_dir)
    base_model, dtype, keys = read_experts(run)
    stack = stack_adapters([run.experts_dir / str(index) for index in range(clusters.k)])
    encoder = clusters.record["encoder"]
    model, tokenizer = load_model(base_model, dtype)
    train, validation, too_long = encode_traces(
        tokenizer, traces, clusters, longest_example(model, settings.max_length)
    )
    jobs = {MAIN: settings} | {name: settings.of_ablation(name) for name in settings.ablations}
    sizes = {
        "embedding_dim": clusters.embeddings.shape[1],
        "layers": len(stack.modules),
        "k": stack.k,
        "rank": stack.rank,
    }
    networks = {
        name: Hypernetwork(HypernetworkConfig.of(job, **sizes), seed=settings.seed) for name, job in jobs.items()
    }
    scaling = network_scaling(networks[MAIN], stack.scaling)
    mixture = Mixture(model, stack, scaling)
    # The experts' keys do not cover examples that were too long for them and are not for the hypernetwork.
    examples = [[(e.prompt, e.response, e.source) for e in part] for part in (train, validation)]
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    records = {}
    for name, job in jobs.items():
        with progress.task(name, total=steps) as task:
            fit = train_hypernetwork(
                mixture,
                networks[name],
                tokenizer.pad_token_id,
                clusters.embeddings,
                clusters.centroids,
                train,
                validation,
                job,
                checkpoint=checkpoint_in(run.path, name),
                key=digest(
                    "hypernetwork", asdict(job), scaling, clusters.record["key"], keys, str(model.dtype), examples
                ),
                factor=network_scaling(networks[name], stack.scaling) / scaling,
                on_step=partial(_tell, task),
            )
            task.update(steps)
        records[name] = _record(fit, job)
    SolverParts(base_model, stack, encoder, networks, clusters.centroids, {"training": records}).save(run.solver_dir)
    remove_checkpoints(run.path)
    return {
        "k": stack.k,
        "layers": len(stack.modules),
        "parameters": sum(parameter.numel() for parameter in networks[MAIN].parameters()),
        "train_examples": len(train),
        "validation_examples": len(validation),
        "too_long": too_long,
        "trained_tokens": sum(record["trained_tokens"] for record in records.values()),
        "best_epoch": records[MAIN]["best_epoch"],
        "history": records[MAIN]["history"],
        "ablations": {name: records[name]["history"] for name in settings.ablations},
        "weight_spread": weight_spread(networks[MAIN], clusters),
    }


def _tell(task: Task, note: str) -> None:
    task.advance(1, note)


def _record(fit: Fit, settings: CustomizeSettings) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "history": fit.history,
        "best_epoch": fit.best_epoch,
        "trained_tokens": fit.tokens,
        "seconds": round(fit.seconds, 3),
    }


def read_experts(run: Run) -> tuple[str, str, list[str]]:
    """The base model of the experts that the disentangle stage left, its dtype, and each expert's key.

    Raises:
        InputError: it is missing or unreadable.
    """
    path = run.experts_dir / "experts.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
        return settings["base_model"], settings["dtype"], [record["key"] for record in found["experts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); run `bdc disentangle {run.path}` first") from error


def encode_traces(
    tokenizer: Any, traces: Sequence[Trace], clusters: Clusters, max_length: int
) -> tuple[list[Example], list[Example], int]:
    """Training and validation examples, their sources rows of the problems' embeddings, and how many were too long."""
    row = {problem: index for index, problem in enumerate(clusters.ids)}
    try:
        train, validation = (
            [encode(tokenizer, t.messages, t.response, row[t.problem_id]) for t in by_split(traces, split)]
            for split in ("train", "validation")
        )
    except KeyError as error:
        raise InputError(
            f"problem {error} has no cluster: the traces are newer; run `bdc disentangle` again"
        ) from error
    kept = [[example for example in examples if len(example) <= max_length] for examples in (train, validation)]
    if not kept[0]:
        raise InputError(
            f"no training example has at most {max_length} tokens; "
            "raise customize.max_length, or use a base model with a longer context"
        )
    return kept[0], kept[1], len(train) + len(validation) - len(kept[0]) - len(kept[1])


def weight_spread(hypernetwork: Hypernetwork, clusters: Clusters) -> float:
    """Standard deviation over problems of a weight, averaged over weights: 0 if every problem gets the same solver."""
    import torch

    with torch.no_grad():
        weights = hypernetwork(torch.from_numpy(clusters.embeddings), torch.from_numpy(clusters.centroids))
    return float(np.std(weights.numpy(), axis=0).mean())
