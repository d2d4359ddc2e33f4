"""Pools of a standalone server and of a cluster: texts of a real Incus 6.0.4; every member makes its own share."""

from __future__ import annotations

import asyncio

import pytest
from service_kit import Seen, running_services

from incus_actors.domain import transactions_storage as transactions
from incus_actors.errors import BadRequestError, ConflictError, MemberError, NotFoundError, PreconditionFailedError
from incus_actors.model.resources import PoolPut, PoolsPost, ProfilesPost


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


def post(name="p1", driver="dir", **config: str) -> PoolsPost:
    return PoolsPost(name=name, driver=driver, config={k.replace("_", "."): v for k, v in config.items()})


async def test_a_pool_is_made_and_shown_with_its_source(kit):
    storage = kit.services.storage
    await storage.create(PoolsPost(name="p1", driver="dir", config={"source": "", "user.a": "b"}, description="d"))
    shown = storage.get("p1")
    assert shown.config == {"source": "/pools/p1", "user.a": "b"}
    assert (shown.status, shown.locations, shown.description, shown.driver) == ("Created", ["none"], "d", "dir")
    assert (await storage.resources("p1")).space.total == 2
    assert storage.list() == [shown]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (PoolsPost(), BadRequestError, "No name provided"),
        (PoolsPost(name="x"), BadRequestError, "No driver provided"),
        (post("x", "nope"), MemberError, "Unknown driver"),
        (post("a/b"), BadRequestError, "Storage pool names may not contain slashes"),
        (post("a b"), MemberError, "Storage name cannot contain white space"),
        (post(".."), BadRequestError, 'Invalid storage pool name ".."'),
        (post(foo="1"), MemberError, 'Invalid option "foo"'),
        (post(zfs_pool="1"), MemberError, 'Invalid option "zfs.pool"'),
        (post(volume_size="zz"), MemberError, 'Invalid value for option "volume.size": Invalid value: zz'),
    ],
)
async def test_what_a_pool_cannot_be(kit, given, error, text):
    with pytest.raises(error) as caught:
        await kit.services.storage.create(given)
    assert str(caught.value) == text
    assert kit.services.storage.list() == []


async def test_a_pool_that_cannot_be_made_leaves_nothing(kit):
    kit.pools.broken.add("p1")
    with pytest.raises(MemberError, match="doesn't exist"):
        await kit.services.storage.create(post(source="/nowhere"))
    assert kit.services.storage.list() == []
    kit.pools.broken.clear()
    await kit.services.storage.create(post())
    with pytest.raises(ConflictError, match=r"^The storage pool already exists: The record already exists$"):
        await kit.services.storage.create(post())


async def test_changes(kit):
    storage = kit.services.storage
    await storage.create(post())
    seen = None

    def see(current):
        nonlocal seen
        seen = current

    await storage.update("p1", PoolPut(config={"rsync.bwlimit": "1MB"}), patch=True, expect=see)
    assert storage.get("p1").config == {"rsync.bwlimit": "1MB", "source": "/pools/p1"}
    for config in ({"user.z": "1"}, {"source": "/other"}):
        with pytest.raises(MemberError, match=r"^Pool source cannot be changed when not in pending state$"):
            await storage.update("p1", PoolPut(config=config))
    for value in ("x", ""):  # one that is to be unset must exist, too
        with pytest.raises(BadRequestError, match=r'^Invalid option "foo"$'):
            await storage.update("p1", PoolPut(config={"source": "/pools/p1", "foo": value}))
    await storage.update("p1", PoolPut(config={"source": ""}))  # the preseed that made it, once more
    assert storage.get("p1").config == {"source": "/pools/p1"}
    await storage.update("p1", PoolPut(config={"source": "/pools/p1", "user.z": "1"}, description="hi"))
    assert storage.get("p1").config == {"source": "/pools/p1", "user.z": "1"}
    with pytest.raises(PreconditionFailedError):
        await storage.update("p1", PoolPut(), patch=True, expect=Seen(seen))
    with pytest.raises(NotFoundError, match=r"^Storage pool not found$"):
        await storage.update("nope", PoolPut())


