"""YAML as the stock client writes it: unindented lists, double quotes where a string would read as something else.

Owns the dialect (that of go-yaml v2); called by output.py, show, edit and `admin init`. Imports PyYAML, so it is
itself imported only where YAML is wanted.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from incus_actors.cli.output import natural_key
from incus_actors.cli.shapes import Keys

#: Plain words that a YAML reader takes for something other than a string.
_NOT_A_STRING = re.compile(
    r"""^(?:
      ~ | null | Null | NULL
    | y|Y|yes|Yes|YES|on|On|ON|true|True|TRUE
    | n|N|no|No|NO|off|Off|OFF|false|False|FALSE
    | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
    | [-+]?[0-9][0-9_]*
    | [-+]?0b[01_]+ | [-+]?0o?[0-7_]+ | [-+]?0x[0-9a-fA-F_]+
    | [-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?
    | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?
    | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}.*)?
    )$""",
    re.VERBOSE,
)

_STR = "tag:yaml.org,2002:str"


class Plain(str):
    """A text that is written without quotes, such as a time."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False if flow else indentless)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    if "\n" in value and all(ord(char) <= 0xFFFF for char in value):
        return dumper.represent_scalar(_STR, value, style="|")
    if _NOT_A_STRING.match(value) or not value or any(ord(char) > 0xFFFF for char in value):
        return dumper.represent_scalar(_STR, value, style='"')
    return dumper.represent_scalar(_STR, value)


def _plain(dumper: yaml.SafeDumper, value: Plain) -> yaml.ScalarNode:
    return dumper.represent_scalar(_STR, str(value))


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = str(int(value)) if value == int(value) and abs(value) < 1e21 else repr(value)
    return dumper.represent_scalar(_STR, text)


def _word(dumper: yaml.SafeDumper, value: bool | None) -> yaml.ScalarNode:
    return dumper.represent_scalar(_STR, "null" if value is None else str(value).lower())


def _keys(dumper: yaml.SafeDumper, value: Keys) -> yaml.MappingNode:
    rows = sorted(value.items(), key=lambda item: natural_key(item[0]))
    return dumper.represent_mapping("tag:yaml.org,2002:map", rows)


def _mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items())


# Anything may be written plain: what must not be was given a style above.
_Dumper.yaml_implicit_resolvers = {}
_Dumper.add_implicit_resolver(_STR, re.compile(r"^[\s\S]*$"), None)
_Dumper.add_representer(bool, _word)
_Dumper.add_representer(type(None), _word)
_Dumper.add_representer(int, _number)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(Plain, _plain)
_Dumper.add_representer(float, _number)
_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(Keys, _keys)


def dump(value: Any) -> str:
    """Return YAML text that ends with a line end; the keys of dictionaries keep their order."""
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, default_flow_style=False, sort_keys=False)
