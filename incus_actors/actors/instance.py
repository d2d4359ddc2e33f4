"""One actor per instance, on the member that has it (DESIGN D10).

Owns everything that changes the instance on this machine: create, start, stop, restart, freeze, update, rename,
delete, one at a time, and the watch over its death. Asked by the instance service; spawned by InstancesSupervisor.
It must never act on an instance whose row says another member, nor leave a half instance looking fine: the row says
"creating" or "deleting" until the work is done, and `Repair` finishes what a crash interrupted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from incus_actors.actors import disks, nics
from incus_actors.actors.actor import Actor, Later
from incus_actors.actors.clean_stop import CleanStop
from incus_actors.actors.following import Following, check_stopped
from incus_actors.actors.host import STORAGE_PATH, Host, check_free, source_of
from incus_actors.actors.instance_messages import (
    Create,
    Delete,
    Exited,
    Freeze,
    ProfilesChanged,
    Rename,
    Repair,
    Restart,
    Start,
    Stop,
    Update,
)
from incus_actors.actors.making import Making, volume_project
from incus_actors.actors.storage_messages import ActivateVolume, RenameVolume, ResizeVolume
from incus_actors.domain import transactions_instances as transactions
from incus_actors.domain.instance_config import is_true, parse_size
from incus_actors.domain.instances import check_hotplug
from incus_actors.drivers.base import ExitNotice, InstanceSpec, RunStatus
from incus_actors.errors import ApiError, BadRequestError, MemberError, NotFoundError
from incus_actors.state.queries.instances import InstanceRecord

_log = logging.getLogger(__name__)

REPAIR_AGAIN_S = 5.0
RESTARTS = 10  #: boot.autorestart: so many within RESTARTS_S
RESTARTS_S = 60.0


class InstanceActor(Actor):
    """Serialises the work on one instance. Only a clean stop is done beside the mailbox: a kill may overtake it."""

    def __init__(self, host: Host, instance_id: int) -> None:
        self._host = host
        self._id = instance_id
        self._clean_stop: CleanStop | None = None
        self._following = Following(host, self._follow)
        self._making = Making(host, lambda: self.context.system.ref(STORAGE_PATH))
        self._restarts: list[float] = []

    async def started(self) -> None:
        """Watch the instance if it runs."""
        try:
            record = self._host.record(self._id)
        except NotFoundError:
            return
        if not record.phase:
            spec = self._host.status_spec(record)
            if self._host.driver.status(spec) in (RunStatus.RUNNING, RunStatus.FROZEN):
                self._watch(spec)
                self._following.found(record)

    async def receive(self, message: object) -> object:
        """Do one thing to the instance."""
        match message:
            case Stop():
                return await self._receive_stop(message)
            case Exited(pid):
                await self._exited(pid)
                return None
            case ProfilesChanged(devices):
                return await self._profiles_changed(devices)
        check_free(self._clean_stop is not None, "stop")
        match message:
            case Create():
                await self._create(message)
            case Start(caller):
                await self._start(self._ready(), caller)
            case Restart():
                return self._receive_restart(message)
            case Freeze():
                await self._freeze(message)
            case Update():
                await self._update(message)
            case Rename():
                await self._rename(message)
            case Delete(caller):
                await self._delete(caller)
            case Repair():
                await self._repair()
            case _:
                return self.unhandled(message)
        return None

    # --- helpers --------------------------------------------------------------------------------------------

    def _ready(self) -> InstanceRecord:
        """Return the record. Raises NotFoundError, BadRequestError while it is half made or half removed."""
        record = self._host.record(self._id)
        if record.phase:
            check_free(True, "create" if record.phase == "creating" else "delete")
        return record

    def _tell_all(
        self, action: str, record: InstanceRecord, caller: Any, context: dict[str, Any] | None = None
    ) -> None:
        self._host.lifecycle(
            action,
            source_of(record.project, record.name),
            project=record.project,
            caller=caller,
            context=context,
            name=record.name,
        )

    def _watch(self, spec: InstanceSpec) -> None:
        ref = self.context.self_ref

        def on_exit(notice: ExitNotice) -> None:
            ref.tell(Exited(notice.init_pid))

        self._host.driver.watch(spec, on_exit)

    def _status(self, record: InstanceRecord) -> RunStatus:
        return self._host.driver.status(self._host.status_spec(record))

    async def _set_keys(self, keys: dict[str, str | None], *, last_used_at: str | None = None) -> None:
        transaction = transactions.set_keys(self._id, self._host.member_id(), keys, last_used_at=last_used_at)
        await self._host.commit(transaction)

    # --- create ---------------------------------------------------------------------------------------------

    async def _create(self, message: Create) -> None:
        record = self._host.record(self._id)
        if record.phase != "creating":
            raise MemberError("The instance is already there")
        try:
            volume = await self._making.make(record, message)
        except Exception:
            await self._undo_create()
            raise
        context = {"location": record.location, "storage-pool": volume.pool.name, "type": record.type}
        self._tell_all("instance-created", record, message.caller, context)
        if message.start:
            await self._start(replace(record, phase=""), message.caller)

    async def _undo_create(self) -> None:
        """Take back a failed create; what can't be taken back now (no quorum) is tried again."""
        try:
            await self._repair()
        except (ApiError, OSError) as error:
            _log.warning("instance %d: the failed create is not undone yet: %s", self._id, error)

    async def _repair(self) -> None:
        try:
            record = self._host.record(self._id)
        except NotFoundError:
            self.context.stop()
            return
        if record.phase:
            await self._remove(record)

    async def _remove(self, record: InstanceRecord) -> None:
        try:
            await self._making.remove(record)
        except (ApiError, OSError):
            self.context.tell_after(REPAIR_AGAIN_S, Repair())
            raise
        self.context.stop()

    # --- start, stop, freeze --------------------------------------------------------------------------------

    async def _start(self, record: InstanceRecord, caller: Any, *, action: str = "instance-started") -> None:
        status = self._status(record)
        if status is RunStatus.FROZEN:
            await self._host.driver.unfreeze(self._host.spec(record))
            self._tell_all("instance-resumed", record, caller)
            return
        if status is RunStatus.RUNNING:
            raise BadRequestError("The instance is already running")
        await nics.check_start(self._host, record)
        record = await nics.with_volatile(self._host, self.context.system, record)
        await nics.networks_ready(self._host, self.context.system, record)
        await self._activate(record)
        spec = self._host.spec(record)
        self._host.driver.validate(spec)
        state = await self._host.driver.start(spec)
        self._following.started(record)
        self._watch(spec)
        keys: dict[str, str | None] = {
            "volatile.last_state.power": "RUNNING",
            "volatile.last_state.ready": None,
            "volatile.apply_template": None,
            "volatile.idmap.current": record.config.get("volatile.idmap.next"),
            **nics.running_keys(self._host, record, state.network),
        }
        try:
            await self._set_keys(keys, last_used_at=self._host.now())
        except ApiError as error:  # it runs, and that is what was asked for; the next daemon finds it running
            _log.warning("instance %s runs, but that is not recorded: %s", record.name, error)
        self._tell_all(action, record, caller)

    async def _activate(self, record: InstanceRecord) -> None:
        """Have the volumes mounted that the instance needs. Raises ApiError."""
        volumes = disks.volumes_of(self._host, record.project, record.expanded_devices)
        for volume in (self._host.volume_of(record), *volumes):
            await self.context.system.ref(STORAGE_PATH).ask(ActivateVolume(volume), deadline_s=60)

    async def _receive_stop(self, message: Stop) -> object:
        waiting = self._clean_stop
        if waiting is not None:
            if not message.force:
                check_free(True, "stop")
            waiting.impatient.set()
            return Later(waiting.wait())
        record = self._ready()
        self._check_running(record)
        if message.force:
            spec = self._host.status_spec(record)
            self._host.driver.unwatch(spec)
            await self._host.driver.stop(self._spec_or_less(record), force=True)
            await self._stopped(record, message.caller, "instance-stopped", message.keep_power)
            return None
        self._clean_stop = CleanStop()
        return Later(self._stop_cleanly(record, message, self._clean_stop))

    def _check_running(self, record: InstanceRecord) -> None:
        if self._status(record) is RunStatus.STOPPED:
            raise BadRequestError("The instance is already stopped")

    def _spec_or_less(self, record: InstanceRecord) -> InstanceSpec:
        try:
            return self._host.spec(record)
        except (BadRequestError, NotFoundError):
            return self._host.status_spec(record)  # no pool, no root disk: it must still be possible to stop it

    async def _stop_cleanly(self, record: InstanceRecord, message: Stop, clean: CleanStop) -> None:
        try:
            await self._clean_or_killed(record, message.timeout_s, clean)
            await self._stopped(record, message.caller, "instance-shutdown", message.keep_power)
        finally:
            self._clean_stop = None
            clean.done.set()

    async def _clean_or_killed(self, record: InstanceRecord, timeout_s: float, clean: CleanStop) -> None:
        spec = self._spec_or_less(record)
        self._host.driver.unwatch(spec)
        try:
            await clean.run(self._host.driver, spec, timeout_s)
        except Exception:
            if self._status(record) is not RunStatus.STOPPED:
                self._watch(spec)
            raise

    async def _stopped(self, record: InstanceRecord, caller: Any, action: str, keep_power: bool) -> None:
        """Record the end of an instance; an ephemeral one goes away."""
        if record.ephemeral and not keep_power:
            self._tell_all(action, record, caller)
            await self._remove(record)
            self._tell_all("instance-deleted", record, caller)
            return
        if not keep_power:
            gone = nics.running_keys(self._host, record, None)
            await self._set_keys({"volatile.last_state.power": "STOPPED", "volatile.last_state.ready": "false", **gone})
        self._tell_all(action, record, caller)

    def _receive_restart(self, message: Restart) -> Later:
        record = self._ready()
        self._check_running(record)
        clean = self._clean_stop = CleanStop()
        if message.force:
            clean.impatient.set()
        return Later(self._restart(record, message, clean))

    async def _restart(self, record: InstanceRecord, message: Restart, clean: CleanStop) -> None:
        try:
            if message.force:
                self._host.driver.unwatch(self._host.status_spec(record))
                await self._host.driver.stop(self._spec_or_less(record), force=True)
            else:
                await self._clean_or_killed(record, message.timeout_s, clean)
            await self._start(record, message.caller, action="instance-restarted")
        finally:
            self._clean_stop = None
            clean.done.set()

    async def _freeze(self, message: Freeze) -> None:
        record = self._ready()
        status = self._status(record)
        if status is RunStatus.STOPPED:
            raise BadRequestError("The instance isn't running")
        spec = self._host.spec(record)
        if message.frozen:
            if status is RunStatus.FROZEN:
                raise BadRequestError("The container is already frozen")
            await self._host.driver.freeze(spec)
        else:
            if status is RunStatus.RUNNING:
                raise BadRequestError("The container is already running")
            await self._host.driver.unfreeze(spec)
        self._tell_all("instance-paused" if message.frozen else "instance-resumed", record, message.caller)

    async def _exited(self, pid: int) -> None:
        """The instance ended without us (poweroff inside, a kill from outside)."""
        if self._clean_stop is not None:
            return
        try:
            record = self._ready()
        except ApiError:
            return
        if self._status(record) is not RunStatus.STOPPED:
            return  # it has been started again meanwhile
        _log.info("instance %s (process %d) has ended by itself", record.name, pid)
        try:
            await self._host.driver.stop(self._spec_or_less(record), force=True)
        except ApiError as error:
            _log.debug("instance %s left nothing behind: %s", record.name, error)
        if is_true(record.expanded_config.get("boot.autorestart")) and self._may_restart():
            try:
                await self._start(record, None, action="instance-restarted")
            except ApiError as error:
                _log.warning("instance %s can't be restarted: %s", record.name, error)
            else:
                return
        try:
            await self._stopped(record, None, "instance-shutdown", False)
        except ApiError as error:
            _log.warning("instance %s has stopped, but that is not recorded: %s", record.name, error)

    def _may_restart(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._restarts = [at for at in self._restarts if now - at < RESTARTS_S]
        if len(self._restarts) >= RESTARTS:
            return False
        self._restarts.append(now)
        return True

    # --- update, rename, delete -----------------------------------------------------------------------------

    async def _update(self, message: Update) -> None:
        """First the machine, then the rows; when the rows can't be changed, the machine goes back."""
        before = self._ready()
        devices = {name: dict(device) for name, device in message.devices.items()}
        whole = (message.config, devices)
        change, keys = await nics.with_volatile_change(self._host, self.context.system, before, message.change, whole)
        expanded = {**message.config, **keys}
        after = replace(before, config=dict(change.config), expanded_config=expanded, expanded_devices=devices)
        free = await nics.check_change(self._host, before, after)
        running = self._status(before) in (RunStatus.RUNNING, RunStatus.FROZEN)
        if running:
            check_hotplug(before.expanded_devices, message.devices)
            await self._follow_or_back(before, after)
        await self._resize_root(before, after)
        try:
            await nics.commit_change(
                self._host,
                (before, after),
                free,
                lambda guards: transactions.update(self._id, before.node_id, change, (*message.guards, *guards)),
            )
        except ApiError:
            await self._resize_root(after, before)
            if running:
                await self._follow(self._following.wanted(before))
            raise
        if running:
            self._following.took(after)
            await self._note_nics(after)
        self._tell_all("instance-updated", before, message.caller)

    async def _note_nics(self, record: InstanceRecord, *, running: bool = True) -> None:
        network = (await self._host.driver.state(self._host.status_spec(record))).network if running else None
        keys = nics.running_keys(self._host, record, network)
        if keys:
            await self._set_keys(keys)

    async def _follow(self, record: InstanceRecord) -> None:
        """Make limits and devices of a running instance those of `record`. Raises ApiError."""
        for volume in disks.volumes_of(self._host, record.project, record.expanded_devices):
            await self.context.system.ref(STORAGE_PATH).ask(ActivateVolume(volume), deadline_s=60)
        await nics.networks_ready(self._host, self.context.system, record)
        spec = self._host.spec(record)
        await self._host.driver.apply_limits(spec)
        await self._host.driver.update_devices(spec)

    async def _follow_or_back(self, before: InstanceRecord, after: InstanceRecord) -> None:
        try:
            await self._follow(self._following.wanted(after))
        except ApiError:
            await self._follow(self._following.wanted(before))
            raise

    async def _resize_root(self, before: InstanceRecord, after: InstanceRecord) -> None:
        """Let the root disk grow or shrink to its `size`. Raises ApiError."""
        old, new = (self._host.volume_of(record) for record in (before, after))
        if old.config.get("size") != new.config.get("size"):
            size = parse_size(new.config.get("size") or "0")
            await self.context.system.ref(STORAGE_PATH).ask(ResizeVolume(new, size), deadline_s=60)

    async def _profiles_changed(self, devices: Sequence[str]) -> str:
        try:
            record = self._host.record(self._id)
            if self._clean_stop is not None or record.phase:
                return ""  # its next start looks at all of them
            if self._status(record) not in (RunStatus.RUNNING, RunStatus.FROZEN):
                if devices:
                    await check_stopped(self._host, record, devices)
                    await self._note_nics(record, running=False)
                return ""
            record = await nics.with_volatile(self._host, self.context.system, record)
            await self._following.follow(record)
            await self._note_nics(self._following.wanted(record))
        except ApiError as error:
            _log.warning("instance %d doesn't follow its profiles: %s", self._id, error)
            return str(error)
        return self._following.refusal(devices)

    async def _rename(self, message: Rename) -> None:
        record = self._ready()
        if self._status(record) is not RunStatus.STOPPED:
            raise BadRequestError("Renaming of running instance not allowed")
        old_volume, old_spec = self._host.volume_of(record), self._host.spec(record)
        storage = self.context.system.ref(STORAGE_PATH)
        renamed = replace(record, name=message.name)
        new_volume = replace(old_volume, name=message.name)
        new_spec = replace(self._host.status_spec(renamed), volume_dir=self._host.volume_path(new_volume))
        await storage.ask(RenameVolume(old_volume, new_volume), deadline_s=60)
        try:
            await self._host.driver.rename(old_spec, new_spec)
            await self._host.commit(
                transactions.rename(
                    self._id, record.node_id, record.name, message.name, volume_project(self._host, record)
                )
            )
        except Exception:
            await self._host.driver.rename(new_spec, old_spec)
            await storage.ask(RenameVolume(new_volume, old_volume), deadline_s=60)
            raise
        self._tell_all("instance-renamed", renamed, message.caller, {"old_name": record.name})

    async def _delete(self, caller: Any) -> None:
        record = self._host.record(self._id)
        if record.phase == "creating":
            check_free(True, "create")
        if is_true(record.expanded_config.get("security.protection.delete")):
            raise BadRequestError("Instance is protected")
        if self._status(record) not in (RunStatus.STOPPED, RunStatus.ERROR):
            raise BadRequestError("Instance is running")
        await self._making.check_pool(record)
        await self._remove(record)
        self._tell_all("instance-deleted", record, caller)