async def test_a_pool_in_a_file_keeps_its_size(kit):
    storage = kit.services.storage
    await storage.create(post(driver="btrfs", size="1GiB"))
    source = storage.get("p1").config["source"]
    for put, patch in ((PoolPut(config={"source": source}), False), (PoolPut(config={"size": ""}), True)):
        with pytest.raises(MemberError, match=r"^Pool cannot be shrunk$"):
            await storage.update("p1", put, patch=patch)
    assert storage.get("p1").config["size"] == "1GiB"


async def test_a_source_belongs_to_one_pool(kit):
    storage = kit.services.storage
    await storage.create(post(source="/srv/one"))
    with pytest.raises(MemberError, match=r"^Source path '/srv//one/' isn't empty: it is storage pool \"p1\"$"):
        await storage.create(post("p2", source="/srv//one/"))
    assert [pool.name for pool in storage.list()] == ["p1"]
    await storage.create(post("p2", source="/srv/one/two"))
    await storage.delete("p1")
    await storage.create(post("p3", source="/srv/one"))


async def test_a_used_pool_says_by_what_and_stays(kit):
    storage = kit.services.storage
    await storage.create(post())
    await kit.services.profiles.create(
        "default", ProfilesPost(name="w", devices={"root": {"type": "disk", "path": "/", "pool": "p1"}})
    )
    assert storage.get("p1").used_by == ["/1.0/profiles/w"]
    with pytest.raises(BadRequestError, match=r"^The storage pool is currently in use$"):
        await storage.delete("p1")
    await kit.services.profiles.delete("default", "w")
    await kit.add_instance("c1", pool="p1")
    assert storage.get("p1").used_by == ["/1.0/instances/c1"]
    with pytest.raises(BadRequestError, match=r"^The storage pool is currently in use$"):
        await storage.delete("p1")
    await kit.sql("DELETE FROM storage_volumes")
    await storage.delete("p1")
    assert kit.pools.made == {}
    with pytest.raises(NotFoundError):
        storage.get("p1")


async def test_a_pool_that_cannot_be_removed_is_errored_and_can_be_deleted_again(kit):
    storage = kit.services.storage
    await storage.create(post())
    kit.pools.broken.add("p1")
    with pytest.raises(MemberError, match="busy"):
        await storage.delete("p1")
    assert storage.get("p1").status == "Errored"
    assert transactions.ERROR_KEY not in storage.get("p1").config
    kit.pools.broken.clear()
    await storage.delete("p1")
    assert storage.list() == []


async def test_in_a_cluster_every_member_is_named_first(kit):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    with pytest.raises(MemberError, match=r'^Config key "source" is cluster member specific$'):
        await storage.create(post(source="/x"))
    with pytest.raises(NotFoundError, match=r"^Cluster member not found$"):
        await storage.create(post(), "nope")
    with pytest.raises(MemberError, match=r'^Config key "user.x" may not be used as member-specific key$'):
        await storage.create(post(user_x="1"), "node1")
    await storage.create(post(source="/srv/one"), "node1")
    with pytest.raises(BadRequestError, match=r'^The storage pool already defined on member "node1"$'):
        await storage.create(post(), "node1")
    with pytest.raises(MemberError, match=r"^Storage pool already exists with a different driver$"):
        await storage.create(post(driver="btrfs"), "node2")
    with pytest.raises(BadRequestError, match=r"^Unknown driver$"):
        await storage.create(post("p2", "nope"), "node1")
    assert storage.get("p1").status == storage.get("p1", "node1").status == "Pending"
    assert storage.get("p1", "node2").status == "Unknown"
    with pytest.raises(MemberError, match=r"^Pool not defined on nodes: node2$"):
        await storage.create(post())
    for put in (PoolPut(config={"user.x": "1"}), PoolPut(description="d"), PoolPut(config={"foo": "1"})):
        with pytest.raises(
            BadRequestError, match=r"^Cannot update storage pool global config when not in created state$"
        ):
            await storage.update("p1", put, patch=True)
    await storage.create(post(), "node2")
    with pytest.raises(MemberError, match=r'^Config key "source" is cluster member specific$'):
        await storage.create(post(source="/x"))
    with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
        await storage.create(post(user_x="1"))
    assert kit.pools.made == {}  # nobody has it: it is pending again, with the keys that were given
    assert storage.get("p1").status == "Pending"
    assert storage.get("p1", "node1").config["source"] == "/srv/one"
    pool_id = kit.database.scalar("SELECT id FROM storage_pools")
    await kit.consensus.propose(transactions.pool_undone(pool_id, "p1", 2, {}))
    async with asyncio.TaskGroup() as group:
        group.create_task(storage.create(post(user_x="1")))
        group.create_task(node2_makes_its_share(kit, "p1"))
    assert kit.pools.made["p1"].config["source"] == "/srv/one"
    shown = storage.get("p1")
    assert (shown.status, shown.config, shown.locations) == ("Created", {"user.x": "1"}, ["node1", "node2"])
    assert storage.get("p1", "node2").config == {"source": "/two", "user.x": "1"}
    with pytest.raises(MemberError, match=r"^Storage pool is not in pending state$"):
        await storage.create(post(), "node1")
    with pytest.raises(MemberError, match=r"^The storage pool is already created$"):
        await storage.create(post())


