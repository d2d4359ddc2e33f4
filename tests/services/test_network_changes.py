"""Networks: made, changed, renamed, deleted; alone and over a cluster. The texts are those of a real Incus 6.0.4."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from service_kit import Seen, running_services

from incus_actors.domain import transactions_networks as transactions
from incus_actors.drivers.dnsmasq import Lease
from incus_actors.errors import (
    ApiError,
    BadRequestError,
    ConflictError,
    MemberError,
    NotFoundError,
    PreconditionFailedError,
)
from incus_actors.model.resources import NetworkPut, NetworksPost
from incus_actors.services.network_changes import editable
from incus_actors.services.proposing import propose
from incus_actors.state.queries import networks as queries
from incus_actors.tasks import spawn

PLAIN = {"ipv4.address": "10.50.0.1/24", "ipv6.address": "none"}


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


@pytest.fixture
async def two(kit):
    """A cluster of this server, node1, and node2, which is not there."""
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    return kit


async def create(kit, name="br0", config=None, kind="", target=None, project="default"):
    post = NetworksPost(name=name, type=kind, config=PLAIN if config is None else config, description="")
    await kit.services.network_changes.create(project, post, target)


async def text_of(work, kind=ApiError) -> str:
    with pytest.raises(kind) as caught:
        await work
    return str(caught.value)


def get(kit, name="br0", target=None):
    return kit.services.networks.get("default", name, target)


def row(kit, name="br0"):
    return queries.network(kit.database, name)


async def settled(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def member_did(kit, transaction):
    """What node2 would have written down."""
    await propose(kit.consensus, transaction)


# -- alone --------------------------------------------------------------------------------------------------------


async def test_a_network_is_made(kit):
    await create(kit, config={})
    made = get(kit)
    assert (made.type, made.status, made.locations, made.managed) == ("bridge", "Created", ["none"], True)
    assert made.config["ipv4.nat"] == made.config["ipv6.nat"] == "true"
    assert kit.machine.there["br0"].config == made.config
    assert kit.machine.served["br0"].hwaddr.startswith("10:66:6a:")


async def test_the_word_auto_is_never_stored(kit):
    await create(kit, config={"ipv4.address": "auto", "ipv6.address": "auto"})
    assert get(kit).config["ipv4.address"].endswith(".1/24")
    await kit.services.network_changes.update("default", "br0", NetworkPut(config={"ipv4.address": "auto"}))
    assert get(kit).config["ipv4.address"].startswith("10.")
    assert set(get(kit).config) == {"ipv4.address"}


@pytest.mark.parametrize(
    ("name", "kind", "config", "status", "text"),
    [
        ("", "", {}, 400, "No name provided"),
        ("a/b", "", {}, 400, "Network interface contains invalid characters"),
        ("br1", "foo", {}, 400, "Unknown driver"),
        ("br1", "", {"foo": "x"}, 500, 'Invalid option for network "br1" option "foo"'),
        ("br1", "", {"bridge.mtu": "x"}, 500, 'Invalid value for network "br1" option "bridge.mtu": Invalid MTU "x"'),
        ("br1", "macvlan", {}, 500, 'Invalid value for network "br1" option "parent": Required value'),
        ("br0", "", {}, 409, 'Network "br0" already exists'),
    ],
)
async def test_what_is_refused(kit, name, kind, config, status, text):
    await create(kit)
    calls = list(kit.machine.calls)
    with pytest.raises(ApiError) as caught:
        await create(kit, name, config, kind)
    assert (caught.value.status, str(caught.value)) == (status, text)
    assert kit.machine.calls == calls


async def test_networks_of_other_projects(kit):
    await kit.sql("INSERT INTO projects (id, name) VALUES (7, 'pr'), (8, 'ps')")
    await kit.sql("INSERT INTO projects_config (project_id, key, value) VALUES (7, 'features.networks', 'true')")
    assert await text_of(create(kit, project="pr"), BadRequestError) == (
        "Network type does not support non-default projects"
    )
    await create(kit, project="ps")
    assert get(kit).project == "default"
    assert await text_of(create(kit, project="no"), NotFoundError) == 'Failed to load project "no": Project not found'


async def test_addresses_that_meet_are_refused(kit):
    await create(kit)
    text = await text_of(create(kit, "br1", {"ipv4.address": "10.50.0.9/16", "ipv6.address": "none"}), MemberError)
    assert text.endswith('"ipv4.address": Subnet 10.50.0.0/16 overlaps with 10.50.0.0/24 of network "br0"')
    assert row(kit, "br1") is None
    await create(kit, "br1", {"ipv4.address": "10.51.0.1/24", "ipv6.address": "none"})
    change = kit.services.network_changes.update("default", "br1", NetworkPut(config=PLAIN))
    assert "overlaps" in await text_of(change, BadRequestError)


async def test_two_at_once_never_get_one_subnet(kit):
    same = {"ipv4.address": "10.60.0.1/24", "ipv6.address": "none"}
    results = await asyncio.gather(*(create(kit, f"br{i}", same) for i in range(4)), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert all("overlaps" in str(result) for result in results if result is not None)


async def test_what_the_machine_refuses_leaves_nothing(kit):
    kit.machine.broken["br0"] = 'Network interface "br0" already exists'
    assert await text_of(create(kit), MemberError) == 'Network interface "br0" already exists'
    await settled(lambda: row(kit) is None)
    kit.machine.broken.clear()
    kit.machine.mute["br0"] = "The DNS and DHCP service exited prematurely: exit status 1"
    assert "exited prematurely" in await text_of(create(kit), MemberError)
    await settled(lambda: row(kit) is None)
    assert kit.machine.there == {}
    kit.machine.mute.clear()
    await create(kit)
    assert get(kit).status == "Created"


async def test_parents(kit):
    await create(kit, "mv", {"parent": "eth9"}, "macvlan")
    await create(kit, "mv1", {"parent": "eth9"}, "macvlan")
    text = await text_of(create(kit, "ph", {"parent": "eth9"}, "physical"))
    assert text == 'Parent interface "eth9" in use by another network'
    await create(kit, "ph", {"parent": "eth8"}, "physical")
    assert kit.services.networks.get("default", "mv").config == {"parent": "eth9"}
    await create(kit)
    await create(kit, "mv2", {"parent": "br0"}, "macvlan")
    assert get(kit).used_by == ["/1.0/networks/mv2"]


async def test_updates(kit):
    await create(kit)
    changes = kit.services.network_changes
    seen = editable(get(kit))
    await changes.update("default", "br0", NetworkPut(config={**PLAIN, "ipv4.nat": "true"}, description="d"))
    assert (get(kit).config, get(kit).description) == ({**PLAIN, "ipv4.nat": "true"}, "d")
    assert kit.machine.there["br0"].config["ipv4.nat"] == "true"
    with pytest.raises(PreconditionFailedError):
        await changes.update("default", "br0", NetworkPut(config=PLAIN), expect=Seen(seen))
    await changes.update("default", "br0", NetworkPut(config={"bridge.mtu": "1400"}), patch=True)
    assert (get(kit).config["bridge.mtu"], get(kit).description) == ("1400", "d")
    for config, text in (
        ({"foo": "x"}, 'Invalid option for network "br0" option "foo"'),
        ({"foo": ""}, 'Invalid option for network "br0" option "foo"'),
        ({"bridge.mtu": "x"}, 'Invalid value for network "br0" option "bridge.mtu": Invalid MTU "x"'),
        ({"volatile.actors.error": "x"}, 'Invalid option for network "br0" option "volatile.actors."'),
    ):
        assert await text_of(changes.update("default", "br0", NetworkPut(config=config)), BadRequestError) == text
    missing = changes.update("default", "nope", NetworkPut())
    assert await text_of(missing, NotFoundError) == "Failed loading network: Network not found"


async def test_a_change_that_the_machine_refuses_goes_back(kit):
    await create(kit)
    kit.machine.broken["br0"] = "Only unconfigured network interfaces can be bridged"
    change = NetworkPut(config={**PLAIN, "bridge.external_interfaces": "eth9"})
    text = await text_of(kit.services.network_changes.update("default", "br0", change), MemberError)
    assert text == "Only unconfigured network interfaces can be bridged"
    assert get(kit).config == PLAIN


async def test_renames(kit):
    await create(kit)
    await create(kit, "br1", {"ipv4.address": "none", "ipv6.address": "none"})
    changes = kit.services.network_changes
    for name, new, text in (
        ("nope", "x1", "Failed loading network: Network not found"),
        ("br0", "", "New network name not provided"),
        ("br0", "a/b", "Network interface contains invalid characters"),
        ("br0", "br1", 'Network "br1" already exists'),
        ("br0", "lo", 'Network interface "lo" already exists'),
    ):
        assert await text_of(changes.rename("default", name, new)) == text
    await changes.rename("default", "br0", "br9")
    assert set(kit.machine.there) == {"br1", "br9"}
    await kit.sql(
        "INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'eth0', 1)",
        "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (1, 'network', 'br9')",
    )
    assert await text_of(changes.rename("default", "br9", "br8"), BadRequestError) == "Network is currently in use"
    assert await text_of(changes.delete("default", "br9"), BadRequestError) == "The network is currently in use"
    assert get(kit, "br9").used_by == ["/1.0/profiles/default"]


async def test_deletion(kit):
    await create(kit)
    await kit.services.network_changes.delete("default", "br0")
    assert (row(kit), kit.machine.there) == (None, {})
    assert await text_of(kit.services.network_changes.delete("default", "br0"), NotFoundError) == (
        "Failed loading network: Network not found"
    )


async def test_a_deletion_that_fails_can_be_repeated(kit):
    await create(kit)
    kit.machine.stuck.add("br0")
    assert await text_of(kit.services.network_changes.delete("default", "br0"), MemberError) == "br0 is stuck"
    assert get(kit).status == "Errored"
    kit.machine.stuck.clear()
    await kit.services.network_changes.delete("default", "br0")
    assert row(kit) is None


async def test_leases_and_allocations(kit):
    await create(kit, config={"ipv4.address": "10.50.0.1/24", "ipv4.nat": "true", "ipv6.address": "fd42::1/64"})
    await kit.add_instance("c1")
    await kit.sql(
        "INSERT INTO instances_config (instance_id, key, value)"
        " VALUES (1, 'volatile.eth0.hwaddr', '10:66:6a:b2:64:8e')",
        "INSERT INTO instances_devices (id, instance_id, name, type) VALUES (1, 1, 'eth0', 1)",
        "INSERT INTO instances_devices_config (instance_device_id, key, value)"
        " VALUES (1, 'network', 'br0'), (1, 'ipv4.address', '10.50.0.7')",
    )
    kit.machine.given["br0"] = [
        Lease("10.50.0.7", "10:66:6a:b2:64:8e", "c1"),
        Lease("10.50.0.99", "00:11:22:33:44:55", "guest"),
    ]
    leases = [
        (lease.hostname, lease.address, lease.type, lease.location)
        for lease in await kit.services.network_leases.leases("default", "br0")
    ]
    assert leases == [
        ("br0.gw", "10.50.0.1", "gateway", ""),
        ("br0.gw", "fd42::1", "gateway", ""),
        ("c1", "10.50.0.7", "static", "none"),
        ("c1", "fd42::1266:6aff:feb2:648e", "dynamic", "none"),
        ("guest", "10.50.0.99", "dynamic", "none"),
    ]
    allocations = await kit.services.network_leases.allocations(None)
    assert [(a.addresses, a.type, a.nat, a.used_by) for a in allocations] == [
        ("10.50.0.1/24", "network", True, "/1.0/networks/br0"),
        ("fd42::1/64", "network", False, "/1.0/networks/br0"),
        ("10.50.0.7/32", "instance", True, "/1.0/instances/c1"),
        ("fd42::1266:6aff:feb2:648e/128", "instance", False, "/1.0/instances/c1"),
    ]
    await create(kit, "mv", {"parent": "eth9"}, "macvlan")
    assert await text_of(kit.services.network_leases.leases("default", "mv"), MemberError) == "Not implemented"


# -- two phases ---------------------------------------------------------------------------------------------------


async def test_the_texts_of_the_first_phase(two):
    assert await text_of(create(two, target="zz", config={}), NotFoundError) == "Cluster member not found"
    await create(two, target="node1", config={})
    assert await text_of(create(two, target="node1", config={}), ConflictError) == (
        'Network "br0" is already defined on member "node1"'
    )
    assert await text_of(create(two, target="node2"), BadRequestError) == (
        'Config key "ipv4.address" may not be used as member-specific key'
    )
    assert await text_of(create(two, target="node2", config={}, kind="macvlan"), MemberError) == (
        "Requested network type doesn't match type in existing database record"
    )
    assert (get(two).status, get(two).config, get(two).locations) == ("Pending", {}, ["node1"])
    assert (get(two, target="node1").status, get(two, target="node2").status) == ("Pending", "Unknown")
    wrong = create(two, "half", target="node1", config={"parent": "x1"})
    assert await text_of(wrong, BadRequestError) == 'Invalid option for network "half" option "parent"'
    assert two.machine.there == {}
    await settled(lambda: two.machine.warm > 0)


async def test_the_texts_of_the_second_phase(two):
    assert await text_of(create(two, kind="macvlan", config={}), MemberError) == (
        "Network not pending on any node (use --target <node> first)"
    )
    await create(two, target="node1", config={})
    assert await text_of(create(two, config={}), MemberError) == "Network not defined on nodes: node2"
    await create(two, target="node2", config={"bridge.external_interfaces": "x1"})
    assert await text_of(create(two, config={"bridge.external_interfaces": "x"}), MemberError) == (
        'Config key "bridge.external_interfaces" is cluster member specific'
    )
    assert await text_of(create(two, config={}, kind="macvlan"), MemberError) == (
        'Requested network type "macvlan" doesn\'t match type in existing database record "bridge"'
    )
    assert await text_of(create(two, config={"foo": "x"}), MemberError) == (
        'Invalid option for network "br0" option "foo"'
    )
    assert await text_of(create(two), MemberError) == "peer node 10.0.0.2:8443 is down"
    assert get(two).status == "Pending"
    put = NetworkPut(config={})
    assert await text_of(two.services.network_changes.update("default", "br0", put), BadRequestError) == (
        "Cannot update network global config when not in created state"
    )


async def pending(two):
    for name in ("node1", "node2"):
        await create(two, target=name, config={})
    two.online.add(2)


async def test_a_network_over_two_members(two):
    await pending(two)
    making = spawn(create(two), name="in the background")
    await settled(lambda: row(two).members[1] == 1)
    assert get(two).status == "Pending"
    await member_did(two, transactions.made(row(two).id, 2))
    await making
    assert (get(two).status, get(two).config) == ("Created", PLAIN)
    assert await text_of(create(two), MemberError) == "The network is already created"
    assert await text_of(create(two, target="node1", config={}), MemberError) == "Network is not in pending state"
    assert await text_of(two.services.network_changes.rename("default", "br0", "br1"), BadRequestError) == (
        "Renaming clustered network not supported"
    )


async def test_a_failure_elsewhere_is_undone_here(two):
    await pending(two)
    making = spawn(create(two), name="in the background")
    await settled(lambda: row(two).members[1] == 1)
    await member_did(two, transactions.failed(row(two).id, "br0", 2, 3, 'Parent interface "nope" not found'))
    await settled(lambda: row(two).members == {1: 0, 2: 5})
    assert (get(two).status, two.machine.there) == ("Errored", {})
    await member_did(two, transactions.undone(row(two).id, 2))
    text = await text_of(making, MemberError)
    assert text == 'failed to notify peer 10.0.0.2:8443: Parent interface "nope" not found'
    assert (get(two).status, get(two).config) == ("Pending", {})
    again = spawn(create(two), name="in the background")
    await settled(lambda: row(two).members[1] == 1)
    await member_did(two, transactions.made(row(two).id, 2))
    await again
    assert get(two).status == "Created"


async def test_our_own_failure_is_told_before_that_of_another_member(two):
    await pending(two)
    shares, seen = two.services.network_changes._shares, row(two)
    errors = {member: {transactions.ERROR_KEY: f"no {member}"} for member in (1, 2)}
    creating, errored = queries.NetworkState.CREATING, queries.NetworkState.ERRORED
    shares._check_failed(replace(seen, members={1: creating, 2: errored}, local=errors))  # ours is yet to come
    with pytest.raises(MemberError, match=r"^no 1$"):
        shares._check_failed(replace(seen, members={2: errored, 1: errored}, local=errors))


async def test_a_silent_member_ends_the_creation(two):
    await pending(two)
    assert await text_of(create(two), MemberError) == "peer node 10.0.0.2:8443 is down"
    assert row(two).members == {1: 0, 2: 5}  # what it has to undo when it is back
    assert two.machine.there == {}
    await member_did(two, transactions.undone(row(two).id, 2))
    assert get(two).status == "Pending"


async def test_one_step_over_two_members(two):
    assert await text_of(create(two), MemberError) == "peer node 10.0.0.2:8443 is down"
    assert row(two) is None
    two.online.add(2)
    making = spawn(create(two), name="in the background")
    await settled(lambda: row(two) is not None and row(two).members[1] == 1)
    await member_did(two, transactions.made(row(two).id, 2))
    await making
    assert (get(two).status, get(two).config) == ("Created", PLAIN)


async def test_one_step_that_fails_leaves_no_row(two):
    two.online.add(2)
    making = spawn(create(two), name="in the background")
    await settled(lambda: row(two) is not None and row(two).members[1] == 1)
    await member_did(two, transactions.failed(row(two).id, "br0", 2, 3, "no"))
    await settled(lambda: row(two).members == {2: 4})
    await member_did(two, transactions.removed(row(two).id, 2))
    assert await text_of(making, MemberError) == "failed to notify peer 10.0.0.2:8443: no"
    assert (row(two), two.machine.there) == (None, {})


async def created(two):
    two.online.add(2)
    making = spawn(create(two), name="in the background")
    await settled(lambda: row(two) is not None and row(two).members[1] == 1)
    await member_did(two, transactions.made(row(two).id, 2))
    await making


async def test_changes_of_one_member(two):
    await created(two)
    two.online.discard(2)
    changes = two.services.network_changes
    whole = {**get(two, target="node2").config, "bridge.external_interfaces": "x1"}
    await changes.update("default", "br0", NetworkPut(config=whole), target="node2")
    assert get(two, target="node2").config == {**PLAIN, "bridge.external_interfaces": "x1"}
    assert (get(two).config, get(two, target="node1").config) == (PLAIN, PLAIN)
    for config, target, text in (
        ({"user.x": "y"}, "node2", 'Config key "user.x" may not be used as member-specific key'),
        (
            {"bridge.external_interfaces": "y"},
            None,
            'Config key "bridge.external_interfaces" is cluster member specific',
        ),
    ):
        change = changes.update("default", "br0", NetworkPut(config=config), target=target, patch=True)
        assert await text_of(change, BadRequestError) == text
    await changes.update("default", "br0", NetworkPut(config={**PLAIN, "ipv4.nat": "true"}))
    assert two.machine.there["br0"].config["ipv4.nat"] == "true"
    assert get(two, target="node2").config["bridge.external_interfaces"] == "x1"


async def test_nothing_is_removed_while_the_links_of_a_member_are_away(two, monkeypatch):
    await created(two)
    shares = two.services.network_changes._shares
    consensus = shares._consensus

    def status():
        return SimpleNamespace(member_id=consensus.status().member_id, peers=[SimpleNamespace(id=2, link=False)])

    monkeypatch.setattr(shares, "_consensus", SimpleNamespace(status=status))  # the member was killed a moment ago
    assert await text_of(two.services.network_changes.delete("default", "br0"), MemberError) == (
        "peer node 10.0.0.2:8443 is down"
    )
    assert (get(two).status, get(two).locations) == ("Created", ["node1", "node2"])


async def test_what_is_only_pending_needs_no_member_to_be_deleted(two):
    await pending(two)
    two.online.discard(2)
    await two.services.network_changes.delete("default", "br0")
    assert row(two) is None
    assert two.database.scalar("SELECT COUNT(*) FROM networks_config") == 0


async def test_deletion_over_two_members(two):
    await created(two)
    two.online.discard(2)
    assert await text_of(two.services.network_changes.delete("default", "br0"), MemberError) == (
        "peer node 10.0.0.2:8443 is down"
    )
    assert get(two).status == "Created"
    two.online.add(2)
    deleting = spawn(two.services.network_changes.delete("default", "br0"), name="in the background")
    await settled(lambda: row(two).members == {2: 4})
    await member_did(two, transactions.removed(row(two).id, 2))
    await deleting
    assert row(two) is None
