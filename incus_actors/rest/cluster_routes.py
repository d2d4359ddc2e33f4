"""/1.0/cluster: bootstrap, join, tokens, members, groups; and the private calls of joining and leaving servers.

Owns the shapes of requests and answers of CONTRACT 5.2. Handlers parse and call services; they must hold no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from incus_actors.errors import BadRequestError, ForbiddenError, NotImplementedHereError
from incus_actors.model.cluster import (
    AcceptRequest,
    CertificateWanted,
    ClusterCertificatePut,
    ClusterGroupPost,
    ClusterGroupPut,
    ClusterMember,
    ClusterMemberPatch,
    ClusterMemberPut,
    ClusterPut,
    ReplaceRequest,
    ServerName,
    WithdrawRequest,
)
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
    accepted,
    accepted_rendered,
    check_etag,
    created,
    etag_of,
    flag,
    read_json,
    recursion,
    sync,
    url_of,
)
from incus_actors.services.acceptance import Applicant
from incus_actors.services.cluster_certificate import FETCH_PATH, KEEP_PATH
from incus_actors.services.replace import REPLACE_PATH

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation
    from incus_actors.services.cluster_use_cases import ClusterUseCases

_MEMBER = "/1.0/cluster/members/{name}"
_GROUP = "/1.0/cluster/groups/{name}"
#: What Incus writes into `resources` of operations on the cluster.
_RESOURCES = cast("dict[str, list[str]]", {"cluster": None})


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", "/1.0/cluster", get_cluster, consistency="fallback"),
        RouteSpec("PUT", "/1.0/cluster", put_cluster, access="admin", own=True),
        RouteSpec("PUT", "/1.0/cluster/certificate", put_certificate, access="admin"),
        RouteSpec("GET", "/1.0/cluster/members", get_members, consistency="fallback"),
        RouteSpec("POST", "/1.0/cluster/members", post_members, access="admin"),
        RouteSpec("GET", _MEMBER, get_member, consistency="fallback"),
        RouteSpec("PUT", _MEMBER, put_member, access="admin"),
        RouteSpec("PATCH", _MEMBER, patch_member, access="admin"),
        RouteSpec("POST", _MEMBER, post_member, access="admin"),
        RouteSpec("DELETE", _MEMBER, delete_member, access="admin"),
        RouteSpec("GET", f"{_MEMBER}/state", get_member_state),
        RouteSpec("GET", "/1.0/cluster/groups", get_groups),
        RouteSpec("POST", "/1.0/cluster/groups", post_groups, access="admin"),
        RouteSpec("GET", _GROUP, get_group),
        RouteSpec("PUT", _GROUP, put_group, access="admin"),
        RouteSpec("PATCH", _GROUP, patch_group, access="admin"),
        RouteSpec("POST", _GROUP, post_group, access="admin"),
        RouteSpec("DELETE", _GROUP, delete_group, access="admin"),
        RouteSpec("POST", "/internal/cluster/accept", accept, access="untrusted"),
        RouteSpec("POST", REPLACE_PATH, replace, access="member"),
        RouteSpec("POST", "/internal/cluster/withdraw", withdraw, access="member"),
        RouteSpec("POST", "/internal/cluster/standing", standing, access="untrusted", consistency="local"),
        RouteSpec("POST", KEEP_PATH, keep_certificate, access="member", consistency="local"),
        RouteSpec("POST", FETCH_PATH, fetch_certificate, access="member", consistency="local"),
        RouteSpec("POST", "/internal/cluster/reset", reset, access="member", consistency="local"),
    ]


def _cluster(request: web.Request) -> ClusterUseCases:
    return gateway(request).services.cluster


def _name(request: web.Request) -> str:
    return request.match_info["name"]


# -- the cluster ------------------------------------------------------------------------------------------------


async def get_cluster(request: web.Request) -> web.StreamResponse:
    """GET /1.0/cluster."""
    view = _cluster(request).bootstrap.view()
    return sync(view, etag=etag_of(view))


async def put_cluster(request: web.Request) -> web.StreamResponse:
    """PUT /1.0/cluster: bootstrap without `server_address`, join with it."""
    put = await read_json(request, ClusterPut)
    cluster = _cluster(request)
    check_etag(request, cluster.bootstrap.view())
    if not put.enabled:
        raise NotImplementedHereError("Clustering can't be disabled; remove the member from its cluster instead")
    if put.server_address or put.cluster_address:
        return _join(request, put)
    return _bootstrap(request, put)


def _bootstrap(request: web.Request, put: ClusterPut) -> web.StreamResponse:
    here = gateway(request)
    cluster = _cluster(request)
    asked_by = caller(request)
    cluster.bootstrap.check_bootstrap(put)

    async def run(_operation: Operation) -> None:
        await cluster.bootstrap.bootstrap(put)
        here.events.lifecycle("cluster-enabled", f"/1.0/cluster/{put.server_name}", project="default", caller=asked_by)

    return accepted(
        here.operations.create(
            kind="task",
            description="Creating bootstrap node",
            project=None,
            resources=_RESOURCES,
            run=run,
            caller=asked_by,
        )
    )


def _join(request: web.Request, put: ClusterPut) -> web.StreamResponse:
    here = gateway(request)
    cluster = _cluster(request)
    asked_by = caller(request)
    cluster.join.check_join(put)

    async def run(_operation: Operation) -> None:
        await cluster.join.join(put)
        source = url_of("cluster", "members", put.server_name)
        here.events.lifecycle("cluster-member-added", source, project="default", caller=asked_by)

    return accepted(
        here.operations.create(
            kind="task",
            description="Joining cluster",
            project=None,
            resources=_RESOURCES,
            run=run,
            caller=asked_by,
        )
    )


async def put_certificate(request: web.Request) -> web.StreamResponse:
    """PUT /1.0/cluster/certificate: another pair on all members."""
    put = await read_json(request, ClusterCertificatePut)
    await _cluster(request).certificate.replace(put)
    gateway(request).events.lifecycle(
        "cluster-certificate-updated", "/1.0/cluster/certificate", project="default", caller=caller(request)
    )
    return sync()


# -- members ----------------------------------------------------------------------------------------------------


async def get_members(request: web.Request) -> web.StreamResponse:
    """GET /1.0/cluster/members: URLs, or objects with ?recursion=1."""
    members = _cluster(request).members.members()
    if recursion(request):
        return sync(members)
    return sync([url_of("cluster", "members", member.server_name) for member in members])


async def post_members(request: web.Request) -> web.StreamResponse:
    """POST /1.0/cluster/members: a join token, as an operation of class "token"."""
    body = await read_json(request, ServerName)
    here = gateway(request)
    rendered = await _cluster(request).tokens.issue(body.server_name)
    here.events.publish("operation", rendered, "default")
    here.events.lifecycle("cluster-token-created", "/1.0/cluster/members", project="default", caller=caller(request))
    return accepted_rendered(rendered["id"], rendered)


def _editable(member: ClusterMember) -> dict[str, Any]:
    return {
        "roles": sorted(member.roles),
        "failure_domain": member.failure_domain,
        "description": member.description,
        "config": member.config,
        "groups": sorted(member.groups),
    }


async def get_member(request: web.Request) -> web.StreamResponse:
    """GET one member."""
    member = _cluster(request).members.get(_name(request))
    return sync(member, etag=etag_of(_editable(member)))


async def put_member(request: web.Request) -> web.StreamResponse:
    """PUT: replace what can be changed."""
    members = _cluster(request).members
    put = await read_json(request, ClusterMemberPut)
    check_etag(request, _editable(members.get(_name(request))))
    await members.put(_name(request), put)
    return sync()


async def patch_member(request: web.Request) -> web.StreamResponse:
    """PATCH: change what is given."""
    members = _cluster(request).members
    patch = await read_json(request, ClusterMemberPatch)
    check_etag(request, _editable(members.get(_name(request))))
    await members.patch(_name(request), patch)
    return sync()


async def post_member(request: web.Request) -> web.StreamResponse:
    """POST: rename."""
    body = await read_json(request, ServerName)
    await _cluster(request).members.rename(_name(request), body.server_name)
    gateway(request).events.lifecycle(
        "cluster-member-renamed",
        url_of("cluster", "members", body.server_name),
        project="default",
        caller=caller(request),
        context={"old_name": _name(request)},
    )
    return sync()


async def delete_member(request: web.Request) -> web.StreamResponse:
    """DELETE: take a member out; ?force=1 without asking it."""
    cluster = _cluster(request)
    remover = await cluster.members.other_remover(_name(request))
    if remover is not None and not caller(request).forwarded:
        return await gateway(request).forwarder.forward(request, remover)
    removed = await cluster.members.remove(_name(request), force=flag(request, "force"))
    if removed.online:
        await cluster.leave.tell(removed)
    gateway(request).events.lifecycle(
        "cluster-member-removed",
        url_of("cluster", "members", removed.name),
        project="default",
        caller=caller(request),
    )
    return sync()


async def get_member_state(request: web.Request) -> web.StreamResponse:
    """GET state: answered by the member itself."""
    here = gateway(request)
    name = _name(request)
    members = _cluster(request).members
    member_id = members.id_of(name)
    if member_id != here.identity.member_id and not caller(request).forwarded:
        return await here.forwarder.forward(request, member_id)
    return sync(await members.state())


# -- groups -----------------------------------------------------------------------------------------------------


async def get_groups(request: web.Request) -> web.StreamResponse:
    """GET groups: URLs, or objects with ?recursion=1."""
    groups = _cluster(request).groups.groups()
    if recursion(request):
        return sync(groups)
    return sync([url_of("cluster", "groups", group.name) for group in groups])


async def post_groups(request: web.Request) -> web.StreamResponse:
    """POST: create a group."""
    post = await read_json(request, ClusterGroupPost)
    await _cluster(request).groups.create(post)
    return _group_event(request, "created", post.name)


async def get_group(request: web.Request) -> web.StreamResponse:
    """GET one group."""
    group = _cluster(request).groups.get(_name(request))
    return sync(group, etag=etag_of(group))


async def put_group(request: web.Request) -> web.StreamResponse:
    """PUT: description and members."""
    groups = _cluster(request).groups
    put = await read_json(request, ClusterGroupPut)
    check_etag(request, groups.get(_name(request)))
    await groups.put(_name(request), put)
    _group_event(request, "updated", _name(request))
    return sync()


async def patch_group(request: web.Request) -> web.StreamResponse:
    """PATCH: what is given."""
    groups = _cluster(request).groups
    put = await read_json(request, ClusterGroupPut)
    check_etag(request, groups.get(_name(request)))
    await groups.patch(_name(request), put)
    _group_event(request, "updated", _name(request))
    return sync()


async def post_group(request: web.Request) -> web.StreamResponse:
    """POST: rename."""
    post = await read_json(request, ClusterGroupPost)
    await _cluster(request).groups.rename(_name(request), post.name)
    return _group_event(request, "renamed", post.name)


async def delete_group(request: web.Request) -> web.StreamResponse:
    """DELETE an empty group."""
    await _cluster(request).groups.delete(_name(request))
    _group_event(request, "deleted", _name(request))
    return sync()


def _group_event(request: web.Request, what: str, name: str) -> web.StreamResponse:
    location = url_of("cluster", "groups", name)
    gateway(request).events.lifecycle(f"cluster-group-{what}", location, project="default", caller=caller(request))
    return created(location)


# -- joining and leaving servers (private) ------------------------------------------------------------------------


def _applicant(request: web.Request) -> Applicant:
    """Who asks, by the certificate of this very connection. Raises BadRequestError without one."""
    who = caller(request)
    if who.fingerprint is None or who.certificate_pem is None or who.forwarded:
        raise BadRequestError("No client certificate provided")
    trusted = gateway(request).access.certificate(who.fingerprint)
    name = trusted.name if trusted is not None and trusted.kind == "server" else None
    return Applicant(who.fingerprint, who.certificate_pem, name)


async def accept(request: web.Request) -> web.StreamResponse:
    """POST /internal/cluster/accept: a server wants to become a member, by token or by its trusted certificate."""
    applicant = _applicant(request)
    answer = await _cluster(request).acceptance.accept(await read_json(request, AcceptRequest), applicant)
    return sync(answer)


async def replace(request: web.Request) -> web.StreamResponse:
    """POST /internal/cluster/replace: a member that has forgotten what it promised gets a new id."""
    applicant = _applicant(request)
    answer = await _cluster(request).replace.replace(await read_json(request, ReplaceRequest), applicant)
    return sync(answer)


async def withdraw(request: web.Request) -> web.StreamResponse:
    """POST /internal/cluster/withdraw: an accepted server could not go on."""
    applicant = _applicant(request)
    await _cluster(request).acceptance.withdraw(await read_json(request, WithdrawRequest), applicant)
    return sync()


async def standing(request: web.Request) -> web.StreamResponse:
    """POST /internal/cluster/standing: a server whose join was not confirmed asks whether to go on waiting."""
    applicant = _applicant(request)
    asked = await read_json(request, WithdrawRequest)
    return sync(await _cluster(request).acceptance.standing(asked.member_id, applicant))


async def keep_certificate(request: web.Request) -> web.StreamResponse:
    """POST: a member sends the pair that it is about to make the cluster's."""
    _member_only(request)
    _cluster(request).certificate.keep(await read_json(request, ClusterCertificatePut))
    return sync()


async def fetch_certificate(request: web.Request) -> web.StreamResponse:
    """POST: a member that was away asks for the cluster's pair."""
    _member_only(request)
    wanted = await read_json(request, CertificateWanted)
    return sync(_cluster(request).certificate.give(wanted.fingerprint))


def _member_only(request: web.Request) -> None:
    """Raise ForbiddenError unless a member asks on its own behalf, with its own certificate."""
    if caller(request).protocol != "member" or caller(request).forwarded:
        raise ForbiddenError


async def reset(request: web.Request) -> web.StreamResponse:
    """POST /internal/cluster/reset: this server was removed from its cluster."""
    body = await read_json(request, WithdrawRequest)
    await _cluster(request).leave.reset(body.member_id)
    return sync()
