"""The check of numbers that a user gives."""

import math
import numbers
from collections.abc import Callable


def check_number(
    name: str,
    value,
    rule: str,
    holds: Callable[[float], bool],
    *,
    or_schedule: bool = False,
) -> None:
    """Raises unless value is a finite number for which the rule holds.

    Arrays without axes pass, since they may be traced, and schedules where they may be.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not (math.isfinite(value) and holds(float(value))):
            raise ValueError(f"{name} must be {rule}, got {value}")
    elif getattr(value, "ndim", 0):
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
    elif not (hasattr(value, "dtype") or (or_schedule and callable(value))):
        kinds = "a number or an array"
        if or_schedule:
            kinds = "a number, an array or a schedule"
        raise TypeError(f"{name} must be {kinds}, got {value!r}")
