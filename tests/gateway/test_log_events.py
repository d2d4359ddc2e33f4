"""Records of the daemon's log, from any thread, as events: only while somebody listens, and never in the way."""

from __future__ import annotations

import asyncio
import json
import logging

from incus_actors.gateway.events import EventHub
from incus_actors.gateway.log_events import EventLogHandler


async def test_records_become_events_while_somebody_listens() -> None:
    hub = EventHub(location=lambda: "node1")
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(EventLogHandler(hub))
    logger.info("nobody hears this")
    await asyncio.sleep(0)
    subscription = hub.subscribe(frozenset({"logging"}))
    await asyncio.to_thread(logger.warning, "disk %s is full", "sda", extra={"free": 0})
    logger.info("started", extra={"member": 3})
    await asyncio.sleep(0.01)
    subscription.close()
    found = [json.loads(encoded) async for encoded in subscription]
    assert [e["metadata"] for e in found] == [
        {"message": "disk sda is full", "level": "warning", "context": {"free": "0"}},
        {"message": "started", "level": "info", "context": {"member": "3"}},
    ]
    assert {(e["type"], e["location"]) for e in found} == {("logging", "node1")}
    assert "project" not in found[0]
