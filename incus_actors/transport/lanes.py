"""The two lanes of a member as one thing: its keys, where it listens, and the string that others dial.

Owns `transport.key` and `transport.json` (host and ports, so that a restarted member is found where it was); the
daemon makes one, gives `lane_factory` to the consensus runtime and the object to TransportActor. Must never listen
anywhere before the member has a cluster address.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from incus_actors.consensus.messages import Envelope
from incus_actors.transport.address import AddressError, PeerAddress, format_address, parse_address
from incus_actors.transport.bulk_lane import BulkLane
from incus_actors.transport.control_lane import ControlLane
from incus_actors.transport.keys import load_or_create_curve_keys

log = logging.getLogger(__name__)

PLACE_FILE = "transport.json"
#: Below Linux' ephemeral range: a port from within it may be somebody's outgoing connection when we come back.
PORTS = range(20000, 30000)
PORT_TRIES = 20


class Place(msgspec.Struct, frozen=True):
    """Where a member listens."""

    host: str
    control_port: int
    bulk_port: int


class Lanes:
    """See the module. All methods but `lane_factory` belong to the main loop."""

    def __init__(self, directory: Path) -> None:
        self.keys = load_or_create_curve_keys(directory)
        self._file = directory / PLACE_FILE
        self._place = self._load()
        self._control: ControlLane | None = None
        self._bulk: BulkLane | None = None

    @property
    def address(self) -> str:
        """What goes into `Member.address`; "" while the member listens nowhere."""
        place = self._place
        if place is None:
            return ""
        return format_address(PeerAddress(place.host, place.control_port, place.bulk_port, self.keys.public_hex))

    # -- makers ----------------------------------------------------------------------------------------------------

    def lane_factory(self) -> ControlLane:
        """Return a control lane for a (re)starting consensus runtime; the one before must be closed. Any thread."""
        place = self._place
        lane = ControlLane(
            self.keys,
            None if place is None else place.host,
            0 if place is None else place.control_port,
            bulk=self._send_bulk,
        )
        self._control = lane
        return lane

    def bulk_lane(self) -> BulkLane:
        """Return a bulk lane for a (re)starting TransportActor; the one before must be closed."""
        place = self._place
        self._bulk = BulkLane(
            self.keys,
            None if place is None else place.host,
            0 if place is None else place.bulk_port,
            deliver_raft=self._deliver_raft,
        )
        return self._bulk

    def _send_bulk(self, envelope: Envelope) -> None:
        if self._bulk is not None:
            self._bulk.send_raft(envelope)

    def _deliver_raft(self, envelope: Envelope) -> None:
        if self._control is not None:
            self._control.receive_bulk(envelope)

    # -- where -----------------------------------------------------------------------------------------------------

    async def open(self, host: str, *, keep: bool = False) -> str:
        """Listen on `host` with both running lanes; returns the address for the others. Doing it again is fine.

        `keep`: go on listening where we did too, until `release`.

        Raises OSError if the host is not ours, AddressError if it is no host, RuntimeError if a lane does not run.
        """
        control, bulk = self._running()
        if self._place is not None and self._place.host == host:
            return self.address
        format_address(PeerAddress(host, 1, 1, self.keys.public_hex))
        before = self._place
        try:
            control_port = await control.on_own_loop(
                lambda: _bind_some(lambda port: control.rebind(host, port, keep=keep))
            )
            bulk_port = _bind_some(lambda port: bulk.rebind(host, port, keep=keep))
            self._place = Place(host, control_port, bulk_port)
            self._save()
        except BaseException:
            self._place = before
            await self._restore(control, bulk)
            raise
        log.info("listening for members on %s, ports %d and %d", host, control_port, bulk_port)
        return self.address

    async def release(self) -> None:
        """Listen no more where `open` has kept us listening."""
        control, bulk = self._running()
        await control.on_own_loop(control.release)
        bulk.release()

    async def go_back(self, address: str) -> None:
        """Undo an `open` that has kept the old place: listen there alone again. Raises AddressError, OSError."""
        self.move(address)
        await self._restore(*self._running())

    async def close(self) -> None:
        """Listen nowhere any more: this is a standalone server again."""
        self._place = None
        self._file.unlink(missing_ok=True)
        if self._control is not None and self._bulk is not None:
            await self._restore(*self._running())

    def move(self, address: str) -> None:
        """Listen where `address` says from the next start on. Raises AddressError, OSError."""
        place = parse_address(address)
        if place.public_key_hex != self.keys.public_hex:
            raise AddressError("the address has another key than this member")
        self._place = Place(place.host, place.control_port, place.bulk_port)
        self._save()

    def _running(self) -> tuple[ControlLane, BulkLane]:
        if self._control is None or self._bulk is None:
            raise RuntimeError("the lanes are not started")
        return self._control, self._bulk

    async def _restore(self, control: ControlLane, bulk: BulkLane) -> None:
        place = self._place
        if place is None:
            await control.on_own_loop(control.unbind)
            bulk.unbind()
        else:
            await control.on_own_loop(lambda: control.rebind(place.host, place.control_port))
            bulk.rebind(place.host, place.bulk_port)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the counters of each running lane, by its name."""
        found: dict[str, dict[str, int]] = {}
        if self._control is not None:
            found["control"] = self._control.counters()
        if self._bulk is not None:
            found["bulk"] = self._bulk.counters()
        return found

    # -- file ------------------------------------------------------------------------------------------------------

    def _load(self) -> Place | None:
        try:
            place = msgspec.json.decode(self._file.read_bytes(), type=Place)
            format_address(PeerAddress(place.host, place.control_port, place.bulk_port, self.keys.public_hex))
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, AddressError) as error:
            raise AddressError(
                f"{self._file} is damaged: {error}; the ports are in the address of this member"
            ) from error
        return place

    def _save(self) -> None:
        temporary = self._file.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(self._place))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._file)
        directory = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _bind_some(bind: Callable[[int], int]) -> int:
    """Bind to a port of ours that is free; returns it. Raises OSError."""
    for _ in range(PORT_TRIES):
        try:
            return bind(secrets.choice(PORTS))
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    raise failure