async def test_the_second_phase_is_of_the_same_driver_as_the_first(kit):
    storage = kit.services.storage
    kit.keeper.drivers = frozenset({"dir", "btrfs"})
    await kit.become_clustered()
    await storage.create(post("pb", "btrfs"), "node1")
    text = r'^Requested storage pool driver "dir" doesn\'t match driver in existing database record "btrfs"$'
    with pytest.raises(MemberError, match=text):
        await storage.create(post("pb", "dir"))
    assert storage.get("pb").status == "Pending"
    await storage.create(post("pb", "btrfs"))
    with pytest.raises(MemberError, match=r"^The storage pool is already created$"):
        await storage.create(post("pb", "dir"))


async def node2_makes_its_share(kit, name, config=None) -> None:
    """What the other member's daemon does when it sees the rows."""
    async with asyncio.timeout(5):
        while kit.database.scalar("SELECT state FROM storage_pools_nodes WHERE node_id = 2") != 3:
            await asyncio.sleep(0.005)
    pool_id = kit.database.scalar("SELECT id FROM storage_pools WHERE name = ?", (name,))
    await kit.consensus.propose(transactions.pool_made(pool_id, name, {2: config or {"source": "/two"}}))


async def test_one_command_is_enough_where_no_member_needs_its_own_keys(kit):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    async with asyncio.TaskGroup() as group:
        group.create_task(storage.create(post(user_x="1")))
        group.create_task(node2_makes_its_share(kit, "p1"))
    shown = storage.get("p1")
    assert (shown.status, shown.config, shown.locations) == ("Created", {"user.x": "1"}, ["node1", "node2"])
    with pytest.raises(MemberError, match=r"^The storage pool is already created$"):
        await storage.create(post())


@pytest.mark.parametrize("target", [None, "node1", "node2"])
async def test_a_driver_that_does_not_work_on_the_member_asked_is_refused_before_anything_is_written(kit, target):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    kit.keeper.reasons = {"lvm": "Required tool 'lvm' is missing"}
    for driver, text in (("lvm", r"^Required tool 'lvm' is missing$"), ("zfs", r"^Unknown driver$")):
        with pytest.raises(MemberError, match=text):
            await storage.create(post("p1", driver), target)
    assert storage.list() == []


@pytest.mark.parametrize("forget", [True, False])
async def test_a_share_that_fails_after_the_others_gave_up_is_taken_back_too(kit, forget):
    """Its failure comes too late to matter: the mark to undo must outlive it."""
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    failing, gate = asyncio.Event(), asyncio.Event()

    async def fail(_pool) -> None:
        failing.set()
        await gate.wait()
        raise MemberError('Failed loading storage driver "lvm": Unknown storage driver')

    kit.pools.create = fail
    await kit.consensus.propose(transactions.define_pool_everywhere("p1", "lvm", "", {}, [1, 2]))
    await failing.wait()
    pool_id = kit.database.scalar("SELECT id FROM storage_pools")
    await kit.consensus.propose(transactions.undo_pool(pool_id, forget=forget))
    gate.set()
    async with asyncio.timeout(5):
        while kit.database.scalar("SELECT state FROM storage_pools_nodes WHERE node_id = 1") not in (None, 0):
            await asyncio.sleep(0.005)
    assert kit.database.scalar("SELECT state FROM storage_pools") == 0


