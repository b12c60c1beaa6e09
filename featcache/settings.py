"""Settings of plug-ins: a plug-in is a frozen dataclass, and its fields are its settings.

Values come from YAML, presets or ``--set NAME.KEY=VALUE``; pydantic checks and converts them, so
that a wrong name or type is caught before anything expensive starts.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_origin, get_type_hints

from featcache.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return an instance of a dataclass from plain values.

    Args:
        cls: a dataclass; its field annotations say what is accepted.
        values: field name to value. Text is converted where the field is a number or a flag; one value will do where
            the field is a tuple.
        where: what is being configured, for error messages, such as ``"stream log_mel"``.

    Raises:
        ConfigError: an unknown field (the message lists the known ones) or a value that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{where} has no setting {', '.join(unknown)}. Its settings are: {', '.join(known) or 'none'}."
        )
    hints = get_type_hints(cls)
    given = {
        name: (value,) if get_origin(hints[name]) is tuple and not isinstance(value, list | tuple) else value
        for name, value in values.items()
    }
    try:
        return TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']} (got {item['input']!r})"
            if item["loc"]
            else item["msg"].removeprefix("Value error, ")  # of the plug-in's own checks: a sentence
            for item in error.errors()
        )
        raise ConfigError(f"{where}: {problems.rstrip('.')}.") from None
