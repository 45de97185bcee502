"""Judges a callback, and blanks what proved it: the same for one that comes in and for one that was kept apart. Pure."""

from msgspec.structs import replace

from app.domain.values import Delivery, Headers
from app.intake.keyring import Accepted
from app.jasper.proof import Location, carries_headers, prove
from app.jasper.redact import redact_body, redact_headers


def check(accepted: Accepted, headers: Headers, body: bytes, location: Location) -> tuple[bool, str | None]:
    """Whether a whole set of the required headers is there, and where the secret was proven if so."""
    matching = sum(carries_headers(headers, names) for names in accepted.header_sets)  # all are compared, always
    has_headers = matching > 0 or not accepted.header_sets
    return has_headers, prove(headers, body, accepted.secrets, location) if has_headers else None


def blank(delivery: Delivery, accepted: Accepted) -> Delivery:
    """The delivery with every secret blanked in its headers and body, as it is read and kept."""
    proof_header = None if delivery.proof.startswith("body:") else delivery.proof.partition(":")[2]
    return replace(
        delivery,
        headers=redact_headers(delivery.headers, accepted.secrets, accepted.header_sets, proof_header),
        body=redact_body(delivery.body, accepted.secrets),
    )
