"""The benchmark: a small run, its record, and that a wrong form is refused instead of timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bdc.errors import BdcError, InputError
from bdc.ops.bench import cells, command, gradients, main, slices, streamed, timing
from bdc.ops.bench.machine import SIZES, Machine
from bdc.ops.bench.peers import PEERS, SAME, Peer

MACHINE = Machine(dict.fromkeys(SIZES, 1e10), {torch.float32: 1e11, torch.bfloat16: 1e11})


def test_a_run_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "QUICK_SHAPES", ("smollm2-135m/q",))
    monkeypatch.setattr(command.limits, "measure", lambda dtypes: MACHINE)
    monkeypatch.setattr(command.dispatch, "measure", lambda: {"bare binding, in place": 1.0})
    path = tmp_path / "op.json"
    options = ["--quick", "--tokens", "1,12", "--ranks", "24", "--seconds", "0.001", "--json", str(path)]
    assert main(options) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [(cell["dtype"], cell["tokens"]) for cell in record["cells"]] == [
        ("float32", 1),
        ("float32", 12),
        ("bfloat16", 1),
        ("bfloat16", 12),
    ]
    cell = record["cells"][1]
    p10, median, p90 = cell["us"]["bdc"]
    assert p10 <= median <= p90 and cell["requests"] == 8 and cell["rounds"] >= 5
    assert cell["best_torch"] in ("eager", "addmm_", "hoisted")
    assert cell["speedup"] == pytest.approx(cell["us"][cell["best_torch"]][1] / median, abs=1e-3)
    assert cell["floor"] == pytest.approx(24 * 1152 / 576**2, abs=1e-4)
    assert record["command"].startswith("bdc bench op --quick --tokens 1,12")
    assert {"device", "torch", "commit", "date", "threads", "limits", "call_us"} <= set(record)
    printed = capsys.readouterr().out
    assert "smollm2-135m/q" in printed and "| float32 | 12 |" in printed
    for name in record["missing_peers"]:
        assert f"{name}: not installed" in printed


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name != "compile"], ids=lambda peer: peer.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_peer_computes_what_it_says(peer: Peer, dtype: torch.dtype) -> None:
    if peer.missing:
        pytest.skip(f"the package {peer.package} is not installed: pip install {peer.package}")
    cell = cells.Cell("small", 48, 40, 12, 16, dtype)
    inputs = peer.given(cells.inputs(cell))
    with torch.inference_mode():
        y = inputs.y.clone()
        command._check_product(peer, cell, inputs, peer.make(inputs, y)(), y)


def test_a_wrong_form_is_not_timed() -> None:
    wrong = Peer("wrong", SAME, lambda inputs, y: lambda: y.addmm_(inputs.x @ inputs.a.T, inputs.b.T))
    cell = cells.Cell("small", 48, 40, 12, 16, torch.float32)
    with pytest.raises(BdcError, match="wrong is wrong by"):
        command.run(cell, [wrong], MACHINE, 0.001)


def test_slices_are_timed_beside_products_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "LAYERS", {"small/qkv": (64, (64, 80, 96))})
    path = tmp_path / "slices.json"
    options = ["--slices", "--dtypes", "float32", "--tokens", "1,4", "--ranks", "8", "--seconds", "0.001"]
    assert main([*options, "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [(row["layer"], row["tokens"], row["outputs"]) for row in rows] == [("small/qkv", 1, 3), ("small/qkv", 4, 3)]
    assert all(row["speedup"] == pytest.approx(row["apart_us"] / row["slices_us"], abs=0.01) for row in rows)
    assert "small/qkv" in capsys.readouterr().out


def test_experts_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LAYERS", ("smollm2-135m/q",))
    monkeypatch.setattr(streamed, "stream_bytes", lambda: 1 << 20)
    monkeypatch.setattr(command.limits, "measure", lambda dtypes: MACHINE)
    path = tmp_path / "stream.json"
    options = ["--stream", "--dtypes", "bfloat16", "--tokens", "1,4", "--ranks", "8", "--json", str(path)]
    assert main(options) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [(row["tokens"], row["copies"]) for row in rows] == [(1, 56), (4, 56)]
    for row in rows:
        assert row["int8_gb_per_s"] == pytest.approx(8 * 1152 / row["int8_us"] / 1e3, rel=0.02, abs=0.01)
        assert row["own_share"] == pytest.approx(row["own_gb_per_s"] / 10, abs=0.01)


def test_gradients_are_timed_beside_autograd_of_two_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SHAPES", {"small": (64, 80)})
    path = tmp_path / "gradients.json"
    options = ["--gradients", "--dtypes", "float32,bfloat16", "--tokens", "1,20", "--ranks", "8", "--seconds", "0.001"]
    assert main([*options, "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [(row["tokens"], row["gradients"]) for row in rows] == 2 * [
        (t, n) for t in (1, 20) for n in ("x g", "x A B g")
    ]
    assert all(row["speedup"] == pytest.approx(row["torch_us"] / row["bdc_us"], abs=0.01) for row in rows)


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SHAPES", {"small": (64, 80)})
    monkeypatch.setattr(gradients, "_product", lambda inputs: 1.1 * gradients._two_products(inputs))
    with pytest.raises(BdcError, match="bdc: the gradient of x is wrong by"):
        main(["--gradients", "--dtypes", "float32", "--tokens", "4", "--ranks", "8", "--seconds", "0.001"])


def test_deciles_lie_within_the_samples() -> None:
    calls = iter([0.0, 1.0] * 3 + [value for took in (10, 100, 101, 102, 103) for value in (0.0, took)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: next(calls))
        times = timing.interleaved({"a": lambda: None}, 1.0, lambda: None)["a"]
    assert times == (46e6, 101e6, 102.6e6, 5)


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cell: cells.Cell, *rest: object) -> object:
        if cell.tokens == 4:
            raise KeyboardInterrupt
        return run(cell, *rest)

    run = command.run
    monkeypatch.setattr(command, "run", interrupted)
    monkeypatch.setattr(cells, "QUICK_SHAPES", ("smollm2-135m/q",))
    monkeypatch.setattr(command.limits, "measure", lambda dtypes: MACHINE)
    path = tmp_path / "op.json"
    with pytest.raises(KeyboardInterrupt):
        main(
            [
                "--quick",
                "--peers",
                "eager",
                "--tokens",
                "1,4",
                "--ranks",
                "8",
                "--seconds",
                "0.001",
                "--json",
                str(path),
            ]
        )
    assert [cell["tokens"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]] == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], "--threads is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--json", "/proc/none/op.json"], "/proc/none cannot be made"),
        (["--json", "."], r"\. is a folder; name a file"),
        (["--stream", "--quick"], "--quick cannot be given with --stream"),
        (["--gradients", "--slices"], "--gradients cannot be given with --slices"),
    ],
)
def test_options_are_refused_before_anything_is_measured(options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main(options)


@pytest.mark.parametrize("tokens", ["0", "-1", "1,x", "", "1,2147483648"])
def test_numbers_of_tokens_are_whole(tokens: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--tokens", tokens])
    assert "must be whole numbers from 1 to 2147483647" in capsys.readouterr().err


def test_bad_options() -> None:
    with pytest.raises(InputError, match="--dtypes must be of float32, bfloat16, float16, got float8"):
        main(["--dtypes", "float8"])
    with pytest.raises(InputError, match=r"--peers must be of .*got abacus"):
        main(["--peers", "abacus"])
