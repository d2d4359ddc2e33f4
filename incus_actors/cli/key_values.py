"""`set`, `unset`, `get` and `edit` of objects with keys and properties.

Owns the parsing of key=value arguments and of edited YAML, with the stock client's words; called by the nouns.
"""

from __future__ import annotations

from typing import Any

import click


def parse(arguments: tuple[str, ...]) -> dict[str, str]:
    """Return key → value of "k=v"…, or of the old form "k v". Raises ClickException."""
    if len(arguments) == 2 and "=" not in arguments[0]:
        return {arguments[0]: _value(arguments[1])}
    found = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise click.ClickException(f"Invalid key=value configuration: {argument}")
        found[key] = _value(value)
    return found


def _value(text: str) -> str:
    if text != "-":
        return text
    import sys

    return sys.stdin.read()


def read_yaml(text: str) -> dict[str, Any]:
    """Return the mapping in `text`. Raises ClickException with the line of the mistake."""
    import yaml

    try:
        read = yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark is not None else 1
        raise click.ClickException(f"yaml: line {line}: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise click.ClickException(f"yaml: {problem}") from None
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise click.ClickException("yaml: a mapping of keys to values is expected")
    return read


def config_strings(config: Any) -> dict[str, str]:
    """Return a config map of YAML with all values as text. Raises ClickException."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise click.ClickException('yaml: "config" is not a map')
    return {str(key): as_text(value, str(key)) for key, value in config.items()}


def as_text(value: Any, where: str) -> str:
    """Return a YAML scalar as Incus keeps it. Raises ClickException for lists and maps."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        raise click.ClickException(f'yaml: the value of "{where}" must be a text')
    return str(value)
