"""/1.0/images as requests and answers: bodies in and out."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile

import aiohttp
import pytest
from instance_kit import METADATA, chunks, machines, served, unified

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the kit makes a storage pool: run as root")

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
async def api(tmp_path):
    async with machines(tmp_path) as (machine,), served(machine) as found:
        found.machine = machine
        yield found


async def upload(api, data: bytes, **headers):
    return await api("POST", "/1.0/images", data, headers={**OCTETS, **headers})


async def test_a_unified_image_in_and_out(api):
    data = unified()
    headers = {"X-Incus-Filename": "u.tar.gz", "X-Incus-Properties": "foo=bar&x=a%20b", "X-Incus-Public": "true"}
    status, operation = await upload(api, data, **headers)
    fingerprint = hashlib.sha256(data).hexdigest()
    assert (status, operation["description"]) == (200, "Downloading image")
    assert operation["metadata"] == {"fingerprint": fingerprint, "size": str(len(data))}
    _, image = await api("GET", f"/1.0/images/{fingerprint[:10]}")
    assert (image["filename"], image["public"]) == ("u.tar.gz", True)
    assert image["properties"] == {"description": "Tiny", "foo": "bar", "os": "Tiny", "x": "a b"}
    async with api.session.get(f"/1.0/images/{fingerprint}/export") as response:
        assert response.headers["Content-Disposition"] == f"inline;filename={fingerprint}.tar.gz"
        assert response.headers["X-Incus-Type"] == "incus"
        assert await response.read() == data
    async with api.session.get(f"/internal/images/{fingerprint}/export") as response:
        assert response.headers["X-Incus-Actors-Metadata-Size"] == str(len(data))
        assert await response.read() == data
    assert await api("GET", "/internal/images/abc/export") == (404, "Image not found")


async def test_a_split_image_in_and_out(api):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        info = tarfile.TarInfo("metadata.yaml")
        info.size = len(METADATA)
        archive.addfile(info, io.BytesIO(METADATA))
    metadata = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("etc")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    rootfs = buffer.getvalue()
    form = aiohttp.FormData()
    form.add_field("metadata", metadata, filename="meta.tar.xz", content_type="application/octet-stream")
    form.add_field("rootfs", rootfs, filename="rootfs.tar.gz", content_type="application/octet-stream")
    status, operation = await api("POST", "/1.0/images", form)
    assert status == 200, operation
    fingerprint = hashlib.sha256(metadata + rootfs).hexdigest()
    assert operation["metadata"]["fingerprint"] == fingerprint
    async with api.session.get(f"/1.0/images/{fingerprint}/export") as response:
        reader = aiohttp.MultipartReader.from_response(response)
        parts = {}
        while (part := await reader.next()) is not None:
            assert part.filename
            parts[part.name] = await part.read()
    assert parts == {"metadata": metadata, "rootfs": rootfs}


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", "it is empty"), (b"file content\n", "Unsupported compression"), (unified()[:-200], "")],
)
async def test_broken_uploads_end_as_failed_operations(api, data, text):
    status, operation = await upload(api, data)
    assert status == 400
    assert text in operation["err"]
    assert await api("GET", "/1.0/images") == (200, [])


async def test_a_second_upload_of_the_same(api):
    await upload(api, unified())
    status, operation = await upload(api, unified())
    assert (status, operation["err"]) == (400, "Image with same fingerprint already exists")
    assert operation["metadata"]["fingerprint"]


async def test_a_multipart_body_without_its_parts(api):
    form = aiohttp.FormData()
    form.add_field("other", b"x", filename="x")
    status, operation = await api("POST", "/1.0/images", form)
    assert (status, operation["err"]) == (400, "Invalid multipart image")


async def test_an_upload_that_breaks_off_leaves_nothing(api):
    async def half():
        async for chunk in chunks(unified(os.urandom(100_000))):
            yield chunk
            if chunk:
                raise ConnectionResetError

    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await api.session.post("/1.0/images", data=half(), headers=OCTETS)
    for operation in api.gateway.operations.running():
        await operation.wait(5)
    assert await api("GET", "/1.0/images") == (200, [])
    assert list((api.machine.server.directory / "images").iterdir()) == []


async def test_json_sources_are_not_there_yet(api):
    headers = {"Content-Type": "application/json"}
    assert await api("POST", "/1.0/images", {"source": {}}, headers=headers) == (500, "Invalid images JSON")
    assert (await api("POST", "/1.0/images", {"source": {"type": "url"}}, headers=headers))[0] == 501
    assert (await api("POST", "/1.0/images", b"{", headers=headers))[0] == 400


async def test_change_alias_and_delete(api):
    _, operation = await upload(api, unified())
    fingerprint = operation["metadata"]["fingerprint"]
    alias = {"description": "", "target": fingerprint, "name": "t/1", "type": ""}
    assert await api("POST", "/1.0/images/aliases", alias) == (201, None)
    assert await api("GET", "/1.0/images/aliases") == (200, ["/1.0/images/aliases/t%2F1"])
    shown = {"description": "", "target": fingerprint, "name": "t/1", "type": "container"}
    assert await api("GET", "/1.0/images/aliases/t%2F1") == (200, shown)
    assert await api("GET", "/1.0/images/aliases/t/1") == (200, shown)
    assert await api("POST", "/1.0/images/aliases/t%2F1", {"name": "t2"}) == (201, None)
    assert await api("GET", "/1.0/images/aliases/t%2F1") == (404, "Image alias not found")
    async with api.session.get(f"/1.0/images/{fingerprint}") as response:
        etag = response.headers["Etag"]
    put = {"auto_update": False, "properties": {"a": "b"}, "public": True, "profiles": ["default"]}
    assert await api("PUT", f"/1.0/images/{fingerprint}", put, headers={"If-Match": etag}) == (200, {})
    assert (await api("PUT", f"/1.0/images/{fingerprint}", put, headers={"If-Match": etag}))[0] == 412
    assert await api("PATCH", f"/1.0/images/{fingerprint}", {"properties": {"c": "d"}}) == (200, {})
    _, images = await api("GET", "/1.0/images?recursion=1&filter=public%20eq%20true")
    assert images[0]["properties"] == {"a": "b", "c": "d"}
    assert images[0]["aliases"] == [{"name": "t2", "description": ""}]
    status, operation = await api("POST", f"/1.0/images/{fingerprint}/refresh")
    assert operation["err"].endswith("Image source not found")
    status, operation = await api("DELETE", f"/1.0/images/{fingerprint}")
    assert (status, operation["description"]) == (200, "Deleting image")
    assert await api("DELETE", f"/1.0/images/{fingerprint}") == (404, "Image not found")
    assert await api("GET", "/1.0/images/aliases") == (200, [])
