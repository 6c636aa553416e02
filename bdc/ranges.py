"""Checks of values in settings, so that a wrong one is refused where it is written and not hours later."""

from __future__ import annotations

import argparse
import math
from typing import Any, get_args, get_type_hints

from bdc.errors import InputError

MOST = 2**31 - 1  # of whole numbers: fits every library's counters
MOST_SEED = 2**32 - 1  # NumPy's and scikit-learn's limit


def check_ranges(
    settings: Any, where: str, *names: str, low: float, high: float = MOST, above: bool = False, below: bool = False
) -> None:
    """Check that fields of a settings object lie in [``low``, ``high``]; NaN lies nowhere.

    Args:
        where: put before a field's name in the message, such as ``boost.``.
        above: ``low`` itself is not allowed.
        below: ``high`` itself is not allowed; with ``high = math.inf``, any finite number is.

    Raises:
        InputError: one does not; the message has the field, its value and what it may be.
    """
    for name in names:
        value = getattr(settings, name)
        too_low = not (value > low if above else value >= low)
        if too_low or not (value < high if below else value <= high):
            least = f"above {low:g}" if above else f"at least {low:g}"
            most = "finite" if math.isinf(high) else f"below {high:g}" if below else f"at most {high:.10g}"
            raise InputError(f"{where}{name} is {value}; it must be {least if too_low else most}")


def check_choices(settings: Any, where: str, *names: str) -> None:
    """Check that fields of a settings object, all of type ``Literal``, have one of its values.

    Raises:
        InputError: one does not.
    """
    hints = get_type_hints(type(settings))
    for name in names:
        value, choices = getattr(settings, name), get_args(hints[name])
        if value not in choices:
            raise InputError(f"{where}{name} is {value!r:.100}; it must be {' or '.join(choices)}")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers from 1 on with commas between, as an option of a command has them.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or max(found) > MOST:
        raise argparse.ArgumentTypeError(f"must be whole numbers from 1 to {MOST} with commas between, got {text:.100}")
    return found
