"""?filter= as Incus understands it: `name eq c1 and config.user.x ne 1`, checked against a real 6.0.4.

Owns parsing and matching. Called by list handlers through `filter_objects`. A filter comes from a client: it must
never cost more than a look at each object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from incus_actors.errors import BadRequestError, MemberError

T = TypeVar("T")

MATCHED_CHARACTERS_MAX = 4096
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S+)')
_COSTLY = re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:i)]")  #: repeated groups, back references, look-around
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Clause:
    """`[not] field operator value`, joined to what is left of it by `joint` ("and", "or", "" for the first)."""

    joint: str
    negated: bool
    field: str
    operator: str
    value: str


def _tokens(text: str) -> list[str]:
    found, end = [], 0
    for match in _TOKEN.finditer(text):
        token = match[2] if match[1] is None else match[1].replace('\\"', '"')
        if match[1] is None and token.startswith('"'):
            raise BadRequestError("Invalid filter: unterminated quote")
        found.append(token)
        end = match.end()
    if text[end:].strip():
        raise BadRequestError("Invalid filter: unterminated quote")
    return found


def parse_filter(text: str) -> list[Clause]:
    """Return the clauses, in order; none for a blank text. Raises BadRequestError, MemberError as Incus does."""
    tokens = _tokens(text)
    clauses: list[Clause] = []
    joint, position = "", 0
    while position < len(tokens):
        negated = tokens[position] == "not"
        position += negated
        field, operator, value = (*tokens[position : position + 3], None, None, None)[:3]
        if field is None or operator is None:
            raise BadRequestError("Invalid filter: clause has no operator")
        if value is None:
            raise BadRequestError("Invalid filter: clause has no value")
        if operator not in ("eq", "ne"):
            raise MemberError("Unsupported operation")
        clauses.append(Clause(joint, negated, field, operator, value))
        position += 3
        if position == len(tokens):
            return clauses
        joint = tokens[position]
        if joint not in ("and", "or"):
            raise BadRequestError("Invalid filter: invalid clause composition")
        position += 1
    if clauses:
        raise BadRequestError("Invalid filter: unterminated compound clause")
    return clauses


def _field(item: Any, path: str) -> Any:
    """Return the value at a dotted path; keys may have dots themselves (`config.user.x`)."""
    if isinstance(item, dict):
        if path in item:
            return item[path]
        head, dot, rest = path.partition(".")
        while dot:
            if head in item:
                return _field(item[head], rest)
            more, dot, rest = rest.partition(".")
            head = f"{head}.{more}"
    return _MISSING


def _matcher(value: str) -> Callable[[str], bool]:
    """Return a comparison as Incus': case means nothing, `.*` and other regular expressions match the whole text."""
    wanted = value.lower()
    if re.escape(value) == value.replace("-", "\\-") or len(value) > 256:
        return lambda text: text.lower() == wanted
    if _COSTLY.search(value):
        raise BadRequestError(f"Invalid filter: the expression {value} is too costly")
    anchored = value if "^" in value or "$" in value else f"^(?:{value})$"
    try:
        pattern = re.compile(anchored, re.IGNORECASE)
    except re.error:
        return lambda text: text.lower() == wanted
    return lambda text: text.lower() == wanted or pattern.search(text[:MATCHED_CHARACTERS_MAX]) is not None


def _matches(clause: Clause, matcher: Callable[[str], bool], item: Any) -> bool:
    found = _field(item, clause.field)
    if found is _MISSING or found is None:
        if found is _MISSING and clause.field.partition(".")[0] not in item:
            raise MemberError(f'Invalid type "invalid" for field "{clause.field}"')
        equal = False
    elif isinstance(found, bool):
        equal = clause.value.lower() == str(found).lower()
    elif isinstance(found, (dict, list)):
        equal = clause.value == msgspec.json.encode(found).decode()
    else:
        equal = matcher(str(found))
    return (equal if clause.operator == "eq" else not equal) != clause.negated


def filter_objects(objects: Iterable[T], text: str | None) -> list[T]:
    """Return those of `objects` (structs or dicts) that ?filter= lets through; all of them without one.

    Clauses count from left to right, `and` binds no tighter than `or`. Raises BadRequestError, MemberError.
    """
    clauses = [(clause, _matcher(clause.value)) for clause in parse_filter(text or "")]
    if not clauses:
        return list(objects)
    kept = []
    for found in objects:
        item = msgspec.to_builtins(found)
        result = True
        for clause, matcher in clauses:
            if clause.joint == "or":
                result = result or _matches(clause, matcher, item)
            else:
                result = result and _matches(clause, matcher, item)
        if result:
            kept.append(found)
    return kept
