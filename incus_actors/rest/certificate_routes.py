"""/1.0/certificates: the trust store, and the door through which strangers come in with a token.

Owns the shapes of CONTRACT 7.2; handlers parse and call TrustService, they hold no rule.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from incus_actors.errors import ForbiddenError
from incus_actors.gateway.access import Caller
from incus_actors.model.resources import Certificate, CertificatePut, CertificatesPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
    accepted_rendered,
    check_etag,
    created,
    etag_of,
    filter_objects,
    read_json,
    recursion,
    sync,
    url_of,
)

_PATH = "/1.0/certificates"
_ONE = "/1.0/certificates/{fingerprint}"


class _PostWithPassword(CertificatesPost, kw_only=True):
    """What strangers may send besides: the trust password. Kept apart, so that it is never stored nor shown."""

    password: str = ""


def routes() -> list[RouteSpec]:
    """Return the routes of this module. Strangers' POSTs reach the database only with a well-formed token, or while a
    trust password is set."""
    return [
        RouteSpec("GET", _PATH, get_certificates),
        RouteSpec("POST", _PATH, post_certificates, access="untrusted", consistency="local"),
        RouteSpec("GET", _ONE, get_certificate),
        RouteSpec("PUT", _ONE, put_certificate, access="admin"),
        RouteSpec("PATCH", _ONE, patch_certificate, access="admin"),
        RouteSpec("DELETE", _ONE, delete_certificate, access="admin"),
    ]


def _visible(who: Caller, certificate: Certificate) -> bool:
    """Callers limited to projects see only themselves."""
    return who.projects is None or certificate.fingerprint == who.username


async def get_certificates(request: web.Request) -> web.StreamResponse:
    """GET /1.0/certificates."""
    who = caller(request)
    found = [c for c in gateway(request).services.trust.list() if _visible(who, c)]
    found = filter_objects(found, request.query.get("filter"))
    return sync(found if recursion(request) else [url_of("certificates", c.fingerprint) for c in found])


async def post_certificates(request: web.Request) -> web.StreamResponse:
    """POST /1.0/certificates: an administrator adds or issues a token; a stranger redeems one."""
    who = caller(request)
    here = gateway(request)
    body = await read_json(request, _PostWithPassword, limit_bytes=256 << 10)
    post = CertificatesPost(**{name: getattr(body, name) for name in CertificatesPost.__struct_fields__})
    trust = here.services.trust
    admin = who.trusted and who.projects is None and not who.metrics_only
    if admin and post.token:
        operation = await trust.issue_token(post)
        return accepted_rendered(operation["id"], operation)
    if admin:
        fingerprint = await trust.add(post)
    elif post.trust_token and not who.trusted:
        fingerprint = await trust.redeem(post, who.certificate_pem)
    elif body.password and not who.trusted:
        fingerprint = await trust.admit(post, who.certificate_pem, body.password, who.address)
    else:
        raise ForbiddenError
    location = url_of("certificates", fingerprint)
    here.events.lifecycle("certificate-created", location, caller=who, name=fingerprint)
    return created(location)


async def get_certificate(request: web.Request) -> web.StreamResponse:
    """GET one, by fingerprint or the beginning of it."""
    found = gateway(request).services.trust.get(request.match_info["fingerprint"])
    if not _visible(caller(request), found):
        raise ForbiddenError
    return sync(found, etag=etag_of(found))


async def put_certificate(request: web.Request) -> web.StreamResponse:
    """PUT one."""
    return await _change(request, patch=False)


async def patch_certificate(request: web.Request) -> web.StreamResponse:
    """PATCH one."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    here = gateway(request)
    fingerprint = request.match_info["fingerprint"]
    put = await read_json(request, CertificatePut, limit_bytes=256 << 10)
    await here.services.trust.update(fingerprint, put, patch=patch, expect=partial(check_etag, request))
    here.events.lifecycle("certificate-updated", url_of("certificates", fingerprint), caller=caller(request))
    return sync()


async def delete_certificate(request: web.Request) -> web.StreamResponse:
    """DELETE one."""
    here = gateway(request)
    fingerprint = await here.services.trust.remove(request.match_info["fingerprint"])
    here.events.lifecycle("certificate-deleted", url_of("certificates", fingerprint), caller=caller(request))
    return sync()
