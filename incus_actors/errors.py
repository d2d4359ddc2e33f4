"""Errors in two families: theirs (ClientError, 4xx) and ours (MemberError, 5xx).

Owns the exceptions that may cross a gateway; `str(error)` is exactly what the user reads (CONTRACT section 18),
`status` the HTTP status, `remedy` one more sentence for logs and our own CLI. Must never carry secrets.
"""

from __future__ import annotations

from typing import ClassVar


class ApiError(Exception):
    """Not raised itself: use a subclass of ClientError or MemberError."""

    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, status: int | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.status = self.default_status if status is None else status
        self.remedy = remedy


class ClientError(ApiError):
    """The caller can mend it."""

    default_status = 400


class BadRequestError(ClientError):
    """400."""


class ForbiddenError(ClientError):
    """403."""

    default_status = 403

    def __init__(self, message: str = "not authorized", *, status: int | None = None, remedy: str = "") -> None:
        super().__init__(message, status=status, remedy=remedy)


class NotFoundError(ClientError):
    """404."""

    default_status = 404

    def __init__(self, message: str = "Not Found", *, status: int | None = None, remedy: str = "") -> None:
        super().__init__(message, status=status, remedy=remedy)


class ConflictError(ClientError):
    """409."""

    default_status = 409


class PreconditionFailedError(ClientError):
    """412."""

    default_status = 412


class MemberError(ApiError):
    """Something on our side failed. Many of Incus' validation errors are 500 too (CONTRACT 18)."""

    default_status = 500


class UnavailableError(MemberError):
    """503: no quorum, starting up, shutting down, disk full."""

    default_status = 503


class OutcomeUnknownError(UnavailableError):
    """503: the write may or may not have happened; asking again with the same id is safe."""


class NotImplementedHereError(MemberError):
    """501."""

    default_status = 501

    def __init__(self, message: str = "not implemented", *, status: int | None = None, remedy: str = "") -> None:
        super().__init__(message, status=status, remedy=remedy)
