"""Every error this service raises on purpose, as one tree.

Knows nothing of HTTP: `app.problems` maps each class to a status once. A message says what is wrong and what to do next,
and never carries a secret.
"""

from collections.abc import Mapping, Sequence


class ReceiverError(Exception):
    """Base of every error this service raises on purpose."""


class SettingsError(ReceiverError):
    """The settings are wrong; the message names each of them."""


class EmbeddedPostgresError(ReceiverError):
    """The embedded Postgres cannot be started or stopped."""


class SchemaError(ReceiverError):
    """The database schema is not at the version this program needs."""


class SealingError(ReceiverError):
    """Something sealed cannot be opened with any of ENCRYPTION_KEYS."""


class UnavailableError(ReceiverError):
    """The work cannot be done now, but the same request will succeed later.

    `retry_after` is in seconds.
    """

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseUnavailableError(UnavailableError):
    """Postgres cannot be reached or does not answer in time."""


class QueueFullError(UnavailableError):
    """More callbacks wait for their commit than may wait."""


class DrainingError(UnavailableError):
    """The process is shutting down and takes nothing new."""


class SecretUnknownError(UnavailableError):
    """No signing secret is known yet, or it is being changed, so that no proof can be judged."""


class NotAuthenticError(ReceiverError):
    """A callback did not prove that Jasper sent it."""


class BodyTooLargeError(ReceiverError):
    """A request body is larger than is accepted: a callback's than `MAX_BODY_BYTES`."""


class RequestTimeoutError(ReceiverError):
    """The sender took too long to send its request."""


class KeyMissingError(ReceiverError):
    """No API key was given, or one that is not known or was revoked."""


class ScopeMissingError(ReceiverError):
    """The API key is valid but lacks the scope the call needs."""


class ForeignRequestError(ReceiverError):
    """A request that would change something does not come from a page of the dashboard."""


class NotFoundError(ReceiverError):
    """There is nothing at this address, and there never was."""


class MethodNotAllowedError(ReceiverError):
    """The address exists, but not for this method. `allowed` lists the methods that do."""

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class NotAcceptableError(ReceiverError):
    """The answer cannot be sent in any of the media types that the request accepts."""


class GoneError(ReceiverError):
    """What was here is gone. `extra` is added to the problem document (the last state, the oldest position)."""

    def __init__(self, message: str, *, extra: Mapping[str, object]) -> None:
        super().__init__(message)
        self.extra = dict(extra)


class ConflictError(ReceiverError):
    """The request contradicts what is already there."""


class LeasedError(ConflictError):
    """The page belongs to another reader of the same consumer. `retry_after`: seconds until its lease runs out."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidParametersError(ReceiverError):
    """Parameters are wrong. `errors` holds one `{"parameter", "detail"}` for each."""

    def __init__(self, errors: Sequence[Mapping[str, str]]) -> None:
        super().__init__("; ".join(f"{error['parameter']}: {error['detail']}" for error in errors))
        self.errors = [dict(error) for error in errors]


class JasperError(ReceiverError):
    """Jasper refused or could not be reached. `status` is its HTTP status, None where no answer came."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class JasperRefusedError(JasperError):
    """Jasper refused, and asking again without a change would be refused again (401, 403, 404, 422 …)."""


class JasperUnavailableError(JasperError):
    """Jasper is down, too slow, or asks for patience; `retry_after` is in seconds where Jasper named it."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after
