"""In what one training differs from another, in words."""

from dataclasses import asdict
from typing import Any

from pipelines.config import TrainConfig
from pipelines.train_heads import load_head


def differences(ours: TrainConfig, other: TrainConfig) -> list[str]:
    """Return a line for each thing in which a training differs from another, streams, device and place left out.

    Args:
        ours: the one.
        other: the other, named in brackets.
    """
    left, right = _settled(ours), _settled(other)
    return [
        f"{key} {_word(left.get(key))} ({_word(right.get(key))})"
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]


def _settled(config: TrainConfig) -> dict[str, Any]:
    """Return everything that decides a training but its streams, by name; a head's settings with their defaults."""
    values = asdict(config)
    for name in ("device", "place", "streams", "settings"):
        values.pop(name)
    fit = values.pop("fit")
    return {**values, **fit, **asdict(load_head(config))}  # type: ignore[call-overload]


def _word(value: Any) -> str:
    """Return a value in a few marks; thousands apart."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " | ".join(_word(item) for item in value) or "none"
    return str(value)
