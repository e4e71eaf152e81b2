"""Recipe files: YAML, with changes from the command line, to a checked configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from atlantis.config.labels import RunConfig
from atlantis.config.maths import MathsRunConfig
from atlantis.errors import ConfigError
from atlantis.recipes import builtin_recipes
from atlantis.validation import validated

Recipe = RunConfig | MathsRunConfig


_MATHS = "maths"


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or built-in name, with ``a.b=value`` changes applied in order.

    Raises:
        ConfigError: There is no such recipe, it is no YAML, or a key or value is wrong.
    """
    path = builtin_recipes().get(name, Path(name))
    if not path.is_file():
        raise ConfigError(
            f"{name}: neither a recipe file nor a built-in one ({', '.join(builtin_recipes())})"
        )
    settings = _read_yaml(path)
    for change in changes:
        _change(settings, change)
    return validate_recipe(settings, where=str(path))


def validate_recipe(settings: Mapping[str, Any], *, where: str) -> Recipe:
    """Check a recipe's settings; the error names the key, and the nearest known one.

    Raises:
        ConfigError: A key or value is wrong.
    """
    kind = settings.get("kind")
    if kind not in (None, _MATHS):
        raise ConfigError(f"{where}: kind: {kind!r}: use {_MATHS}, or leave it out for labels")
    return validated(RunConfig if kind is None else MathsRunConfig, settings, where=where)


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing; this refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings: Any = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings")
    return settings


def _change(settings: dict[str, Any], change: str) -> None:
    """Apply one ``a.b=value``; the value is read as YAML."""
    place, equals, text = change.partition("=")
    if not equals or not place:
        raise ConfigError(f"--set {change}: write key.subkey=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {change}: the value is not valid YAML") from None
    *parents, last = place.split(".")
    target = settings
    for parent in parents:
        below = target.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {change}: {parent!r} holds a value, not settings")
        target = below
    target[last] = value
