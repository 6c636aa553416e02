"""Packed linear layers: the same products, and nothing else about the model changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bdc.llm.packing import PackedLinear, pack

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN; packing is then off"
)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same(dtype: torch.dtype, bias: bool) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this CPU: it needs AVX-512; nothing is packed then")
    torch.manual_seed(0)
    layer = nn.Linear(96, 160, bias=bias).to(dtype)
    plain = copy.deepcopy(layer)
    assert pack(layer) == 1 and isinstance(layer, PackedLinear) and layer.packed is not None
    for shape in [(1, 96), (7, 96), (3, 5, 96), (300, 96), (0, 96)]:
        x = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            # Both round once to the dtype after a sum in float32.
            torch.testing.assert_close(layer(x), plain(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


@needs_onednn
def test_a_changed_weight_is_never_served_from_the_pack() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    pack(layer)
    x = torch.randn(4, 32)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        layer.weight = nn.Parameter(torch.zeros(32, 32))
        assert torch.equal(layer(x), layer.bias.expand(4, 32))


@needs_onednn
def test_training_copies_and_state_are_those_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    plain = copy.deepcopy(model)
    assert pack(model) == 2
    assert pack(model) == 0
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 8)
    model(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()):
            torch.testing.assert_close(twin(x.to(twin[0].weight.dtype)).float(), plain(x))


def test_float16_is_left_alone() -> None:
    layer = nn.Linear(8, 8).half()
    assert pack(layer) == 0 and type(layer) is nn.Linear
