"""What the product is measured against. Each form adds the product to y; what it returns is checked before it is timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bdc.ops import quantize_experts, rankwise_lora_
from bdc.ops.bench.cells import Cell, Inputs

Call = Callable[[], Any]

SAME = "the same product"
UNGATED = "one rank-R adapter for all, ungated: less work"
PER_REQUEST = "one adapter per request, its gate merged into A beforehand"
INT8 = "ours on experts of int8, their scales folded into the gates beforehand"


@dataclass(frozen=True)
class Peer:
    """A form, and what it needs.

    Args:
        make: (inputs, y) to a call that adds the product to y, or returns the sum.
        given: what the form is given of the inputs, and what it is checked against.
        returns: the call returns the sum.
        evenly: every request must have as many tokens.
    """

    name: str
    semantics: str
    make: Callable[[Inputs, Tensor], Call]
    package: str = ""
    returns: bool = False
    most_tokens: int = 1 << 30
    evenly: bool = False
    quick: bool = True
    given: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)

    @property
    def missing(self) -> bool:
        return bool(self.package) and importlib.util.find_spec(self.package) is None

    def runs(self, cell: Cell) -> bool:
        return cell.tokens <= self.most_tokens and not (self.evenly and cell.tokens % cell.requests)


def _bdc(inputs: Inputs, y: Tensor) -> Call:
    x, a, b, g, rows = inputs.x, inputs.a, inputs.b, inputs.g, inputs.rows
    return lambda: rankwise_lora_(y, x, a, b, g, rows, 1.0)


def _int8(inputs: Inputs) -> Inputs:
    experts = quantize_experts(inputs.a, inputs.b)
    return replace(inputs, a=experts.lora_a, b=experts.lora_b, g=experts.fold(inputs.g))


def _eager(inputs: Inputs, y: Tensor) -> Call:
    x, a, b, gate = inputs.x, inputs.a, inputs.b, inputs.gate
    return lambda: y.add_((x @ a.T * gate) @ b.T)


def _addmm(inputs: Inputs, y: Tensor) -> Call:
    x, a, b, gate = inputs.x, inputs.a, inputs.b, inputs.gate
    return lambda: y.addmm_(x @ a.T * gate, b.T)


def _hoisted(inputs: Inputs, y: Tensor) -> Call:
    """As :func:`_addmm`, with all that a careful caller keeps between calls: the transposes, and room for h."""
    x, a, b, gate = inputs.x, inputs.a.T, inputs.b.T, inputs.gate
    h = x.new_empty(len(x), a.shape[1])

    def call() -> Tensor:
        torch.mm(x, a, out=h)
        return y.addmm_(h.mul_(gate), b)

    return call


def _two_gemms(y: Tensor, x: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    return y.addmm_(x @ a.T * gate, b.T)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_two_gemms, dynamic=True)


def _compile(inputs: Inputs, y: Tensor) -> Call:
    x, a, b, gate = inputs.x, inputs.a, inputs.b, inputs.gate
    call = _compiled()
    return lambda: call(y, x, a, b, gate)


class _Given(torch.nn.Module):
    """A base layer whose output is there already: what is timed is what PEFT adds."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y.view(*x.shape[:-1], -1)


def _peft_layer(inputs: Inputs, y: Tensor, adapters: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """PEFT's LoRA layer with these (A, B) by name."""
    from peft import LoraConfig, get_peft_model

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(inputs.x.shape[1], y.shape[1], bias=False, dtype=y.dtype, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    rank = len(inputs.a)
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=["layer"], init_lora_weights=False)
    names = list(adapters)
    model: Any = get_peft_model(Model(), config, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model.layer
    layer.base_layer = _Given(y)
    for name, (a, b) in adapters.items():
        layer.lora_A[name].weight = torch.nn.Parameter(a)
        layer.lora_B[name].weight = torch.nn.Parameter(b)
    model.set_adapter(names[0])
    return model.eval().requires_grad_(False).base_model.model.layer


def _peft_one(inputs: Inputs, y: Tensor) -> Call:
    layer = _peft_layer(inputs, y, {"a0": (inputs.a, inputs.b)})
    return lambda: layer(inputs.x)


def _peft_mixed(inputs: Inputs, y: Tensor) -> Call:
    adapters = {
        f"a{row}": ((inputs.a.float() * gate[:, None]).to(inputs.a.dtype), inputs.b)
        for row, gate in enumerate(inputs.g)
    }
    layer = _peft_layer(inputs, y, adapters)
    names = [f"a{row}" for row in range(len(inputs.g))]
    batch = inputs.x.view(len(inputs.g), -1, inputs.x.shape[1])
    return lambda: layer(batch, adapter_names=names)


def _vllm(inputs: Inputs, y: Tensor) -> Call:
    from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_shrink

    a = torch.stack([(inputs.a.float() * gate[:, None]).to(inputs.a.dtype) for gate in inputs.g])
    b = torch.stack([inputs.b] * len(inputs.g))
    place, x = inputs.rows.long(), inputs.x

    def call() -> None:
        # A float32 buffer for every call, as PunicaWrapperCPU.add_lora_linear has it.
        h = torch.zeros((len(x), a.shape[1]), dtype=torch.float32)
        bgmv_shrink(x, a, h, place, 1.0)
        bgmv_expand(h, b, y, place, add_inputs=True)

    return call


PEERS = (
    Peer("bdc", SAME, _bdc),
    Peer("bdc int8", INT8, _bdc, given=_int8),
    Peer("eager", SAME, _eager),
    Peer("addmm_", SAME, _addmm),
    Peer("hoisted", SAME, _hoisted),
    Peer("compile", SAME, _compile, quick=False),
    Peer("peft one", UNGATED, _peft_one, "peft", returns=True, most_tokens=64),
    Peer("peft mixed", PER_REQUEST, _peft_mixed, "peft", returns=True, most_tokens=64, evenly=True),
    # Gathers A and B for every token: [T, R, d_in] and [T, d_out, R].
    Peer("vllm cpu", PER_REQUEST, _vllm, "vllm", most_tokens=64),
)
TORCH_FORMS = ("eager", "addmm_", "hoisted", "compile")
