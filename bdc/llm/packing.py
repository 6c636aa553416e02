"""Linear layers in the layout that oneDNN multiplies from, for inference on a CPU.

torch hands a weight matrix to the matrix product as it lies, and for the few rows of a decoding step most of the time
goes into reading it badly. Laid out once for the product, float32 layers run 1.4 to 3 times as fast at 8 to 96 rows
(bfloat16: 1.1 to 2), and never slower for more. For one to three rows float32's take half of the time on a Zen 5, but up
to 1.3 times as long on a Xeon: there they are read as they lie. It costs a second copy of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bdc.machine import cpu_field, memory_bytes

_LEAST_ROWS = 4 if cpu_field("vendor_id") == "GenuineIntel" else 1  # of float32
_ROWS = 32  # hint for the layout; any from 8 to 512 was equally good at 1 to 2048 rows
_SAMPLE = 16  # rows and columns of a weight that are compared with the packed ones


class _Packed:
    """A packed weight, and which state of the original it was made from. Copies and pickles of a model leave it out."""

    __slots__ = ("pointer", "sample", "tensor", "used", "version")

    def __init__(self, weight: Tensor) -> None:
        self.tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        self.pointer, self.version = weight.data_ptr(), weight._version
        self.sample = _sample(weight).clone()
        self.used = False

    def is_of(self, weight: Tensor) -> bool:
        return self.pointer == weight.data_ptr() and self.version == weight._version

    def renewed(self, weight: Tensor) -> _Packed | None:
        """This one if the weight is what it was, else one of the weight as it is now, or None."""
        if not _fits(weight) or weight.dtype != self.tensor.dtype:
            return None
        # Changes of weight.data show in neither the version nor the pointer.
        return self if self.is_of(weight) and torch.equal(self.sample, _sample(weight)) else _Packed(weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class PackedLinear(nn.Linear):
    """A linear layer that uses a packed copy of its weight within `using_packed`, where no gradient is wanted.

    The weight stays what it was: training, changes to it, moving it and saving it work; elsewhere it is a plain layer.
    """

    packed: _Packed | None

    def forward(self, input: Tensor) -> Tensor:
        packed = self.packed
        if (
            packed is None
            or not packed.used
            or torch.is_grad_enabled()
            or input.dtype != self.weight.dtype
            or input.numel() < (_LEAST_ROWS * self.in_features if input.dtype == torch.float32 else 1)
            or not packed.is_of(self.weight)
        ):
            return nn.functional.linear(input, self.weight, self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, packed.tensor, self.bias, "none", [], "")
        return output


@contextlib.contextmanager
def using_packed(model: nn.Module) -> Iterator[None]:
    """Inside, packed layers multiply from their packed weights; those of weights that have changed are made anew.

    What has changed is told by a few hundred elements of each weight, besides its version; inside, it must not be
    changed through its ``data``.
    """
    used = []
    for layer in model.modules():
        if isinstance(layer, PackedLinear) and layer.packed is not None:
            layer.packed = layer.packed.renewed(layer.weight)
            used += [layer.packed] if layer.packed is not None else []
    try:
        for packed in used:
            packed.used = True
        yield
    finally:
        for packed in used:
            packed.used = False


def pack(model: nn.Module) -> int:
    """Pack every plain linear layer of the model in place, if that is possible here and leaves enough memory.

    Only within `using_packed` do they run otherwise than before.

    Returns:
        How many layers were packed: 0 on a GPU, in float16, without oneDNN, or where the copy would take more than half
        of the memory that is available.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and _fits(module.weight)]
    if not layers or not torch.backends.mkldnn.is_available() or not _works(layers[0]):
        return 0
    needed = sum(layer.weight.nbytes for layer in layers)
    available = memory_bytes("MemAvailable")
    if available is not None and 2 * needed > available:
        return 0
    for layer in layers:
        layer.__class__ = PackedLinear
        layer.packed = _Packed(layer.weight)  # type: ignore[assignment]
    return len(layers)


def _sample(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    return weight.detach()[:: max(1, rows // _SAMPLE), :: max(1, columns // _SAMPLE)]


def _fits(weight: Tensor) -> bool:
    plain = not weight.is_inference() and type(weight) in (Tensor, nn.Parameter)
    return plain and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def _works(layer: nn.Linear) -> bool:
    """The operators are torch's own but not public: try them, and believe only a right product."""
    with torch.inference_mode():
        x = torch.linspace(-1, 1, 4 * layer.in_features).reshape(4, -1).to(layer.weight.dtype)
        expected = nn.functional.linear(x, layer.weight, layer.bias).float()
        try:
            packed = _Packed(layer.weight).tensor
            got = torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "").float()
        except (AttributeError, RuntimeError, NotImplementedError):
            return False
    return bool((got - expected).abs().max() <= 0.02 * expected.abs().max())
