"""A history of events that a member left behind, stepped through a core again.

Owns the replay and its text; `incus-actors simulate --history` prints it. The file is read by
consensus/history_file.py. Must never promise more than the file holds: where the beginning is a state in the middle
of a life, it says what was not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.history import whole
from incus_actors.consensus.history_file import HistoryContent, HistoryError
from incus_actors.consensus.messages import Append, Envelope
from incus_actors.consensus.state_mark import StateMark, rebuild

_SHOWN = 60  #: characters of one value


@dataclass(frozen=True, slots=True)
class Step:
    """One event and what the core made of it. `broken`: why it could not be stepped at all."""

    now_ms: int
    event: ev.Event
    effects: tuple[fx.Effect, ...]
    role: str
    term: int
    commit: int
    broken: str = ""


def replay(content: HistoryContent) -> Iterator[Step]:
    """Step every event, the first one that a core can't take being the last. Raises HistoryError when there is
    nothing to begin from."""
    if content.mark is None:
        raise HistoryError("the history does not say from which state its events went on")
    try:
        core = rebuild(content.mark)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise HistoryError(f"no core can begin from the state in the history: {error}") from error
    for heard in content.events:
        event = whole(heard)
        try:
            effects = tuple(core.step(heard.now_ms, event))
        except Exception as error:  # whatever it is, it is what the file was kept for
            yield _step(core, heard.now_ms, event, (), f"{type(error).__name__}: {error}")
            return
        yield _step(core, heard.now_ms, event, effects)


def _step(core: Core, now_ms: int, event: ev.Event, effects: tuple[fx.Effect, ...], broken: str = "") -> Step:
    return Step(now_ms, event, effects, core.role.value, core.term, core.commit, broken)


def beginning(mark: StateMark) -> str:
    """Say from which state the events went on, and what of it is not known."""
    durable = mark.durable
    text = (
        f"member {durable.member_id} of epoch {durable.epoch}: {mark.role.value} in term {durable.hard.term}, leader "
        f"{mark.leader or 'unknown'}, log {durable.snapshot.index + 1}–{durable.snapshot.index + len(durable.entries)}, "
        f"committed {mark.commit}, applied {durable.applied}"
    )
    if mark.whole:
        return f"{text}; from the start of the daemon"
    known = (
        "nothing was being written or sent then" if mark.quiet else "what was being written and sent then is missing"
    )
    return (
        f"{text}; in the middle of its life: earlier events are gone, {known}, requests of before are unknown, and a "
        "leader has no entries of before for a member that lags"
    )


def line(step: Step, since_ms: int) -> str:
    """Return a step as one line."""
    state = f"{step.role} term {step.term} commit {step.commit}"
    did = f"  FAILED {step.broken}" if step.broken else "".join(f"  {_effect(effect)}" for effect in step.effects)
    return f"{step.now_ms - since_ms:>8} ms  {_event(step.event):<48} -> {state}{did}"


def _event(event: ev.Event) -> str:
    if isinstance(event, ev.Receive):
        return f"{_message(event.envelope)} from {event.envelope.source}"
    return _named(event)


def _effect(effect: fx.Effect) -> str:
    match effect:
        case fx.Send(envelope):
            return f"Send {_message(envelope)} to {envelope.destination}"
        case fx.WriteLog():
            hard = "" if effect.hard is None else f" vote {effect.hard.vote} in term {effect.hard.term}"
            cut = "" if effect.truncate_from is None else f" truncate {effect.truncate_from}"
            then = "".join(f"  then {_effect(send)}" for send in effect.then)
            return f"WriteLog {effect.write_id}{hard}{cut} {len(effect.entries)} entries{then}"
        case fx.Apply(entries):
            return f"Apply {entries[0].index}–{entries[-1].index}"
        case fx.Count(name, labels, amount):
            return f"Count {name}{''.join(f' {key}={value}' for key, value in labels)} +{amount}"
        case _:
            return _named(effect)


def _message(envelope: Envelope) -> str:
    message = envelope.message
    text = f"{type(message).__name__} term {envelope.term}"
    if isinstance(message, Append):
        return f"{text} after {message.previous_index} +{len(message.entries)} commit {message.commit}"
    return f"{text} {_values(message)}"


def _named(value: object) -> str:
    return f"{type(value).__name__} {_values(value)}".rstrip()


def _values(value: object) -> str:
    """The plain fields of a dataclass; what is long is cut."""
    told = []
    for field in fields(value):  # type: ignore[arg-type]
        content = getattr(value, field.name)
        text = content.hex() if isinstance(content, bytes) else str(content)
        told.append(f"{field.name}={text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}")
    return " ".join(told)
