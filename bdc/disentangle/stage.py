"""The disentangle stage: traces.parquet -> clusters/ and experts/."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bdc.artefacts import atomic_write, fingerprints, first_changed
from bdc.disentangle.clustering import cluster, nearest, project, terms
from bdc.disentangle.examples import Example, encode, longest_example
from bdc.disentangle.experts import AdapterTrainer, cluster_jobs
from bdc.disentangle.settings import DisentangleSettings
from bdc.disentangle.traces import Trace, by_split, read_traces
from bdc.disentangle.training import remove_checkpoints
from bdc.errors import InputError
from bdc.progress import Progress, Task
from bdc.runs import FORMAT_VERSION, Run, digest, seal_holds, sealed

_CLUSTER_FIELDS = ("encoder", "k", "k_range", "min_cluster_size", "seed")


@dataclass(frozen=True, slots=True)
class Clusters:
    """Problems (``ids``), their embeddings float32 [n, d], clusters [n], and the centroids [K, d]."""

    ids: list[str]
    embeddings: np.ndarray
    assignment: np.ndarray
    centroids: np.ndarray
    record: dict[str, Any]

    @property
    def k(self) -> int:
        return len(self.centroids)

    @classmethod
    def load(cls, folder: Path) -> Clusters:
        """Read what the stage stored.

        Raises:
            InputError: a file is missing, unreadable, or not the one that was stored.
        """
        try:
            record = json.loads((folder / "clusters.json").read_text(encoding="utf-8"))
            if (name := first_changed(folder, record["files"])) is not None:
                raise InputError(f"{folder / name} is missing or was changed; run `bdc disentangle` again")
            if not seal_holds(record):
                raise InputError(f"{folder / 'clusters.json'} was changed; run `bdc disentangle` again")
            embeddings, centroids = np.load(folder / "embeddings.npy"), np.load(folder / "centroids.npy")
            ids = list(record["assignment"])
            return cls(ids, embeddings, np.array([record["assignment"][i] for i in ids]), centroids, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder} cannot be read ({error!r}); run `bdc disentangle` again") from error


def run(run: Run, settings: DisentangleSettings, progress: Progress | None = None) -> dict[str, Any]:
    """Cluster the problems of all traces and train one adapter per cluster, and the single LoRA to compare with.

    Raises:
        InputError: no usable traces, or settings that do not fit the model.
    """
    progress = progress or Progress("quiet")
    traces = read_traces(run.traces_path)
    clusters = make_clusters(run.clusters_dir, traces, settings, progress)
    experts = train_experts(run.experts_dir, traces, clusters, settings, progress)
    return {
        "k": clusters.k,
        "sizes": clusters.record["sizes"],
        "silhouette": clusters.record["silhouette"],
        "train_examples": experts["single"]["train_examples"],
        "validation_examples": experts["single"]["validation_examples"],
        "too_long": experts["too_long"],
        "trained_tokens": sum(record["trained_tokens"] for record in [*experts["experts"], experts["single"]]),
        "validation_loss": {r["name"]: best_validation(r) for r in [*experts["experts"], experts["single"]]},
    }


def best_validation(record: dict[str, Any]) -> float | None:
    """Validation loss (nats per token) of the epoch that was kept."""
    losses = [epoch["validation"] for epoch in record["history"] if epoch["epoch"] == record["best_epoch"]]
    return losses[0] if losses else None


def make_clusters(folder: Path, traces: Sequence[Trace], settings: DisentangleSettings, progress: Progress) -> Clusters:
    """Cluster the training problems; problems of the validation split join their nearest centroid."""
    statements = {trace.problem_id: trace.statement for trace in traces}
    trained = {trace.problem_id for trace in by_split(traces, "train")}
    ids = sorted(trained) + sorted(set(statements) - trained)
    chosen = {name: getattr(settings, name) for name in _CLUSTER_FIELDS}
    key = digest("clusters", chosen, [(i, statements[i], i in trained) for i in ids])
    with contextlib.suppress(InputError):  # none yet, or damaged: made again
        found = Clusters.load(folder)
        if found.record.get("key") == key:
            return found

    from bdc.llm import SentenceEncoder

    with progress.task("clusters", total=len(ids)) as task:
        texts = [statements[i] for i in ids]
        embeddings = SentenceEncoder(settings.encoder).encode(texts)
        fit = cluster(
            embeddings[: len(trained)],
            settings.k,
            k_range=settings.k_range,
            min_size=settings.min_cluster_size,
            seed=settings.seed,
        )
        assignment = nearest(embeddings, fit.centroids)
        task.update(len(ids), note=f"K = {fit.k}")
    record = {
        "format": FORMAT_VERSION,
        "key": key,
        "encoder": settings.encoder,
        "requested_k": settings.k,
        "chosen_k": fit.chosen_k,
        "k": fit.k,
        "sizes": np.bincount(assignment[: len(trained)], minlength=fit.k).tolist(),
        "silhouette": fit.silhouette,
        "scores": {str(k): score for k, score in fit.scores.items()},
        "terms": terms(texts, assignment, fit.k),
        "assignment": {i: int(c) for i, c in zip(ids, assignment, strict=True)},
        "tsne": {i: [float(x), float(y)] for i, (x, y) in zip(ids, project(embeddings, settings.seed), strict=True)},
    }
    arrays = {"embeddings": embeddings, "centroids": fit.centroids}
    files = {folder / f"{name}.npy": _npy(array) for name, array in arrays.items()}
    for path, content in files.items():
        atomic_write(path, content)
    record = sealed(record | {"files": fingerprints(folder, files)})
    atomic_write(folder / "clusters.json", json.dumps(record, indent=1))
    return Clusters(ids, embeddings, assignment, fit.centroids, record)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _tell(task: Task, name: str, note: str) -> None:
    task.advance(1, f"{name}: {note}")


def train_experts(
    folder: Path, traces: Sequence[Trace], clusters: Clusters, settings: DisentangleSettings, progress: Progress
) -> dict[str, Any]:
    """Train every adapter that is not stored yet; returns what experts.json holds."""
    from bdc.llm import load_model

    model, tokenizer = load_model(settings.base_model, settings.dtype)
    cluster_of = dict(zip(clusters.ids, clusters.assignment.tolist(), strict=True))
    longest = longest_example(model, settings.max_length)
    pairs: dict[str, list[tuple[int, Example]]] = {}
    for split in ("train", "validation"):
        encoded = [
            (cluster_of[t.problem_id], encode(tokenizer, t.messages, t.response)) for t in by_split(traces, split)
        ]
        pairs[split] = [(at, example) for at, example in encoded if len(example) <= longest]
    too_long = len(traces) - sum(map(len, pairs.values()))
    jobs = cluster_jobs(settings, clusters.k, pairs["train"], pairs["validation"])
    empty = [job.name for job in jobs if not job.train]
    if empty:
        raise InputError(
            f"cluster {empty[0]} has no example of at most {longest} tokens; "
            "raise disentangle.max_length, or use a base model with a longer context"
        )
    steps = [settings.epochs * math.ceil(len(job.train) / settings.batch_size) for job in jobs]
    trainer = AdapterTrainer(model, tokenizer, settings, folder)
    records = []
    with progress.task("experts", total=sum(steps)) as task:
        done = 0
        for job, count in zip(jobs, steps, strict=True):
            records.append(trainer.train(job, partial(_tell, task, job.name)))
            done += count
            task.update(done)
    summary = {
        "format": FORMAT_VERSION,
        "settings": asdict(settings),
        "k": clusters.k,
        "too_long": too_long,
        "experts": records[:-1],
        "single": records[-1],
    }
    for stale in folder.iterdir():  # experts of an earlier run with a larger K
        if stale.is_dir() and stale.name not in {job.name for job in jobs}:
            shutil.rmtree(stale)
    remove_checkpoints(folder)
    atomic_write(folder / "experts.json", json.dumps(summary, indent=1))
    return summary
