"""Transactions and outcomes as bytes: positional msgpack, the same bytes on every machine.

Owns the bodies of SQL, DELETE, SCHEMA and EXPIRE log entries and the stored results; used where a transaction is proposed
and where it is applied. Must never change what an old body means: logs outlive releases, so version first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from incus_actors.model.transaction import Guard, Outcome, Statement, Transaction

_VERSION = 1

# msgspec can't tell text from blobs in a typed union, so values are decoded untyped and checked by hand.
_Row = tuple[Any, ...]


class _Body(msgspec.Struct, array_like=True, frozen=True, gc=False):
    version: int
    statements: tuple[tuple[str, _Row], ...]
    guards: tuple[tuple[str, _Row, tuple[_Row, ...], str], ...]
    topics: tuple[str, ...]
    fence_term: int | None
    min_schema: int = 0  #: since feature level 2; an older release would ignore it, so it isn't sent before


class _Result(msgspec.Struct, array_like=True, frozen=True, gc=False):
    status: str
    index: int
    label: str
    error: str
    rows: tuple[tuple[_Row, ...], ...]
    changed: tuple[int, ...]


_encoder = msgspec.msgpack.Encoder()
_body_decoder = msgspec.msgpack.Decoder(_Body)
_result_decoder = msgspec.msgpack.Decoder(_Result)
_expire_decoder = msgspec.msgpack.Decoder(tuple[int, int, int])


class BodyError(ValueError):
    """An entry body that this version can't read."""


def encode_transaction(transaction: Transaction) -> bytes:
    """Return the body of a log entry. Raises BodyError for values that SQLite or msgpack can't hold."""
    body = _Body(
        _VERSION,
        tuple((s.sql, tuple(s.parameters)) for s in transaction.statements),
        tuple((g.sql, tuple(g.parameters), tuple(tuple(r) for r in g.expected), g.label) for g in transaction.guards),
        tuple(transaction.topics),
        transaction.fence_term,
        transaction.min_schema,
    )
    _check_body(body)
    fields = msgspec.structs.astuple(body)
    try:
        return _encoder.encode(fields if transaction.min_schema else fields[:-1])
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise BodyError(f"transaction can't be encoded: {exc}") from exc


def _check_body(body: _Body) -> None:
    for _, parameters in body.statements:
        _check_values(parameters)
    for _, parameters, expected, _ in body.guards:
        _check_values(parameters)
        for row in expected:
            _check_values(row)


def _check_values(parameters: _Row) -> None:
    for value in parameters:
        if isinstance(value, bool) or not isinstance(value, int | float | str | bytes | None):
            raise BodyError(f"parameters are None, int, float, str or bytes, not {type(value).__name__}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise BodyError(f"integer {value} doesn't fit in 64 bits")


def decode_transaction(body: bytes, *, schema: bool) -> Transaction:
    """Return the transaction of an SQL, DELETE or SCHEMA entry. Raises BodyError."""
    try:
        found = _body_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BodyError(f"unreadable transaction: {exc}") from exc
    if found.version != _VERSION:
        raise BodyError(f"transaction format {found.version} is not known here")
    _check_body(found)
    return Transaction(
        statements=tuple(Statement(sql, parameters) for sql, parameters in found.statements),
        guards=tuple(Guard(*fields) for fields in found.guards),
        topics=found.topics,
        fence_term=found.fence_term,
        min_schema=found.min_schema,
        schema=schema,
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """Return what `_sessions` keeps and the digest covers."""
    return _encoder.encode(
        _Result(outcome.status, outcome.index, outcome.label, outcome.error, outcome.rows, outcome.changed)
    )


def decode_outcome(data: bytes) -> Outcome:
    """Return the outcome that `encode_outcome` wrote. Raises BodyError."""
    try:
        found = _result_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BodyError(f"unreadable outcome: {exc}") from exc
    return Outcome(found.status, found.index, found.label, found.error, found.rows, found.changed)


def encode_expire(cutoff_ms: int, settled: int) -> bytes:
    """Return the body of an EXPIRE entry: forget answered proposals made at or before `cutoff_ms`, but no answer that was
    given behind index `settled`: what it answers may still be repeated."""
    return _encoder.encode((_VERSION, cutoff_ms, settled))


def decode_expire(body: bytes) -> tuple[int, int]:
    """Return the cutoff of an EXPIRE entry in milliseconds and the settled index. Raises BodyError."""
    try:
        version, cutoff_ms, settled = _expire_decoder.decode(body)
    except msgspec.DecodeError as exc:
        raise BodyError(f"unreadable expiry: {exc}") from exc
    if version != _VERSION:
        raise BodyError(f"expiry format {version} is not known here")
    return cutoff_ms, settled
