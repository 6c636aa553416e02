"""Bad arguments are refused with what was got and what is wanted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bdc.errors import InputError
from bdc.ops import rankwise_lora, rankwise_lora_


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


def test_unknown_backend(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_OPS_BACKEND", "abacus")
    with pytest.raises(InputError, match="BDC_OPS_BACKEND must be one of cpp, cuda, triton, torch, got abacus"):
        rankwise_lora(*problems.make().arguments)
