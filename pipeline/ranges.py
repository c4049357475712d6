"""Numbers of a config that lie outside their range, told before any work begins."""

from __future__ import annotations

import math

from pipeline.errors import ConfigError


def require_between(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ConfigError naming the setting unless low <= value <= high; NaN lies nowhere."""
    if not low <= value <= high:
        limits = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} must be {limits}, not {value}")
