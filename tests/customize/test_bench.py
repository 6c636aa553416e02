"""The benchmark of decoding: a small run and its record, and that a wrong solver is refused instead of timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bdc.customize import bench
from bdc.errors import BdcError, InputError, ModelNotFoundError


def test_a_run_writes_what_it_prints(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "solver.json"
    options = ["--models", str(tiny), "--dtypes", "float32", "--requests", "1,3", "--experts", "2", "--rank", "4"]
    assert bench.main([*options, "--seconds", "0.01", "--json", str(path)]) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [cell["requests"] for cell in record["cells"]] == [1, 3]
    cell = record["cells"][1]
    assert set(cell["ms"]) == set(record["semantics"]) == {"base", "bdc", "peft one", "peft mixed"}
    p10, median, p90 = cell["ms"]["bdc"]
    assert p10 <= median <= p90 and cell["rank"] == 8
    assert cell["overhead"]["bdc"] == pytest.approx(median / cell["ms"]["base"][1] - 1, abs=0.02)
    assert cell["target"] == pytest.approx(1.5 * cell["floor"] + 0.03, abs=1e-3)
    assert {"device", "torch", "peft", "transformers", "commit", "date", "threads", "command"} <= set(record)
    assert f"{cell['overhead']['bdc']:.1%}" in capsys.readouterr().out


def test_experts_of_int8_take_their_turns(tiny: Path) -> None:
    made = bench.Bench(str(tiny), torch.float32, 2, 4, int8=True)
    cell = made.run(2, 0.01, peers=False)
    assert set(cell["ms"]) == {"base", "bdc", "bdc int8"}
    assert made.solvers["bdc int8"].model.get_submodule(made.stack.modules[0]).lora_a.dtype == torch.int8


def test_the_base_is_shared_and_stays_alone(tiny: Path) -> None:
    made = bench.Bench(str(tiny), torch.float32, 2, 4)
    base, solver = made.base, made.solver.model
    wrapped = [name for name, _ in solver.named_modules() if name.endswith(".base")]
    assert len(wrapped) == len(made.stack.modules) and not any(n.endswith(".base") for n, _ in base.named_modules())
    name = made.stack.modules[0]
    assert solver.get_submodule(name).base.weight.data_ptr() == base.get_submodule(name).weight.data_ptr()


def test_a_wrong_solver_is_not_timed(tiny: Path) -> None:
    made = bench.Bench(str(tiny), torch.float32, 2, 4)
    for name in made.stack.modules:
        made.solver.model.get_submodule(name).scaling *= 2
    with pytest.raises(BdcError, match=r"bdc: model\..* is wrong by"):
        made.run(2, 0.01, peers=True)


def test_wrong_experts_of_int8_are_not_timed(tiny: Path) -> None:
    made = bench.Bench(str(tiny), torch.float32, 2, 4, int8=True)
    made.solvers["bdc int8"].model.get_submodule(made.stack.modules[-1]).scaling *= 2
    with pytest.raises(BdcError, match=r"bdc int8: model\..* is wrong by"):
        made.run(2, 0.01, peers=False)


def test_every_request_has_its_own_adapter_when_prompts_are_read_in_groups(tiny: Path) -> None:
    cell = bench.Bench(str(tiny), torch.float32, 2, 4).run(40, 0.01, peers=True)
    assert {"bdc", "peft mixed"} < set(cell["ms"])


def test_bad_options(tiny: Path) -> None:
    with pytest.raises(InputError, match="--dtypes must be of float32, bfloat16, float16, got float8"):
        bench.main(["--dtypes", "float8"])
    for option, value in (
        ("experts", "0"),
        ("rank", "0"),
        ("threads", "0"),
        ("threads", "-1"),
        ("seconds", "0"),
        ("seconds", "nan"),
        ("seconds", "-1"),
    ):
        with pytest.raises(InputError, match=f"--{option} is .*; it must be "):
            bench.main([f"--{option}", value])
    for value in ("0", "1,-2", "x"):
        with pytest.raises(SystemExit, match="2"):
            bench.main(["--requests", value])


def test_a_model_that_is_nowhere_is_named_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFoundError, match="No model 'nope'"):
        bench.main(["--models", "nope"])
    assert capsys.readouterr().out == ""


def test_an_interruption_leaves_the_cells_before_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.Bench.run

    def interrupted(self: bench.Bench, requests: int, seconds: float, peers: bool) -> dict[str, object]:
        if requests == 2:
            raise KeyboardInterrupt
        return run(self, requests, seconds, peers)

    monkeypatch.setattr(bench.Bench, "run", interrupted)
    path = tmp_path / "new" / "solver.json"
    options = ["--models", str(tiny), "--dtypes", "float32", "--requests", "1,2", "--experts", "2", "--no-peers"]
    with pytest.raises(KeyboardInterrupt):
        bench.main([*options, "--seconds", "0.01", "--json", str(path)])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [cell["requests"] for cell in record["cells"]] == [1]
    assert set(record["semantics"]) == set(record["cells"][0]["ms"]) == {"base", "bdc"}
