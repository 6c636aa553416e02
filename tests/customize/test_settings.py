from __future__ import annotations

from typing import Any

import pytest

from bdc.customize import CustomizeSettings
from bdc.errors import InputError


@pytest.mark.parametrize(
    "field",
    [{"weighting": "ranks"}, {"sharing": "none"}, {"ablations": ("expert_gate",)}, {"hidden": 0}, {"lr": 0.0}],
)
def test_bad_values_name_their_field(field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"customize.{next(iter(field))}"):
        CustomizeSettings(**field)
