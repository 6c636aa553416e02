"""Bad arguments are refused with what was got and what is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bdc.errors import InputError
from bdc.ops import (
    checks,
    rankwise_lora,
    rankwise_lora_,
    rankwise_lora_linear,
    rankwise_lora_pools,
    rankwise_lora_pools_,
    rankwise_lora_slices,
    rankwise_lora_slices_,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(37)}, r"x must be \[T, d_in\], got \[37\]"),
        ({"x": torch.zeros(7, 37, dtype=torch.int32)}, "x must be float32.*got torch.int32"),
        ({"a": torch.zeros(13, 36)}, r"lora_a must be \[R, 37\], got \[13, 36\]"),
        ({"b": torch.zeros(29, 12)}, r"lora_b must be .* R = 13 .*got \[29, 12\]"),
        ({"a": torch.zeros(13, 37).half()}, "lora_a must be torch.float32.*got torch.float16"),
        ({"g": torch.zeros(4, 12)}, r"rank_weights must be \[N, 13\], got \[4, 12\]"),
        ({"g": torch.zeros(4, 13).half()}, "rank_weights must be float32.*got torch.float16"),
        ({"rows": torch.zeros(6, dtype=torch.int32)}, r"token_to_row must be \[7\].*got \[6\]"),
        ({"rows": [0] * 7}, "token_to_row must be a tensor or None, got list"),
        ({"rows": torch.zeros(7)}, "token_to_row must be int32 or int64, got torch.float32"),
        ({"rows": torch.tensor([0, 1, 2, 3, 4, 0, 0])}, r"token_to_row must be in \[-1, 4\).*got 4"),
        ({"rows": torch.tensor([0, 1, -2, 3, 0, 0, 0])}, r"token_to_row must be in \[-1, 4\).*got -2"),
        ({"rows": None}, r"1 row or one per token \(7\), got 4"),
    ],
)
def test_message(problems: SimpleNamespace, change: dict[str, object], message: str) -> None:
    problem = problems.make()
    for name, value in change.items():
        setattr(problem, name, value)
    with pytest.raises(InputError, match=message):
        rankwise_lora(*problem.arguments)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["y", "x", "lora_a", "lora_b", "rank_weights"])
def test_arrays_that_are_no_tensors_are_named(problems: SimpleNamespace, name: str, grad: bool) -> None:
    problem = problems.make()
    x, a, b, g, rows, _ = problem.arguments
    named = {"y": problem.y, "x": x, "lora_a": a, "lora_b": b, "rank_weights": g}
    named[name] = named[name].numpy()
    with torch.set_grad_enabled(grad), pytest.raises(InputError, match=f"^{name} must be a tensor, got ndarray$"):
        rankwise_lora_(*named.values(), rows)
    del named["y"]
    if name != "y":
        with torch.set_grad_enabled(grad), pytest.raises(InputError, match=f"^{name} must be a tensor, got ndarray$"):
            rankwise_lora(*named.values(), rows)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["y", "x", "lora_a", "lora_b", "rank_weights", "row_to_pool"])
def test_lists_that_are_no_tensors_are_named_by_every_form(name: str, autocast: bool) -> None:
    tensors = {"x": torch.zeros(3, 8), "lora_a": torch.zeros(4, 8), "lora_b": torch.zeros(6, 4)}
    tensors |= {"rank_weights": torch.zeros(1, 4)}
    pools = tensors | {"lora_a": torch.zeros(1, 4, 8), "lora_b": torch.zeros(1, 6, 4)}
    y, row_to_pool = {"y": torch.zeros(3, 6)}, {"row_to_pool": torch.zeros(1, dtype=torch.int32)}
    forms: list[tuple[Callable[..., object], dict[str, object]]] = [
        (rankwise_lora, {**tensors}),
        (rankwise_lora_, {**y, **tensors}),
        (rankwise_lora_linear, {**tensors, "weight": torch.zeros(6, 8), "bias": None}),
        (rankwise_lora_slices, {**tensors, "ends": [6]}),
        (rankwise_lora_slices_, {**y, **tensors, "ends": [6]}),
        (rankwise_lora_pools, {**pools, **row_to_pool}),
        (rankwise_lora_pools_, {**y, **pools, **row_to_pool}),
    ]
    for form, given in forms:
        for wrong in ([1.0], None) if name in given else ():
            with (
                torch.no_grad(),
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                pytest.raises(InputError, match=f"^{name} must be a tensor, got {type(wrong).__name__}$"),
            ):
                form(**given | {name: wrong})
        for scaling, words in (("2", "a number, got '2'"), (1j, "a number, got 1j"), (10**400, "finite, got 1000")):
            with pytest.raises(InputError, match=f"^scaling must be {words}"):
                form(**given, scaling=scaling)


@pytest.mark.parametrize("ends", [None, 6, [6.0], (6.0,), ["6"], torch.zeros(())])
def test_ends_that_are_no_numbers(ends: object) -> None:
    x, a, b, g = torch.zeros(3, 8), torch.zeros(4, 8), torch.zeros(6, 4), torch.zeros(1, 4)
    for tensors in ((x, a, b, g), (x.double(), a.double(), b.double(), g)):
        with pytest.raises(InputError, match=r"^ends must be whole numbers"):
            rankwise_lora_slices(*tensors, ends)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ends", [[2, 6], (2, 6), iter([2, 6]), torch.tensor([2, 6]), np.array([2, 6]), (np.int64(2), 6)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_any_sequence(ends: object, dtype: torch.dtype) -> None:
    ends = copy.copy(ends)
    x, a, b, g = (torch.randn(n, m).to(dtype) for n, m in ((3, 8), (8, 8), (6, 4), (1, 8)))
    expected = rankwise_lora_slices(x, a, b, g, [2, 6])
    assert torch.equal(rankwise_lora_slices(x, a, b, g, ends), expected)  # type: ignore[arg-type]


def test_sparse_tensors_are_named() -> None:
    x, a, b, g = torch.ones(3, 8), torch.ones(4, 8), torch.ones(6, 4), torch.ones(1, 4)
    with pytest.raises(InputError, match=r"^x must be a dense tensor, got the layout torch.sparse_coo"):
        rankwise_lora(x.to_sparse(), a, b, g)
    with pytest.raises(InputError, match=r"^lora_a must be a dense tensor"):
        rankwise_lora(x, a.to_sparse(), b, g)


def test_output(problems: SimpleNamespace) -> None:
    problem = problems.make(d_in=29)
    with pytest.raises(InputError, match=r"y must be \[7, 29\], got \[7, 28\]"):
        rankwise_lora_(torch.zeros(7, 28), *problem.arguments)
    with pytest.raises(InputError, match=r"y must be torch.float32 .*got torch.float64"):
        rankwise_lora_(problem.y.double(), *problem.arguments)
    with pytest.raises(InputError, match="y must not share memory with x"):
        rankwise_lora_(problem.x, *problem.arguments)
    with pytest.raises(InputError, match="expanded"):
        rankwise_lora_(torch.zeros(1, 29).expand(7, 29), *problem.arguments)
    with pytest.raises(InputError, match="no gradient"):
        rankwise_lora_(problem.y, problem.x.requires_grad_(), *problem.arguments[1:])


def _forms() -> dict[str, Callable[..., object]]:
    return {"eager": rankwise_lora_, "operator": torch.ops.bdc.rankwise_lora_}


@pytest.mark.parametrize("form", _forms())
@pytest.mark.parametrize("name", ["x", "a", "b", "g", "rows"])
def test_shared_memory_is_refused_before_anything_is_written(
    problems: SimpleNamespace, backend: str, form: str, name: str
) -> None:
    problem = problems.make(tokens=8, d_in=8, d_out=8, rank=8, requests=8)
    problem.rows.clamp_min_(0)
    storage = torch.randn(16 * 8)
    y = storage[4 : 4 + 64].view(8, 8)
    shared = storage[40 : 40 + 64].view(8, 8)
    if name == "rows":
        shared = storage.view(torch.int32)[40:48].zero_()
    else:
        shared.copy_(getattr(problem, name))
    setattr(problem, name, shared)
    before = storage.clone()
    wanted = {"a": "lora_a", "b": "lora_b", "g": "rank_weights", "rows": "token_to_row"}.get(name, name)
    with pytest.raises(InputError, match=f"y must not share memory with {wanted}"):
        _forms()[form](y, *problem.arguments)
    assert torch.equal(storage.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("form", _forms())
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling": float("nan")}, "scaling must be finite, got nan"),
        ({"scaling": float("inf")}, "scaling must be finite, got inf"),
        ({"scaling": 1e39}, r"scaling must be finite in float32, got 1e\+39"),
        ({"rows": torch.tensor([0, 1, 2, 3, 0, 1, 4])}, r"token_to_row must be in \[-1, 4\).*got 4"),
        ({"rows": torch.tensor([0, 1, 2, 3, 0, 1, -2], dtype=torch.int32)}, r"token_to_row must be in .*got -2"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(
    problems: SimpleNamespace, backend: str, form: str, change: dict[str, object], message: str
) -> None:
    problem = problems.make()
    for name, value in change.items():
        setattr(problem, name, value)
    before = problem.y.clone()
    with pytest.raises(InputError, match=message):
        _forms()[form](problem.y, *problem.arguments)
    assert torch.equal(problem.y, before)
    with pytest.raises(InputError, match=message):
        rankwise_lora(*problem.arguments)
    leaf = problem.x.requires_grad_()
    with pytest.raises(InputError, match=message):
        rankwise_lora(leaf, *problem.arguments[1:])


def test_unknown_backend(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_OPS_BACKEND", "abacus")
    with pytest.raises(InputError, match="BDC_OPS_BACKEND must be one of cpp, cuda, triton, torch, got abacus"):
        rankwise_lora(*problems.make().arguments)


def test_values_on_a_gpu_are_checked_when_asked_for(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert checks.reads_values(torch.device("cpu")) and not checks.reads_values(gpu)
    for off in ("", "0"):
        monkeypatch.setenv("BDC_OPS_CHECK", off)
        assert not checks.reads_values(gpu)
    monkeypatch.setenv("BDC_OPS_CHECK", "1")
    assert checks.reads_values(gpu)
