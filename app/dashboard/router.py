"""The addresses of the pages: everything under `/dashboard`, and `/` for the first of them."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.access.keys import Scope
from app.clock import utc_now
from app.dashboard import deliveries, entities, feed, operations, reconciliations
from app.dashboard.overview import overview
from app.dashboard.pages import (
    LOGIN,
    SEE_OTHER,
    Endpoint,
    Handler,
    Visit,
    guarded,
    page,
    read_form,
    render,
    serve_static,
)
from app.dashboard.sessions import Sessions
from app.errors import KeyMissingError, NotFoundError, ScopeMissingError
from app.problems import kind_of


async def show_login(request: Request) -> Response:
    """The form that asks for a key."""
    return render("login.html", request, problem=None, wanted=_wanted(request.query_params.get("next", "/")))


async def log_in(request: Request) -> Response:
    """Open a session with the key of the form, and go where the visitor wanted to go."""
    form = await read_form(request)
    wanted = _wanted(form.get("next", "/"))
    response = RedirectResponse(wanted, SEE_OTHER)
    try:
        await Sessions(request.state.sealer).begin(request, response, form.get("key", "").strip(), utc_now())
    except (KeyMissingError, ScopeMissingError) as exc:
        return render("login.html", request, status=kind_of(exc).status, problem=str(exc), wanted=wanted)
    return response


async def log_out(visit: Visit) -> Response:
    """End the session."""
    response = RedirectResponse("/", SEE_OTHER)
    visit.sessions.end(visit.request, response)
    return response


async def to_start(_visit: Visit) -> Response:
    """From the address that somebody may guess to the first page."""
    return RedirectResponse("/", SEE_OTHER)


async def nothing_here(_visit: Visit) -> Response:
    """What every other address under `/dashboard` is."""
    raise NotFoundError("there is no such page")


def _wanted(address: str) -> str:
    """Where to go after the login: a page of ours, and nothing else."""
    return address if address == "/" or address.startswith("/dashboard/") else "/"


def _get(path: str, handler: Handler, *, needs: Scope = Scope.READ) -> Route:
    return Route(path, page(handler, needs=needs), methods=["GET"])


def _post(path: str, handler: Handler, *, needs: Scope) -> Route:
    return Route(path, page(handler, needs=needs), methods=["POST"])


def _open(path: str, endpoint: Endpoint, method: str) -> Route:
    return Route(path, guarded(endpoint), methods=[method])


_RECONCILE = "/dashboard/reconciliations/{entity_type}/{way}"
_CHANGE = "/dashboard/registrations/{entity_type}/{change}"

routes = [
    _get("/", overview),
    _get("/dashboard", to_start),
    _get("/dashboard/", to_start),
    _open(LOGIN, show_login, "GET"),
    _open(LOGIN, log_in, "POST"),
    _post("/dashboard/logout", log_out, needs=Scope.READ),
    _open("/dashboard/static/{digest}/{name}", serve_static, "GET"),
    _get("/dashboard/feed", feed.show_feed),
    _get("/dashboard/feed/stream", feed.stream_feed),
    _get("/dashboard/entities", entities.list_entities),
    _get("/dashboard/entity", entities.show_entity),
    _get("/dashboard/entity/data", entities.download_data),
    _get("/dashboard/deliveries", deliveries.list_deliveries),
    _get("/dashboard/deliveries/{delivery_id:uuid}", deliveries.show_delivery),
    _get("/dashboard/deliveries/{delivery_id:uuid}/body", deliveries.download_body),
    _post("/dashboard/deliveries/{delivery_id:uuid}/reprocess", deliveries.reprocess_delivery, needs=Scope.ADMIN),
    _get("/dashboard/quarantine", deliveries.show_quarantine),
    _post("/dashboard/quarantine/try", deliveries.try_mapping, needs=Scope.ADMIN),
    _post("/dashboard/quarantine/reprocess", deliveries.reprocess_quarantined, needs=Scope.ADMIN),
    _get("/dashboard/unproven", operations.show_unproven),
    _post("/dashboard/unproven/release", operations.release_unproven, needs=Scope.ADMIN),
    _get("/dashboard/rejections", operations.show_rejections),
    _get("/dashboard/registrations", operations.show_registrations),
    _get(_CHANGE, operations.confirm_change, needs=Scope.ADMIN),
    _post(_CHANGE, operations.change_registration, needs=Scope.ADMIN),
    _get("/dashboard/reconciliations", reconciliations.show_reconciliations, needs=Scope.ADMIN),
    _get(_RECONCILE, reconciliations.confirm_reconciliation, needs=Scope.ADMIN),
    _post(_RECONCILE, reconciliations.start_reconciliation, needs=Scope.ADMIN),
    _get("/dashboard/consumers", operations.list_consumers),
    _get("/dashboard/consumers/{name}", operations.show_consumer),
    _get("/dashboard/{path:path}", nothing_here),
]