@pytest.mark.parametrize("phases", [1, 2])
async def test_what_one_member_cannot_make_nobody_keeps(kit, phases):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    if phases == 2:
        await storage.create(post(source="/one"), "node1")
        await storage.create(post(source="/two"), "node2")

    async def node2_fails_and_takes_back() -> None:
        async with asyncio.timeout(5):
            while kit.database.scalar("SELECT state FROM storage_pools_nodes WHERE node_id = 2") != 3:
                await asyncio.sleep(0.005)
            pool_id = kit.database.scalar("SELECT id FROM storage_pools")
            await kit.consensus.propose(transactions.pool_failed(pool_id, "p1", 2, 3, "no such disk"))
            wanted = 5 if phases == 2 else 4
            while kit.database.scalar("SELECT state FROM storage_pools_nodes WHERE node_id = 2") != wanted:
                await asyncio.sleep(0.005)
            if phases == 2:
                await kit.consensus.propose(transactions.pool_undone(pool_id, "p1", 2, {"source": "/two"}))
            else:
                await kit.consensus.propose(transactions.pool_removed(pool_id, 2))

    async def create() -> None:
        with pytest.raises(MemberError, match=r"^failed to notify peer 10\.0\.0\.2:8443: no such disk$"):
            await storage.create(post(user_x="1"))

    async with asyncio.TaskGroup() as group:
        group.create_task(create())
        group.create_task(node2_fails_and_takes_back())
    assert kit.pools.made == {}
    if phases == 1:
        assert storage.list() == []
        return
    assert storage.get("p1").status == "Pending"
    assert [storage.get("p1", name).config["source"] for name in ("node1", "node2")] == ["/one", "/two"]


async def test_where_undoing_fails_the_pool_is_errored_and_can_be_completed(kit):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    await storage.create(post(source="/one"), "node1")
    await storage.create(post(), "node2")
    real = kit.pools.delete

    async def busy(_pool) -> None:
        raise MemberError("Storage pool directory is busy")

    kit.pools.delete = busy
    with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
        await storage.create(post())
    kit.pools.delete = real
    assert storage.get("p1").status == "Errored"
    async with asyncio.TaskGroup() as group:
        group.create_task(storage.create(post()))
        group.create_task(node2_makes_its_share(kit, "p1"))
    assert storage.get("p1").status == "Created"
    assert storage.get("p1", "node1").config == {"source": "/one"}


async def test_a_member_that_is_away_is_named_at_once(kit):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    storage._online = lambda member_id: member_id != 2
    with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
        await storage.create(post())
    assert storage.list() == []
    await storage.create(post(), "node1")
    await storage.create(post(), "node2")  # its definition needs nobody
    with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
        await storage.create(post())
    assert kit.pools.made == {}


async def test_a_share_that_is_made_too_late_is_taken_back(kit):
    """The member was slow; meanwhile the others gave up."""
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    await storage.create(post(source="/one"), "node1")
    await storage.create(post(), "node2")
    pool_id = kit.database.scalar("SELECT id FROM storage_pools")
    gate = asyncio.Event()
    real = kit.pools.create

    async def slow(pool):
        await gate.wait()
        return await real(pool)

    kit.pools.create = slow
    await kit.consensus.propose(transactions.define_pool_config(pool_id, "p1", "", {}))
    await asyncio.sleep(0.05)
    await kit.consensus.propose(transactions.undo_pool(pool_id, forget=False))
    gate.set()
    async with asyncio.timeout(5):
        while kit.database.scalar("SELECT state FROM storage_pools_nodes WHERE node_id = 1") != 0:
            await asyncio.sleep(0.005)
    assert kit.pools.made == {}
    assert storage.get("p1", "node1").config == {"source": "/one"}


async def test_in_a_cluster_keys_have_one_scope(kit):
    storage = kit.services.storage
    await storage.create(post())
    await kit.become_clustered()
    with pytest.raises(BadRequestError, match=r'^Config key "source" is cluster member specific$'):
        await storage.update("p1", PoolPut(config={"source": "/x"}))
    with pytest.raises(BadRequestError, match=r'^Config key "user.x" may not be used as cluster member specific key$'):
        await storage.update("p1", PoolPut(config={"user.x": "1"}), target="node1", patch=True)
    await storage.update("p1", PoolPut(config={"user.x": "1"}))
    assert storage.get("p1").config == {"user.x": "1"}
    assert storage.get("p1", "node1").config == {"source": "/pools/p1", "user.x": "1"}


