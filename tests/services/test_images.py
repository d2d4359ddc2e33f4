"""Images and aliases, with the texts of a real Incus 6.0.4."""

from __future__ import annotations

import os

import pytest
from instance_kit import chunks, machines, unified, until

from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model.images import ImageAliasPatch, ImageAliasPost, ImageAliasPut, ImagePatch, ImagePut
from incus_actors.services.images import Upload, editable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the kit makes a storage pool: run as root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        yield one


def upload(data: bytes, **fields) -> Upload:
    return Upload(
        **{"project": "default", "metadata": chunks(data), "rootfs": None, "found": lambda _f, _s: None, **fields}
    )


async def test_an_import_as_incus_shows_it(machine):
    found = []
    data = unified()
    fingerprint = await machine.image_service.add(
        upload(data, found=lambda f, s: found.append((f, s)), filename="t.tar.gz", properties={"a": "b"}, public=True)
    )
    assert found == [(fingerprint, len(data))]
    image = machine.image_service.get("default", fingerprint[:8])
    assert image.fingerprint == fingerprint
    assert image.properties == {"a": "b", "description": "Tiny", "os": "Tiny"}
    assert (image.public, image.filename, image.architecture, image.size) == (True, "t.tar.gz", "x86_64", len(data))
    assert image.created_at == "2026-11-21T00:45:57Z"
    assert image.expires_at == image.last_used_at == "0001-01-01T00:00:00Z"
    assert image.profiles == ["default"]
    assert machine.actions == ["image-created"]


async def test_refused_imports_leave_nothing(machine):
    fingerprint = await machine.add_image()
    cases = [
        (upload(unified()), "Image with same fingerprint already exists"),
        (upload(unified(b"y"), expected_fingerprint="ab"), "fingerprints don't match, got "),
        (upload(b"file content\n"), "Unsupported compression"),
        (upload(unified(b"z", b"creation_date: 1\n")), "Architecture isn't supported: "),
    ]
    for one, text in cases:
        with pytest.raises(ApiError) as refused:
            await machine.image_service.add(one)
        assert str(refused.value).startswith(text)
    assert [image.fingerprint for image in machine.image_service.list_images("default")] == [fingerprint]
    assert [path.name for path in (machine.server.directory / "images").iterdir()] == [fingerprint]


async def test_changes(machine):
    service, fingerprint = machine.image_service, await machine.add_image()
    with pytest.raises(MemberError, match=r"^Profile 'nope' doesn't exist$"):
        await service.update("default", fingerprint, ImagePut(profiles=["nope"]))
    put = ImagePut(properties={"a": "b"}, public=True, expires_at="2030-01-01T00:00:00Z", profiles=[])
    await service.update("default", fingerprint, put)
    await service.patch("default", fingerprint[:6], ImagePatch(properties={"c": "d"}))
    image = service.get("default", fingerprint)
    assert editable(image) == {
        "auto_update": False,
        "properties": {"a": "b", "c": "d"},
        "public": True,
        "expires_at": "2030-01-01T00:00:00Z",
        "profiles": [],
    }
    for text, call in [
        ('Image "zz" not found', lambda: service.get("default", "zz")),
        ('Image "%" not found', lambda: service.get("default", "%")),
        ("Image not found", lambda: service.editable("default", "zz")),
    ]:
        with pytest.raises(NotFoundError) as missing:
            call()
        assert str(missing.value) == text


async def test_aliases(machine):
    service, fingerprint = machine.image_service, await machine.add_image("")
    await service.create_alias("default", ImageAliasPost(name="t/2", target=fingerprint[:8], description="d"))
    assert service.alias("default", "t/2").target == fingerprint
    assert [a.name for a in service.get("default", fingerprint).aliases] == ["t/2"]
    refused = [
        (ImageAliasPost(name="t/2", target=fingerprint), ConflictError, 'Alias "t/2" already exists'),
        (ImageAliasPost(name="x"), BadRequestError, "name and target are required"),
        (ImageAliasPost(name="x", target="abcd"), NotFoundError, "Image not found"),
    ]
    for post, error, text in refused:
        with pytest.raises(error) as why:
            await service.create_alias("default", post)
        assert str(why.value) == text
    with pytest.raises(BadRequestError, match=r"^The target field is required$"):
        await service.update_alias("default", "t/2", ImageAliasPut())
    await service.patch_alias("default", "t/2", ImageAliasPatch(description="new"))
    await service.rename_alias("default", "t/2", "t3")
    assert (service.alias("default", "t3").description, service.alias("default", "t3").name) == ("new", "t3")
    with pytest.raises(NotFoundError, match=r"^Image alias not found$"):
        service.alias("default", "t/2")
    await service.delete_alias("default", "t3")
    assert service.list_aliases("default") == []


async def test_deleting_an_image_that_is_used_is_allowed(machine):
    fingerprint = await machine.add_image()
    await machine.create()
    await machine.image_service.delete("default", fingerprint)
    await until(lambda: machine.images.get(fingerprint) is None)
    assert machine.image_service.list_aliases("default") == []
    assert machine.volume("c1").exists()
    with pytest.raises(NotFoundError, match=r"^Image not found$"):
        await machine.image_service.delete("default", fingerprint)
    assert fingerprint == await machine.add_image()
