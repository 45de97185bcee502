"""Who calls, and whether they may: `ReadKey`, `WriteKey` and `AdminKey` for the signatures of routes.

In a signature the key stands first, so that nothing else is looked at before it. The process must have put `engine` and
`admin_key` (the value of `ADMIN_API_KEY`, or None) into the lifespan's state.
"""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.access.keys import Scope, digest_of, verify_key
from app.clock import utc_now
from app.errors import KeyMissingError, ScopeMissingError

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
    """Who calls. Raises KeyMissingError without a key that is valid now."""
    if credentials is None:
        raise KeyMissingError("send an API key: Authorization: Bearer KEY")
    return await authenticate_digest(request, digest_of(credentials.credentials))


async def authenticate_digest(request: Request, digest: bytes) -> Caller:
    """Whose key has this digest. Raises KeyMissingError where no key that is valid now has it."""
    if _is_admin_key(request, digest):
        return _ADMIN
    key = await verify_key(request.state.engine, digest, now=utc_now())
    if key is None:
        raise KeyMissingError("this API key is not known, or was revoked")
    return Caller(key.name, key.scopes)


async def still_allowed(request: Request, scope: Scope) -> bool:
    """Whether the key of a request that is being answered is valid to this moment, and has the scope."""
    try:
        caller = await authenticate(request, await _bearer(request))
    except KeyMissingError:
        return False
    return scope in caller.scopes


def _is_admin_key(request: Request, digest: bytes) -> bool:
    """In constant time, whatever the lengths and characters."""
    admin_key: SecretStr | None = request.state.admin_key
    return admin_key is not None and hmac.compare_digest(digest, digest_of(admin_key.get_secret_value()))


_ADMIN = Caller("ADMIN_API_KEY", frozenset(Scope))


def _holder_of(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def require(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if scope not in caller.scopes:
            raise ScopeMissingError(f"this call needs a key with the scope {scope}")
        return caller

    return require


ReadKey = Annotated[Caller, Depends(_holder_of(Scope.READ))]
WriteKey = Annotated[Caller, Depends(_holder_of(Scope.WRITE))]
AdminKey = Annotated[Caller, Depends(_holder_of(Scope.ADMIN))]
