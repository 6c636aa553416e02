"""Both training stages on a tiny model and encoder: what they leave in the run directory; kills change nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from bdc.customize import CustomizeSettings, Solver
from bdc.customize import stage as customize
from bdc.customize.storage import SolverParts
from bdc.disentangle import DisentangleSettings
from bdc.disentangle import stage as disentangle
from bdc.disentangle.clustering import nearest
from bdc.errors import InputError
from bdc.runs import Run

CUSTOMIZE = CustomizeSettings(lr=2e-2, epochs=3, batch_size=4, seed=3, ablations=("expert-gate", "no-centroids"))


@pytest.fixture(scope="module")
def encoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights: real code, meaningless but input-dependent embeddings."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(tiny: Path, encoder: Path) -> DisentangleSettings:
    return DisentangleSettings(
        base_model=str(tiny), dtype="float32", encoder=str(encoder), k=2, min_cluster_size=2, rank=2, alpha=4.0, lr=5e-3
    )


@pytest.fixture(scope="module")
def done(
    settings: DisentangleSettings, tmp_path_factory: pytest.TempPathFactory, helpers: Any
) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("runs") / "run"
    with Run(path, create=True) as run:
        helpers.write_traces(run.traces_path)
        first = disentangle.run(run, settings)
        second = customize.run(run, CUSTOMIZE)
    return path, first, second


def test_clusters_are_stored(done: tuple[Path, Any, Any], settings: DisentangleSettings) -> None:
    path, summary, _ = done
    clusters = disentangle.Clusters.load(path / "clusters")
    assert summary["k"] == clusters.k == 2
    assert sum(summary["sizes"]) == 8  # the training problems
    assert len(clusters.ids) == len(clusters.record["tsne"]) == 12
    assert nearest(clusters.embeddings, clusters.centroids).tolist() == clusters.assignment.tolist()
    assert set(clusters.record["scores"]) == {str(k) for k in range(2, 9)}
    assert all(len(words) > 0 for words in clusters.record["terms"])


def test_experts_and_the_single_lora_are_stored_and_learned(done: tuple[Path, Any, Any]) -> None:
    path, summary, _ = done
    assert {p.name for p in (path / "experts").iterdir()} == {"0", "1", "single", "experts.json"}
    assert (summary["train_examples"], summary["validation_examples"]) == (16, 8)
    base = Solver.from_adapters([path / "experts" / "single"], done_base(path), dtype="float32")
    traces = [t for t in disentangle.read_traces(path / "traces.parquet") if t.split == "validation"]
    messages, responses = [t.messages for t in traces], [t.response for t in traces]
    losses = {w: base.loss(messages, responses, weights=w) for w in ("uniform", "none")}
    mean = {w: sum(x.nll for x in found) / sum(x.tokens for x in found) for w, found in losses.items()}
    assert mean["uniform"] == pytest.approx(summary["validation_loss"]["single"], rel=1e-4)
    assert mean["uniform"] < mean["none"] - 0.05


def done_base(path: Path) -> str:
    return SolverParts.load(path / "solver").base_model


def test_the_stored_solver_has_the_loss_that_training_saw(done: tuple[Path, Any, Any]) -> None:
    path, _, summary = done
    solver = Solver.from_pretrained(path / "solver", dtype="float32")
    traces = [t for t in disentangle.read_traces(path / "traces.parquet") if t.split == "validation"]
    statements = [t.statement for t in traces]
    messages, responses = [t.messages for t in traces], [t.response for t in traces]
    history = {epoch["epoch"]: epoch["validation"] for epoch in summary["history"]}
    found = solver.loss(messages, responses, statements=statements)
    assert sum(x.nll for x in found) / sum(x.tokens for x in found) == pytest.approx(
        history[summary["best_epoch"]], rel=1e-4
    )
    uniform = solver.loss(messages, responses, weights="uniform")
    assert sum(x.nll for x in uniform) / sum(x.tokens for x in uniform) == pytest.approx(history[0], rel=1e-4)
    assert history[summary["best_epoch"]] < history[0]
    assert summary["weight_spread"] > 0
    clusters = disentangle.Clusters.load(path / "clusters")
    by_id = dict(zip(clusters.ids, clusters.assignment.tolist(), strict=True))
    assert solver.customizer.nearest_experts(statements) == [by_id[t.problem_id] for t in traces]


def test_a_second_run_trains_nothing_again(done: tuple[Path, Any, Any], settings: DisentangleSettings) -> None:
    path, summary, _ = done
    files = [*sorted((path / "experts").rglob("*.safetensors")), path / "clusters" / "clusters.json"]
    before = [file.stat().st_mtime_ns for file in files]
    with Run(path) as run:
        assert disentangle.run(run, settings) == summary
    assert [file.stat().st_mtime_ns for file in files] == before


def test_missing_artefacts_say_which_stage_to_run(tmp_path: Path, settings: DisentangleSettings, helpers: Any) -> None:
    with Run(tmp_path / "run", create=True) as run:
        with pytest.raises(InputError, match="bdc boost"):
            disentangle.run(run, settings)
        helpers.write_traces(run.traces_path)
        with pytest.raises(InputError, match="bdc disentangle"):
            customize.run(run, CUSTOMIZE)
        helpers.write_traces(run.traces_path, problems=4, validation=4)
        with pytest.raises(InputError, match="no training trace"):
            disentangle.run(run, settings)


SCRIPT = """
import dataclasses, json, sys, torch
from bdc.customize import CustomizeSettings, stage as customize
from bdc.disentangle import DisentangleSettings, stage as disentangle, training
from bdc.runs import Run
torch.set_num_threads(1)
training._CHECKPOINT_SECONDS = -1.0
path, first, second = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
first = {name: tuple(value) if isinstance(value, list) else value for name, value in first.items()}
with Run(path) as run:
    disentangle.run(run, DisentangleSettings(**first))
    customize.run(run, CustomizeSettings(**second))
