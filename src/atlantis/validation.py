"""Settings checked by pydantic: the first thing that is wrong, in one line."""

import difflib
from collections.abc import Mapping
from string import Formatter
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from atlantis.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], settings: Mapping[str, Any], *, where: str) -> _Model:
    """Settings as a checked configuration; the error says ``where`` they came from.

    Raises:
        ConfigError: A key or value is wrong.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, model)}") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first validation error in one line: where, what, and the nearest known key."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}{_hint(str(first['loc'][-1]), _known_keys(model))}"
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        tags, tag = str(context["expected_tags"]).replace("'", "").split(", "), str(context["tag"])
        return f"{place}: unknown {tag!r}{_hint(tag, set(tags))}; choose {', '.join(tags)}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{place}: {message}{shown}" if place else f"{message}{shown}"


def _hint(key: str, known: set[str]) -> str:
    # A key may be right and only stand in the wrong place: then another one has to be very near.
    cutoff = 0.8 if key in known else 0.5
    near = difflib.get_close_matches(key, sorted(known - {key}), n=1, cutoff=cutoff)
    if near:
        return f"; did you mean {near[0]!r}?"
    return "; it belongs to another section" if key in known else ""


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Names of all settings anywhere in a configuration."""
    found: set[str] = set()
    schema = model.model_json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        found |= set(part.get("properties", {}))
    return found


def check_template(template: str, *, allowed: tuple[str, ...], required: str) -> None:
    """Refuse fields that cannot be filled, and a template that leaves out what matters.

    Raises:
        ValueError: It says why, and what the template may hold.
    """
    wanted = " ".join(f"{{{name}}}" for name in allowed)
    try:
        fields = [part[1] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"template {template!r}: {error}; write a brace as {{{{ or }}}}"
        ) from error
    for field in fields:
        if field not in allowed:
            raise ValueError(f"template {template!r}: unknown field {{{field}}}; use {wanted}")
    if required not in fields:
        raise ValueError(f"template {template!r}: {{{required}}} is missing; use {wanted}")
