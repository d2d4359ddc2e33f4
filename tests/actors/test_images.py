"""ImagesActor: copies from other members, files in step with rows."""

from __future__ import annotations

import asyncio

import pytest
from instance_kit import machines, until

from incus_actors.actors.host import IMAGES_PATH
from incus_actors.actors.images import EnsureImage, FetchImage
from incus_actors.errors import MemberError

DAY = 86400


@pytest.fixture
async def pair(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as both:
        for one in both:
            one.members.offline = {m.server.consensus.member_id for m in both if m is not one}  # no copies by itself
        yield both


def nodes(machine, fingerprint):
    rows = machine.database.query(
        "SELECT node_id FROM images_nodes n JOIN images i ON i.id = n.image_id WHERE fingerprint = ? ORDER BY node_id",
        (fingerprint,),
    )
    return [row[0] for row in rows]


async def test_an_image_is_fetched_once_however_many_ask(pair):
    first, second = pair
    fingerprint = await first.add_image()
    await second.server.consensus.read_barrier()
    ref = second.server.actors.ref(IMAGES_PATH)

    answers = await asyncio.gather(*(ref.ask(FetchImage(fingerprint), deadline_s=10) for _ in range(3)))
    assert {answer.fingerprint for answer in answers} == {fingerprint}
    assert len(second.fetches) == 1
    await first.server.consensus.read_barrier()
    assert nodes(first, fingerprint) == [1, 2]


async def test_import_sends_copies_to_the_members_that_are_online(pair):
    first, second = pair
    first.members.offline = set()
    fingerprint = await first.add_image()
    await until(lambda: second.images.get(fingerprint) is not None)
    await until(lambda: nodes(first, fingerprint) == [1, 2])


async def test_bytes_that_are_not_the_image_are_refused(pair):
    first, second = pair
    fingerprint = await first.add_image()
    await second.server.consensus.read_barrier()
    files = first.images.get(fingerprint)
    files.metadata_file.write_bytes(b"something else")
    ref = second.server.actors.ref(IMAGES_PATH)
    with pytest.raises(MemberError, match="Failed getting image"):
        await ref.ask(FetchImage(fingerprint), deadline_s=10)
    assert second.images.get(fingerprint) is None
    assert nodes(second, fingerprint) == [1]


async def test_files_go_when_the_image_is_deleted_but_not_while_in_use(pair):
    first, second = pair
    fingerprint = await first.add_image()
    await second.server.consensus.read_barrier()
    await second.server.actors.ref(IMAGES_PATH).ask(EnsureImage(fingerprint), deadline_s=10)
    with second.host.pins.hold(fingerprint):
        await first.image_service.delete("default", fingerprint)
        await until(lambda: first.images.get(fingerprint) is None)
        await second.server.consensus.read_barrier()
        assert second.images.get(fingerprint) is not None


async def test_after_a_start_rows_and_files_agree_again(pair):
    first, _second = pair
    lost, kept = await first.add_image("lost"), await first.add_image("kept", content=b"y")
    stranger = await first.add_image("stranger", content=b"z")
    await first.stop()
    await first.images.delete(lost)
    await first.execute("DELETE FROM images WHERE fingerprint = ?", stranger)
    await first.execute("DELETE FROM images_nodes WHERE image_id = (SELECT id FROM images WHERE fingerprint = ?)", kept)
    await first.start()
    await until(lambda: nodes(first, kept) == [1] and nodes(first, lost) == [])
    await until(lambda: first.images.get(stranger) is None)
    assert first.images.get(kept) is not None
