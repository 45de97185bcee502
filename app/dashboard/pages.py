"""What every page shares: who may see it, how it is rendered, which headers it leaves with, and how its errors look.

A handler gets a `Visit` and returns a response. What it raises on purpose becomes a page of its own, with the same status
that the API would give.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.access.keys import Scope
from app.clock import utc_now
from app.dashboard import presentation
from app.dashboard.sessions import Session, Sessions, check_csrf, check_origin
from app.errors import NotFoundError, ReceiverError, ScopeMissingError
from app.paging import read_small
from app.problems import kind_of

LOGIN = "/dashboard/login"

NAVIGATION = (
    ("/", "Overview"),
    ("/dashboard/feed", "Live feed"),
    ("/dashboard/entities", "Entities"),
    ("/dashboard/deliveries", "Deliveries"),
    ("/dashboard/quarantine", "Quarantine"),
    ("/dashboard/unproven", "Unproven"),
    ("/dashboard/rejections", "Rejections"),
    ("/dashboard/registrations", "Registrations"),
    ("/dashboard/reconciliations", "Reconciliations"),
    ("/dashboard/consumers", "Consumers"),
)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers send forms with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

SEE_OTHER = 303


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who is logged in; `form` is what they sent, by name."""

    request: Request
    session: Session
    sessions: Sessions
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine(self) -> AsyncEngine:
        """Where to read."""
        engine: AsyncEngine = self.request.state.engine
        return engine

    def show(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page."""
        response = Response(status_code=status, media_type="text/html")
        values |= {
            "session": self.session,
            "is_admin": self.session.may(Scope.ADMIN),
            "notice": self.sessions.take_notice(self.request, response),
        }
        return _fill(response, template, self.request, **values)

    def back_to(self, path: str, notice: str) -> Response:
        """To a page that tells what was done, so that loading it again does nothing again."""
        response = RedirectResponse(path, SEE_OTHER)
        self.sessions.say_next(self.request, response, notice)
        return response


Handler = Callable[[Visit], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def page(handler: Handler, *, needs: Scope = Scope.READ) -> Endpoint:
    """The endpoint for a handler: only for who is logged in, with a key that has the scope, and by forms of ours."""

    async def answer(request: Request) -> Response:
        sessions = Sessions(request.state.sealer)
        session = await sessions.find(request, utc_now())
        if session is None:
            return to_login(request)
        form = await read_form(request)
        if request.method == "POST":
            check_csrf(session, form.get("csrf", ""))
        if not session.may(needs):
            raise ScopeMissingError(f"this needs a key with the scope {needs}: log in with such a key")
        return await handler(Visit(request, session, sessions, form))

    return guarded(answer)


def guarded(answer: Endpoint) -> Endpoint:
    """An endpoint whose errors are pages, and whose answers carry the headers of all pages."""

    async def guard(request: Request) -> Response:
        try:
            response = await answer(request)
        except ReceiverError as exc:
            kind = kind_of(exc)
            response = render("error.html", request, status=kind.status, kind=kind, detail=str(exc))
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return guard


async def read_form(request: Request) -> dict[str, str]:
    """What a form of ours sent; empty where the request is no POST. Raises ForeignRequestError, and what a body may."""
    if request.method != "POST":
        return {}
    check_origin(request)
    return dict(parse_qsl((await read_small(request)).decode(errors="replace"), keep_blank_values=True))


def to_login(request: Request) -> Response:
    """To the login page, and back here afterwards; the start page shows it itself."""
    if request.url.path == "/" and request.method != "POST":
        return render("login.html", request, problem=None, wanted="/")
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = LOGIN if request.method == "POST" else f"{LOGIN}?{urlencode({'next': wanted})}"
    return RedirectResponse(target, SEE_OTHER)


def render(template: str, request: Request, *, status: int = 200, **values: Any) -> Response:
    """A page for somebody who need not be logged in."""
    response = Response(status_code=status, media_type="text/html")
    return _fill(response, template, request, session=None, is_admin=False, notice=None, **values)


def fragment(template: str, **values: Any) -> str:
    """A part of a page, for a script of ours to put in its place."""
    return _environment().get_template(template).render(now=utc_now(), **values)


def _fill(response: Response, template: str, request: Request, **values: Any) -> Response:
    response.body = fragment(template, path=request.url.path, query=request.query_params, **values).encode(
        errors="replace"
    )
    response.headers["Content-Length"] = str(len(response.body))
    return response


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {
        "static": static_address,
        "navigation": NAVIGATION,
        "entity_address": entity_address,
        "excerpt": presentation.excerpt,
        "json_excerpt": presentation.json_excerpt,
        "change_lines": presentation.change_lines,
        "telling": presentation.telling,
    }
    names = ("moment", "ago", "brief", "span", "number", "size")
    environment.filters |= {name: getattr(presentation, name) for name in names} | {"raw": bytes}
    return environment


def entity_address(entity_type: str, entity_id: str, **more: object) -> str:
    """The page of an entity."""
    return f"/dashboard/entity?{urlencode({'type': entity_type, 'id': entity_id} | more)}"


@cache
def _static() -> dict[str, tuple[bytes, str]]:
    """Our files by name: content and digest."""
    found = {}
    for file in files("app.dashboard").joinpath("static").iterdir():
        content = file.read_bytes()
        found[file.name] = (content, hashlib.sha256(content).hexdigest()[:16])
    return found


def static_address(name: str) -> str:
    """Where a file of ours is served: an address that changes with its content, so that it may be kept for ever."""
    return f"/dashboard/static/{_static()[name][1]}/{quote(name)}"


async def serve_static(request: Request) -> Response:
    """One file of ours. Raises NotFoundError."""
    name = request.path_params["name"]
    content, digest = _static().get(name, (b"", ""))
    if not content or digest != request.path_params["digest"]:
        raise NotFoundError("there is no such file")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)
