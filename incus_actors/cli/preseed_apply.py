"""Doing what a preseed says: in Incus' order, nothing twice, and nothing left behind when a part fails.

Owns the order, the undoing and the reasons; called by admin_init.py for files and for answered questions alike. A
second run finds everything as wanted and sends no write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from incus_actors.cli import preseed_kinds as kinds
from incus_actors.cli.api_client import ApiClient, ApiFailureError, UnreachableError, url
from incus_actors.cli.preseed import Entry, Preseed, PreseedError
from incus_actors.cli.preseed_kinds import Kind, NotAsWantedError, project_of

_FAILURES = (ApiFailureError, UnreachableError, NotAsWantedError)


def apply(client: ApiClient, preseed: Preseed) -> list[str]:
    """Configure the server; return what was changed, one line each.

    Raises PreseedError with every reason after everything that was done has been undone.
    """
    return _Applier(client).run(preseed)


class _Applier:
    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._reasons: list[tuple[int, str]] = []
        self._failed: set[tuple[str, str]] = set()  #: (section, name) on which nothing else may build
        self._done: list[str] = []

    def run(self, preseed: Preseed) -> list[str]:
        try:
            self._run(preseed)
        except BaseException:
            self._take_back()
            raise
        if self._reasons:
            self._give_up(self._take_back())
        return self._done

    def _run(self, preseed: Preseed) -> None:
        if preseed.config:
            self._config(preseed)
        self._all(kinds.POOLS, preseed.storage_pools)
        self._all(kinds.NETWORKS, [n for n in preseed.networks if project_of(n) == "default"])
        self._all(kinds.PROJECTS, preseed.projects)
        self._all(kinds.NETWORKS, [n for n in preseed.networks if project_of(n) != "default"])
        self._all(kinds.VOLUMES, preseed.storage_volumes)
        self._all(kinds.PROFILES, preseed.profiles)
        if not self._reasons and preseed.cluster is not None and preseed.cluster["enabled"]:
            self._bootstrap(preseed.cluster)

    # -- reasons and undoing --------------------------------------------------------------------------------------

    def _note(self, line: int, text: str) -> None:
        self._reasons.append((line, text))

    def _give_up(self, left_over: list[str]) -> None:
        reasons = [f"line {line}: {text}" if line else text for line, text in self._reasons]
        if len(reasons) == 1 and not self._done:
            raise PreseedError([*reasons, *left_over])
        raise PreseedError([*reasons, *(left_over or ["Everything was put back as it was"])])

    def _take_back(self) -> list[str]:
        """Undo in reverse; return what could not be undone."""
        left = []
        for what, action in reversed(self._undo):
            try:
                action()
            except _FAILURES as problem:
                left.append(f"could not be undone: {what}: {problem}")
        self._undo.clear()
        return left

    # -- the server's configuration -------------------------------------------------------------------------------

    def _config(self, preseed: Preseed) -> None:
        wanted = dict(preseed.config)
        clustering = preseed.cluster is not None and preseed.cluster["enabled"]
        try:
            now, etag = self._client.get_with_etag("/1.0")
            before: dict[str, str] = now["config"] or {}
            if clustering and "core.https_address" in wanted and not before.get("cluster.https_address"):
                wanted.setdefault("cluster.https_address", wanted["core.https_address"])
            after = kinds.merged_keys(before, wanted)
            if _same(before, after, wanted):
                return
            removed = dict.fromkeys(before.keys() - after.keys(), "")
            self._client.put("/1.0", {"config": {**after, **removed}}, etag=etag)
        except _FAILURES as problem:
            self._note_config(preseed, str(problem))
            return
        self._undo.append(("the server's configuration", lambda: self._restore_config(before)))
        self._done.append("server configuration")

    def _note_config(self, preseed: Preseed, text: str) -> None:
        """Note every wrong key: the server names the first and counts the rest."""
        from incus_actors.model.config_keys import ConfigError, canonical_server_values

        if " more errors)" in text:
            for key, value in preseed.config.items():
                try:
                    canonical_server_values({key: value})
                except ConfigError as problem:
                    line = preseed.config_lines.get(key, 0)
                    self._note(line, f"Failed to update server configuration: {problem}")
            if self._reasons:
                return
        line = next((line for key, line in preseed.config_lines.items() if f"'{key}'" in text), 0)
        self._note(
            line or min(preseed.config_lines.values(), default=0), f"Failed to update server configuration: {text}"
        )

    def _restore_config(self, before: dict[str, str]) -> None:
        now, etag = self._client.get_with_etag("/1.0")
        added = dict.fromkeys((now["config"] or {}).keys() - before.keys(), "")
        self._client.put("/1.0", {"config": {**before, **added}}, etag=etag)

    # -- objects --------------------------------------------------------------------------------------------------

    def _all(self, kind: Kind, entries: list[Entry]) -> None:
        for entry in entries:
            if not self._builds_on_failure(entry):
                self._one(kind, entry)

    def _builds_on_failure(self, entry: Entry) -> bool:
        """Whether it needs something that could not be made: its own failure would say nothing new."""
        needs = {("projects", project_of(entry)), ("storage_pools", entry.values.get("pool", ""))}
        for device in entry.values.get("devices", {}).values():
            needs |= {("storage_pools", device.get("pool", "")), ("networks", device.get("network", ""))}
            needs.add(("networks", device.get("parent", "")))
        return bool(needs & self._failed)

    def _one(self, kind: Kind, entry: Entry) -> None:
        words = kind.created(entry)
        try:
            found = kind.now(self._client, entry) if entry["name"] else None
            if found is None:
                if not entry["name"]:
                    raise NotAsWantedError("No name provided")
                self._client.run("POST", kind.collection(entry), kind.new(entry))
                self._undo.append((words, lambda: self._client.run("DELETE", kind.place(entry))))
                self._done.append(_name(kind, entry))
                return
            words = kind.updated(entry)
            self._update(kind, entry, *found)
        except NotAsWantedError as problem:
            self._fail(kind, entry, f"{words}: {problem}" if not entry["name"] else str(problem))
        except _FAILURES as problem:
            self._fail(kind, entry, f"{words}: {problem}")

    def _fail(self, kind: Kind, entry: Entry, text: str) -> None:
        self._failed.add((kind.section, entry["name"]))
        self._note(entry.line, text)

    def _update(self, kind: Kind, entry: Entry, found: dict[str, Any], etag: str) -> None:
        before = kind.put_body(found)
        after = kind.merged(found, entry)
        if all(_same_value(before.get(key), value) for key, value in after.items()):
            return
        self._client.run("PUT", kind.place(entry), {**before, **after}, etag=etag)
        self._undo.append((kind.updated(entry), lambda: self._client.run("PUT", kind.place(entry), before)))
        self._done.append(_name(kind, entry))

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _bootstrap(self, cluster: Entry) -> None:
        name = cluster["server_name"]
        try:
            now, etag = self._client.get_with_etag(url("cluster"))
            if now["enabled"]:
                if name and now["server_name"] != name:
                    raise NotAsWantedError(f'This server is already clustered, as "{now["server_name"]}"')
                return
            body = {
                "server_name": name,
                "enabled": True,
                "member_config": cluster["member_config"] or None,
                "cluster_address": "",
                "cluster_certificate": "",
                "server_address": "",
                "cluster_token": "",
            }
            self._client.run("PUT", url("cluster"), body, etag=etag)
        except _FAILURES as problem:
            self._note(cluster.line, f"Failed to configure cluster: {problem}")
            return
        self._done.append(f"cluster member {name}")


def _name(kind: Kind, entry: Entry) -> str:
    return f"{kind.section.replace('_', ' ').removesuffix('s')} {entry['name']}"


def _same_value(before: Any, after: Any) -> bool:
    """Whether nothing would change: empty and missing are one."""
    if isinstance(after, dict):
        return kinds.given(before or {}) == kinds.given(after)
    return (before or "") == (after or "")


def _same(before: dict[str, str], after: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether the configuration is as wanted. What the server leaves out because it is the default cannot be told
    from what is missing, so only set keys count as equal."""
    return all(before.get(key, "") == after.get(key, "") for key in wanted)
