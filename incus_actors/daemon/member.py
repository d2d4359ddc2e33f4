"""One running member: start order, what follows changes, stop order.

Start: directory, keys, consensus, state, actors, listeners. Stop: the reverse, with leadership handed over first.
Owns the life of everything that parts.py built; called by daemon.run only.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping

from incus_actors import __version__, service_manager
from incus_actors.actors.instances import StopAll
from incus_actors.consensus import bootstrap
from incus_actors.daemon.garbage import IdleCollector
from incus_actors.daemon.metrics_listener import MetricsListener
from incus_actors.daemon.parts import Parts, build_parts
from incus_actors.daemon.state_setup import prepare_state, wait_for_state
from incus_actors.errors import ApiError, UnavailableError
from incus_actors.gateway.log_events import EventLogHandler
from incus_actors.model.api_extensions import API_EXTENSIONS
from incus_actors.rest.app import build_app
from incus_actors.rest.listeners import Listeners
from incus_actors.security import certificates
from incus_actors.services import join_journal, rejoin
from incus_actors.services.peer_client import PeerClient
from incus_actors.settings import Settings
from incus_actors.state.schema import SCHEMA_VERSION
from incus_actors.tasks import spawn
from incus_actors.transport.lanes import Lanes

log = logging.getLogger(__name__)

ADDRESS_KEYS = frozenset({"core.https_address", "cluster.https_address", "core.metrics_address"})
IDENTITY_TOPICS = frozenset({"members"})
ACCESS_TOPICS = frozenset({"certificates", "projects", "members"})


class MemberDaemon:
    """Runs until SIGTERM, SIGINT, /internal/shutdown or a fatal error of consensus."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._stopped = False
        self._parts: Parts | None = None
        self._listeners: Listeners | None = None
        self._metrics: MetricsListener | None = None
        self._reloading = asyncio.Lock()
        self._garbage = IdleCollector()

    async def main(self) -> int:
        """Start, wait, stop; return the exit code. Raises what keeps it from starting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        begin = time.monotonic()
        try:
            if not await self._started_or_ended():
                return self._exit_code
            log.info("incus_actors %s is ready after %.0f ms", __version__, (time.monotonic() - begin) * 1e3)
            service_manager.notify("READY=1", f"STATUS={self._status_line()}")
            await self._ended.wait()
        finally:
            service_manager.notify("STOPPING=1")
            await self._stop()
        return self._exit_code

    async def _started_or_ended(self) -> bool:
        """Start; False if we were told to end first (a member may wait for its cluster for long). Raises as main."""
        failures: list[Exception] = []

        async def attempt() -> None:
            try:
                await self._start()
            except Exception as error:  # raised below, once: a task's failure would be logged as well
                failures.append(error)

        starting = spawn(attempt(), name="start")
        ended = spawn(self._ended.wait(), name="end while starting")
        await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if failures:
            raise failures[0]
        if starting.done():
            return True
        starting.cancel()
        await asyncio.wait({starting})
        return False

    @property
    def disk_failed(self) -> bool:
        """Whether consensus has stopped because a write or a sync of its log failed."""
        return self._parts is not None and self._parts.consensus.stopped_by == "io"

    # -- start ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        directory = self._settings.directory
        passed = service_manager.passed_sockets()
        joining = join_journal.recover(directory)
        lost = rejoin.needed(directory)
        if lost:
            await self._rejoin(lost)
            joining = "rejoining"
        if not bootstrap.exists(self._settings.database_directory):
            bootstrap.create_standalone(self._settings.database_directory, address="")
        parts = self._parts = build_parts(
            self._settings,
            reload=self._reload,
            listen_also=self._listen_also,
            shutdown=self._shutdown_by_api,
            end=self._end,
        )
        parts.actors.on_escalation = self._escalated
        driver = parts.drivers.instances.info
        log.info("instances are run by the %s driver %s", driver.name, driver.version)
        for name, found in parts.drivers.reasons.items():
            if not found.available:
                log.warning("driver %s can't be used here: %s", name, found.reason)
        await parts.actors.start(parts.foundation)
        parts.consensus.subscribe_role(parts.journal.record)
        await prepare_state(parts.consensus, parts.database)
        await wait_for_state(parts.database)
        if joining == "rejoining":
            await rejoin.until_known(directory, parts.consensus.member_id, parts.database, self._say_waiting)
        parts.identity.refresh()
        parts.access.refresh()
        parts.consensus.subscribe_applied(self._applied)
        parts.services.config.start()
        parts.services.config.on_change(self._config_changed)
        for spec in parts.upper_actors:
            await parts.actors.start_child(spec)
        parts.keeper.start()
        parts.services.volumes.schedule.start()
        parts.services.cluster.certificate.settle()
        listeners = self._listeners = Listeners(build_app(parts.gateway))
        await listeners.start()
        self._metrics = MetricsListener(parts.gateway)
        await self._reload()
        await listeners.open_unix(self._settings.unix_socket, group=self._settings.group, passed=passed.get("unix"))
        cluster = parts.services.cluster
        await cluster.leave.start()
        cluster.certificate.start()
        if joining == "confirming":
            spawn(cluster.join.resume(), name="resume the join")
        elif parts.identity.clustered:
            await cluster.bootstrap.ensure_announced()  # a bootstrap that was killed half-way
            spawn(cluster.address.resume(), name="announce the address")  # or a change of address
        self._remember_members()
        parts.gateway.phase = "ready"
        logging.getLogger().addHandler(EventLogHandler(parts.events))
        interval_s = service_manager.watchdog_interval_s()
        if interval_s is not None:
            spawn(self._feed_watchdog(interval_s), name="watchdog")
        if self._settings.discoverable and not parts.identity.clustered:
            spawn(self._wait_to_be_found(parts), name="discovery")
        self._garbage.start()

    @staticmethod
    async def _wait_to_be_found(parts: Parts) -> None:
        from incus_actors.rest.discovery_agent import agent  # zeroconf and all: only where it is wanted

        try:
            await agent(parts.gateway).start()
        except ApiError as problem:
            log.error("--discoverable: %s", problem)

    async def _rejoin(self, lost: str) -> None:
        """Get a new id and an empty database before anything runs on the old ones (CONSENSUS 3.5)."""
        directory = self._settings.directory
        await rejoin.rejoin(
            directory,
            lost,
            transport=Lanes(directory).address,
            versions=rejoin.Versions(__version__, SCHEMA_VERSION, len(API_EXTENSIONS)),
            peers=PeerClient(directory / "server.crt", directory / "server.key"),
            tell=self._say_waiting,
        )

    @staticmethod
    def _say_waiting(text: str) -> None:
        service_manager.notify(f"STATUS={text}", "EXTEND_TIMEOUT_USEC=120000000")

    def _remember_members(self) -> None:
        """Note whom to ask if our database is lost; a disk that can't take it now gets it at the next change."""
        parts = self._parts
        if parts is None or parts.services.cluster.leave.removed():
            return
        try:
            rejoin.remember(self._settings.directory, parts.identity, parts.database)
        except (OSError, UnavailableError) as problem:
            log.warning("%s can't be written: %s", rejoin.MEMBERS_FILE, problem)

    async def _reload(self) -> None:
        """Read identity and trust again and listen where the configuration says, with the certificate of now."""
        parts, listeners = self._parts, self._listeners
        if parts is None or listeners is None:
            return
        async with self._reloading:
            await self._reload_alone(parts, listeners)

    async def _reload_alone(self, parts: Parts, listeners: Listeners) -> None:
        parts.identity.refresh()
        parts.access.refresh()
        if parts.services.cluster.leave.removed():
            return  # listen on as before: we are about to be told to start anew
        name = certificates.CLUSTER if parts.identity.clustered else certificates.SERVER
        directory = self._settings.directory
        listeners.use_certificate(directory / f"{name}.crt", directory / f"{name}.key")
        config = parts.services.config
        await listeners.set_https(config.configured("core.https_address"), config.configured("cluster.https_address"))
        if self._metrics is not None:
            await self._metrics.listen(config.configured("core.metrics_address"), directory / name)

    async def _listen_also(self, address: str) -> None:
        """Beside what is configured, until the next reload. Raises MemberError."""
        parts, listeners = self._parts, self._listeners
        assert parts is not None
        assert listeners is not None
        async with self._reloading:
            configured = parts.services.config.configured
            await listeners.set_https(configured("core.https_address"), configured("cluster.https_address"), address)

    async def _config_changed(self, changed: frozenset[str], _now: Mapping[str, str]) -> None:
        if changed & ADDRESS_KEYS:
            await self._reload()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        parts = self._parts
        if parts is None:
            return
        if topics & IDENTITY_TOPICS:
            parts.identity.refresh()
            self._remember_members()
        if topics & ACCESS_TOPICS:
            parts.access.refresh()

    # -- while it runs --------------------------------------------------------------------------------------------

    def _status_line(self) -> str:
        assert self._parts is not None
        status = self._parts.consensus.status()
        return f"{status.role.value} of term {status.term}"

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Only a consensus loop that moves feeds it: a stalled one is restarted by the service manager."""
        assert self._parts is not None
        before = None
        while not self._ended.is_set():
            status = self._parts.consensus.status()  # the consensus loop publishes a new one every 50 ms
            if status is not before:
                before = status
                service_manager.notify("WATCHDOG=1", f"STATUS={self._status_line()}")
            await asyncio.sleep(interval_s)

    def _escalated(self, cause: Exception) -> None:
        log.critical("an actor that the daemon can't do without has failed, ending: %s", cause)
        self._exit_code = 1
        self._ended.set()

    def _end(self) -> None:
        self._ended.set()

    # -- stop -----------------------------------------------------------------------------------------------------

    async def _shutdown_by_api(self, force: bool) -> None:
        """`incus admin shutdown`: stop the instances of this machine too, then everything but the listeners."""
        parts = self._parts
        assert parts is not None
        timeout_s = float(parts.services.config.value("core.shutdown_timeout") or 5) * 60
        try:
            await parts.actors.ref("instances").ask(StopAll(force=force), deadline_s=timeout_s)
        except ApiError as problem:
            log.warning("not every instance could be stopped: %s", problem)
        await self._stop_parts()

    async def _stop(self) -> None:
        if self._listeners is not None:
            self._listeners.stop_accepting()
        if self._metrics is not None:
            await self._metrics.close()
        await self._stop_parts()
        if self._listeners is not None:
            await self._listeners.close()

    async def _stop_parts(self) -> None:
        parts = self._parts
        if parts is None or self._stopped:
            return
        self._stopped = True
        await self._garbage.stop()
        parts.gateway.phase = "stopping"
        if parts.gateway.discovery is not None:
            await parts.gateway.discovery.stop()
        await parts.operations.stop()
        parts.services.config.stop()
        parts.services.volumes.schedule.stop()
        parts.keeper.stop()
        await parts.actors.stop()
        await parts.forwarder.close()
        parts.events.close()
        await parts.drivers.instances.close()
