"""Packed linear layers: the same products, and nothing else about the model changes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from bdc.llm import load_model, packing
from bdc.llm.generate import generate
from bdc.llm.packing import PackedLinear, pack, using_packed

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
        with torch.inference_mode(), using_packed(layer):
            # Both round once to the dtype after a sum in float32.
            torch.testing.assert_close(layer(x), plain(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


@needs_onednn
@pytest.mark.parametrize("least", [1, 4])
def test_few_float32_rows_are_read_as_they_lie_where_that_is_faster(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_LEAST_ROWS", least)
    torch.manual_seed(0)
    layer = nn.Linear(96, 160)
    plain = copy.deepcopy(layer)
    pack(layer)
    assert isinstance(layer.packed, packing._Packed)
    layer.packed.tensor = packing._Packed(nn.Linear(96, 160).weight).tensor  # another's tells which is read
    for rows in (1, 3, 4, 8):
        x = torch.randn(rows, 96)
        with torch.inference_mode(), using_packed(layer):
            assert torch.equal(layer(x), plain(x)) == (rows < least)


@needs_onednn
def test_a_changed_weight_is_never_served_from_the_pack() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    pack(layer)
    x = torch.randn(4, 32)
    with torch.no_grad(), using_packed(layer):
        before = layer(x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        layer.weight = nn.Parameter(torch.zeros(32, 32))
        assert torch.equal(layer(x), layer.bias.expand(4, 32))


@needs_onednn
def test_changes_of_the_data_of_a_weight_are_seen() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 48, bias=False)
    pack(layer)
    x = torch.randn(4, 32)
    for change in (lambda: layer.weight.data.mul_(2), lambda: layer.weight.data.add_(1), lambda: layer.half().float()):
        change()
        with torch.no_grad():
            expected = nn.functional.linear(x, layer.weight)
            torch.testing.assert_close(layer(x), expected)
            with using_packed(layer):
                torch.testing.assert_close(layer(x), expected)
                assert layer.packed is not None and layer.packed.used  # packed anew
            assert not layer.packed.used
    layer.double()
    with using_packed(layer):
        assert layer.packed is None


def test_an_adapter_merged_into_a_packed_model_is_generated_from(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def tokens(*, packed: bool, merged: bool) -> list[int]:
        model, tokenizer = load_model(tiny, "float32")
        if packed:
            pack(model)
        if merged:
            torch.manual_seed(0)
            adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
            model = adapted.merge_and_unload()
        return generate(model, tokenizer, [[60, 7, 81]], max_new_tokens=16, temperature=0, seeds=[0])[0].tokens

    merged = tokens(packed=False, merged=True)
    assert tokens(packed=True, merged=True) == merged != tokens(packed=True, merged=False)


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