async def test_a_member_finishes_what_the_rows_say_after_a_crash(kit):
    """The rows of a create and of a delete are there, and nobody has done anything yet."""
    await kit.consensus.propose(transactions.define_pool("p1", "dir", "", {}, (1, {})))
    async with asyncio.timeout(5):
        while not kit.services.storage.list() or kit.services.storage.get("p1").status != "Created":
            await asyncio.sleep(0.01)
    assert "p1" in kit.pools.made
    await kit.consensus.propose(transactions.retire_pool(1, "p1"))
    async with asyncio.timeout(5):
        while kit.services.storage.list():
            await asyncio.sleep(0.01)
    assert kit.pools.made == {}


async def test_after_a_join_the_share_of_every_pool_is_made(kit):
    await kit.services.storage.create(post())
    kit.pools.made.clear()
    await kit.keeper.own_pools_ready()
    assert list(kit.pools.made) == ["p1"]


async def test_a_pool_is_deleted_only_when_everybody_with_a_share_is_there(kit, monkeypatch):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    for name in ("node1", "node2"):
        await storage.create(post(), name)
    async with asyncio.TaskGroup() as group:
        group.create_task(storage.create(post()))
        group.create_task(node2_makes_its_share(kit, "p1"))
    monkeypatch.setattr(storage, "_online", lambda _member_id: False)
    with pytest.raises(MemberError, match=r"^peer node 10\.0\.0\.2:8443 is down$"):
        await storage.delete("p1")
    assert storage.get("p1").status == "Created"
    assert "p1" in kit.pools.made


async def test_members_that_leave_hold_nothing_up(kit):
    storage = kit.services.storage
    await kit.become_clustered()
    await kit.add_member(2, "node2")
    for name in ("node1", "node2"):
        await storage.create(post(), name)
    with pytest.raises(MemberError, match=r"is down$"):
        await storage.create(post())
    await kit.sql("DELETE FROM nodes WHERE id = 2")
    await storage.create(post())
    assert storage.get("p1").status == "Created"
    await kit.sql("DELETE FROM storage_pools_nodes")
    await storage.delete("p1")
    assert storage.list() == []


async def test_the_machine_follows_before_a_change_is_recorded(kit):
    storage = kit.services.storage
    await storage.create(post())
    await storage.update("p1", PoolPut(config={"rsync.bwlimit": "1MB"}), patch=True)
    assert kit.pools.updated[0] == (
        "p1",
        {"source": "/pools/p1"},
        {"source": "/pools/p1", "rsync.bwlimit": "1MB"},
    )
    kit.pools.broken.add("p1")
    with pytest.raises(MemberError, match=r"^Pool cannot be shrunk$"):
        await storage.update("p1", PoolPut(config={"rsync.bwlimit": "2MB"}), patch=True)
    assert storage.get("p1").config["rsync.bwlimit"] == "1MB"


async def test_other_members_follow_what_was_recorded(kit):
    storage = kit.services.storage
    await storage.create(post())
    pool_id = kit.database.scalar("SELECT id FROM storage_pools")
    kit.pools.updated.clear()
    old = ("", {}, {"source": "/pools/p1"})
    new = ("", {"user.a": "b"}, {"source": "/pools/p1"})
    assert (await kit.consensus.propose(transactions.update_pool(pool_id, "p1", old, new, 1))).applied
    async with asyncio.timeout(5):
        while not kit.pools.updated:
            await asyncio.sleep(0.01)
    assert kit.pools.updated == [("p1", {"source": "/pools/p1"}, {"source": "/pools/p1", "user.a": "b"})]


async def test_unpacked_images_are_no_reason_to_keep_a_pool(kit):
    storage = kit.services.storage
    await storage.create(post())
    await kit.sql(
        "INSERT INTO storage_volumes (name, storage_pool_id, node_id, type, project_id)"
        " VALUES ('7aa2', (SELECT id FROM storage_pools), 1, 1, 1)"
    )
    assert storage.get("p1").used_by == ["/1.0/images/7aa2"]
    await storage.delete("p1")
    assert storage.list() == []
