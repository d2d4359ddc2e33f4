"""Every route of the daemon against every kind of caller: a new route must be put into one of the lists below."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from plain_rest_kit import running_rest

from incus_actors.errors import ForbiddenError
from incus_actors.gateway.access import Caller
from incus_actors.model.resources import CertificatesPost, ProjectsPost
from incus_actors.rest.app import collect_routes
from incus_actors.rest.http import RouteSpec
from incus_actors.rest.middleware import authorize
from incus_actors.security import certificates

STRANGER = Caller("untrusted", "", "1.2.3.4:5", "ff" * 32, "PEM")
METRICS = Caller("tls", "aa" * 32, "1.2.3.4:5", "aa" * 32, trusted=True, metrics_only=True)
LIMITED = Caller("tls", "bb" * 32, "1.2.3.4:5", "bb" * 32, trusted=True, projects=frozenset({"mine"}))
CLIENT = Caller("tls", "cc" * 32, "1.2.3.4:5", "cc" * 32, trusted=True)
MEMBER = Caller("member", "node2", "1.2.3.4:5", "dd" * 32, trusted=True)
ROOT = Caller("unix", "root", "@", trusted=True)

#: What strangers reach; each of these handlers looks at who asks.
FOR_STRANGERS = {
    "GET /",
    "GET /1.0",
    "POST /1.0/certificates",
    "POST /internal/cluster/accept",
    "POST /internal/cluster/standing",
    "GET /1.0/images/{fingerprint}/export",
}
#: What a client limited to projects may read without naming one of its own; handlers show only what is its business.
FOR_EVERY_PROJECT = {
    "GET /1.0/certificates",
    "GET /1.0/certificates/{fingerprint}",
    "GET /1.0/cluster",
    "GET /1.0/cluster/groups",
    "GET /1.0/cluster/groups/{name}",
    "GET /1.0/cluster/members",
    "GET /1.0/cluster/members/{name}",
    "GET /1.0/cluster/members/{name}/state",
    "GET /1.0/events",
    "GET /1.0/metadata/configuration",
    "GET /1.0/operations",
    "GET /1.0/operations/{id}",
    "GET /1.0/operations/{id}/wait",
    "GET /1.0/operations/{id}/websocket",
    "GET /1.0/projects",
    "GET /1.0/projects/{name}",
    "GET /1.0/projects/{name}/state",
    "GET /1.0/resources",
    "GET /1.0/storage-pools",
    "GET /1.0/storage-pools/{name}",
    "GET /1.0/storage-pools/{name}/resources",
}
ROUTES = collect_routes()


def named(spec: RouteSpec) -> str:
    return f"{spec.method} {spec.path}"


def may(who: Caller, spec: RouteSpec, query: str = "") -> bool:
    try:
        authorize(make_mocked_request(spec.method, spec.path + query), spec, who)
    except ForbiddenError:
        return False
    return True


@pytest.mark.parametrize("spec", ROUTES, ids=named)
def test_every_route(spec):
    untrusted = spec.access == "untrusted"
    assert may(STRANGER, spec) is (named(spec) in FOR_STRANGERS)
    assert may(METRICS, spec) is (untrusted or spec.access == "metrics")
    assert may(CLIENT, spec) is (spec.access != "member")
    assert may(MEMBER, spec)
    assert may(ROOT, spec)
    for query in ("", "?project=theirs", "?project=mine&project=theirs", "?project=theirs&all-projects=true"):
        first = query.partition("project=")[2].partition("&")[0]
        open_to_all = untrusted or spec.access == "metrics" or named(spec) in FOR_EVERY_PROJECT
        assert may(LIMITED, spec, query) is (open_to_all or (spec.project_scoped and first == "mine")), query
    if spec.project_scoped and spec.access == "trusted":
        assert may(LIMITED, spec, "?project=mine")
        assert may(LIMITED, spec, "?all-projects=true") is (spec.method == "GET")
    if spec.path.startswith("/internal") and not untrusted:
        assert spec.access == "member"


async def test_what_a_project_borrows_is_not_its_to_change(tmp_path: Path) -> None:
    async with running_rest(tmp_path) as rest:
        for name, own in (("borrows", "false"), ("owns", "true")):
            await rest.kit.services.projects.create(ProjectsPost(name=name, config={"features.profiles": own}))
        certificate, key = certificates.make_certificate("alice")
        (tmp_path / "pair").mkdir()
        pair = certificates.write_pair(tmp_path / "pair", "alice", certificate, key)
        await rest.kit.services.trust.add(
            CertificatesPost(
                name="alice",
                type="client",
                certificate=base64.b64encode(certificates.pem_to_der(certificate)).decode(),
                restricted=True,
                projects=["borrows", "owns"],
            )
        )
        put = {"config": {"user.x": "1"}, "devices": {}, "description": ""}
        async with rest.tls(pair) as alice:
            for project, status in (("owns", 200), ("borrows", 403), ("default", 403)):
                path = f"/1.0/profiles/default?project={project}"
                assert (await rest.ask("PUT", path, put, session=alice)).status == status, project
            read = await rest.ask("GET", "/1.0/profiles/default?project=borrows", session=alice)
            assert (read.status, read.metadata["config"]) == (200, {})
            seen = await rest.ask("GET", "/1.0/certificates?recursion=1", session=alice)
            assert [c["name"] for c in seen.metadata] == ["alice"]
            seen = await rest.ask("GET", "/1.0/projects", session=alice)
            assert sorted(seen.metadata) == ["/1.0/projects/borrows", "/1.0/projects/owns"]
            fingerprint = pair.fingerprint
            change = {"name": "alice", "type": "client", "restricted": False, "projects": []}
            assert (await rest.ask("PUT", f"/1.0/certificates/{fingerprint}", change, session=alice)).status == 403
