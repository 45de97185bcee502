"""Who calls, and whether they may: `ReadKey`, `WriteKey` and `AdminKey` for the signatures of routes.

In a signature the key stands first, so that nothing else is looked at before it. The process must have put `lookups` and
`admin_key` (the value of `ADMIN_API_KEY`, or None) into the lifespan's state.
"""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.access.failures import FailureReason, note_failure
from app.access.keys import Scope, digest_of, find_key
from app.clock import utc_now
from app.errors import KeyMissingError, ScopeMissingError
from app.problems import instance_of

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    description="A key made by `jasper-receiver keys create`, or the value of `ADMIN_API_KEY`",
    auto_error=False,
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds the key of this name."""

    name: str
    scopes: frozenset[Scope]


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    """Who calls. Raises KeyMissingError without a key that is valid now, and counts that."""
    if credentials is None:
        _note(request, FailureReason.MISSING)
        raise KeyMissingError("send an API key: Authorization: Bearer KEY")
    return await authenticate_digest(request, digest_of(credentials.credentials))


async def authenticate_digest(request: Request, digest: bytes) -> Caller:
    """Whose key has this digest. Raises KeyMissingError where no key that is valid now has it, and counts that."""
    if _is_admin_key(request, digest):
        return _ADMIN
    key = await find_key(request.state.lookups, digest, now=utc_now())
    if key is None:
        _note(request, FailureReason.WRONG)
        raise KeyMissingError("this API key is not known")
    if key.revoked_at is not None:
        _note(request, FailureReason.REVOKED, key.name)
        raise KeyMissingError("this API key was revoked")
    return Caller(key.name, key.scopes)


async def holder(request: Request, scope: Scope) -> Caller:
    """Who calls, where no signature of a route asks for it. Raises KeyMissingError or ScopeMissingError, and counts that."""
    return _having(scope, request, await authenticate(request, await _bearer(request)))


async def still_allowed(request: Request, scope: Scope) -> bool:
    """Whether the key of a request that is being answered is valid to this moment, and has the scope."""
    try:
        caller = await authenticate(request, await _bearer(request))
    except KeyMissingError:
        return False
    return scope in caller.scopes


def _having(scope: Scope, request: Request, caller: Caller) -> Caller:
    if scope not in caller.scopes:
        _note(request, FailureReason.SCOPE, caller.name)
        raise lacking(scope)
    return caller


def _note(request: Request, reason: FailureReason, key: str | None = None) -> None:
    client = request.client.host if request.client else ""
    note_failure(reason, path=instance_of(request.scope), client=client, key=key)


def _is_admin_key(request: Request, digest: bytes) -> bool:
    """In constant time, whatever the lengths and characters."""
    admin_key: SecretStr | None = request.state.admin_key
    return admin_key is not None and hmac.compare_digest(digest, digest_of(admin_key.get_secret_value()))


_ADMIN = Caller("ADMIN_API_KEY", frozenset(Scope))


def lacking(scope: Scope) -> ScopeMissingError:
    """What is said to a key without the scope."""
    return ScopeMissingError(f"this call needs a key with the scope {scope}")


def _holder_of(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def require(request: Request, caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        return _having(scope, request, caller)

    return require


ReadKey = Annotated[Caller, Depends(_holder_of(Scope.READ))]
WriteKey = Annotated[Caller, Depends(_holder_of(Scope.WRITE))]
AdminKey = Annotated[Caller, Depends(_holder_of(Scope.ADMIN))]
