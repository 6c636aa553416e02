from __future__ import annotations

from typing import Any

import pytest

from bdc.disentangle import RELEASE, DisentangleSettings
from bdc.errors import InputError


@pytest.mark.parametrize(
    "field",
    [
        {"k": 0},
        {"k_range": (5, 3)},
        {"rank": 0},
        {"dropout": 1.0},
        {"lr": 0.0},
        {"target_modules": ()},
        {"target_modules": "all-linear"},
        {"dtype": "fp8"},
        {"loss_on": "prompt"},
    ],
)
def test_bad_values_name_their_field(field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"disentangle.{next(iter(field))}"):
        DisentangleSettings(**field)


def test_release_figures() -> None:
    assert (RELEASE.k, RELEASE.rank, RELEASE.alpha, RELEASE.lr, RELEASE.batch_size) == (3, 8, 16.0, 1e-3, 64)
    assert RELEASE.target_modules == ("q_proj", "v_proj")