"""


@pytest.mark.timeout(200)
def test_kill_9_at_any_moment_changes_nothing(settings: DisentangleSettings, tmp_path: Path, helpers: Any) -> None:
    """Killed again and again, in both stages, the run ends with the files of an uninterrupted one."""
    import dataclasses

    def start(path: Path) -> subprocess.Popen[bytes]:
        given = [json.dumps(dataclasses.asdict(each)) for each in (settings, CUSTOMIZE)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[2]
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), *given], cwd=root, env=environment)

    for name in ("whole", "killed"):
        with Run(tmp_path / name, create=True) as run:
            helpers.write_traces(run.traces_path)
    assert start(tmp_path / "whole").wait() == 0
    marks = ["experts/.0.checkpoint.pt", "experts/0", "experts/.single.checkpoint.pt", ".hypernetwork.checkpoint.pt"]
    for mark in marks:
        process = start(tmp_path / "killed")
        while process.poll() is None and not (tmp_path / "killed" / mark).exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert start(tmp_path / "killed").wait() == 0
    compared = 0
    for file in sorted((tmp_path / "whole").rglob("*")):
        if file.suffix in (".safetensors", ".npy"):
            assert (tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
            compared += 1
    assert compared >= 8
    assert not list((tmp_path / "killed").rglob("*.checkpoint.pt"))


def test_a_checkpoint_over_other_examples_is_not_gone_on_with(
    settings: DisentangleSettings, tmp_path: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they differ only in examples that are too long for the experts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def prepare(run: Run, letter: str) -> None:
        rows = pq.read_table(helpers.write_traces(run.traces_path)).to_pylist()
        rows[0]["response"] = letter * 300
        pq.write_table(pa.Table.from_pylist(rows), run.traces_path)
        disentangle.run(run, replace(settings, max_length=256))

    brief = CustomizeSettings(lr=2e-2, epochs=2, batch_size=4)
    with Run(tmp_path / "changed", create=True) as run:
        prepare(run, "a")
        with monkeypatch.context() as patched, pytest.raises(InputError, match="no room"):
            # The stage ends before its checkpoint is done with.
            patched.setattr(SolverParts, "save", Mock(side_effect=InputError("no room")))
            customize.run(run, brief)
        assert (tmp_path / "changed" / ".hypernetwork.checkpoint.pt").exists()
        prepare(run, "b")
        changed = customize.run(run, brief)
    with Run(tmp_path / "fresh", create=True) as run:
        prepare(run, "b")
        assert changed == customize.run(run, brief)


@pytest.mark.parametrize("content", ["[]", "5", '{"settings": 5}', "[" * 100_000])
def test_damaged_records_of_the_stage_before_are_named(
    content: str, done: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(done[0], path)
    with Run(path) as run:
        (path / "experts" / "experts.json").write_text(content)
        with pytest.raises(InputError, match=r"experts.json cannot be read"):
            customize.run(run, CUSTOMIZE)
        (path / "clusters" / "clusters.json").write_text(content)
        with pytest.raises(InputError, match="clusters cannot be read"):
            customize.run(run, CUSTOMIZE)


def test_changed_records_are_made_again(
    done: tuple[Path, Any, Any], settings: DisentangleSettings, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(done[0], path)
    for name, field, key in (
        ("clusters/clusters.json", "assignment", "sorting-01"),
        ("experts/0/training.json", "history", 0),
    ):
        before = json.loads((path / name).read_text())
        changed = json.loads((path / name).read_text())
        changed[field][key] = {"epoch": 1, "validation": 0.5} if field == "history" else 1 - changed[field][key]
        (path / name).write_text(json.dumps(changed))
        with Run(path) as run:
            disentangle.run(run, settings)
        after = json.loads((path / name).read_text())
        assert after[field] == before[field], name


def test_checkpoints_of_jobs_that_are_no_more_go_with_the_stage(
    done: tuple[Path, Any, Any], settings: DisentangleSettings, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(done[0], path)
    left = [path / "experts" / ".5.checkpoint.pt", path / ".expert-gate.checkpoint.pt"]
    for checkpoint in left:
        checkpoint.write_bytes(b"x")
    with Run(path) as run:
        disentangle.run(run, settings)
        customize.run(run, replace(CUSTOMIZE, epochs=1, ablations=()))
    assert not any(checkpoint.exists() for checkpoint in left)


def test_examples_that_the_context_does_not_hold_are_left_out(
    settings: DisentangleSettings, tmp_path: Path, helpers: Any
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=300, word_embed_proj_dim=32, max_position_embeddings=192, bos_token_id=0, **sizes)
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(settings.base_model).save_pretrained(tmp_path / "base")
    with Run(tmp_path / "run", create=True) as run:
        rows = pq.read_table(helpers.write_traces(run.traces_path)).to_pylist()
        rows[0]["response"] = "a" * 300
        pq.write_table(pa.Table.from_pylist(rows), run.traces_path)
        assert disentangle.run(run, replace(settings, base_model=str(tmp_path / "base")))["too_long"] == 1
        assert customize.run(run, replace(CUSTOMIZE, epochs=1, ablations=()))["too_long"] == 1


def test_ablations_are_trained_and_stored_with_the_solver(done: tuple[Path, Any, Any]) -> None:
    path, _, summary = done
    solver = Solver.from_pretrained(path / "solver", dtype="float32")
    assert solver.customizer.choices[:3] == ["hypernetwork", "expert-gate", "no-centroids"]
    traces = [t for t in disentangle.read_traces(path / "traces.parquet") if t.split == "validation"]
    for name in ("expert-gate", "no-centroids"):
        history = summary["ablations"][name]
        found = solver.loss(
            [t.messages for t in traces],
            [t.response for t in traces],
            statements=[t.statement for t in traces],
            weights=name,
        )
        best = min(epoch["validation"] for epoch in history)
        assert sum(x.nll for x in found) / sum(x.tokens for x in found) == pytest.approx(best, rel=1e-4)
    weights = solver.rank_weights([traces[0].statement], weights="expert-gate")
    assert weights.std(dim=3).max() == 0 < weights.std(dim=2).max()
