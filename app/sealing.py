"""Encryption at rest: secrets and unproven callbacks are sealed with Fernet before they reach a table.

The first key seals, every key opens, so that keys can be rotated by putting a new one in front.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.errors import SealingError


class Sealer:
    """Seals and opens bytes with a list of Fernet keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        fernets = [Fernet(key) for key in keys]
        self._first = fernets[0]
        self._fernet = MultiFernet(fernets)

    def seal(self, plain: bytes) -> bytes:
        """Encrypt with the first key."""
        return self._fernet.encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt with whichever key fits. Raises SealingError where none does."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken as exc:
            raise SealingError(
                "a stored secret cannot be opened with any of ENCRYPTION_KEYS: put back the key it was sealed with, "
                "behind the current one"
            ) from exc

    def is_current(self, sealed: bytes) -> bool:
        """Whether it was sealed with the first key."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        return True

    def seal_anew(self, sealed: bytes) -> bytes:
        """The same with the first key. Raises SealingError where no key opens it."""
        return self.seal(self.open(sealed))


def generate_key() -> str:
    """A new Fernet key, as text for ENCRYPTION_KEYS."""
    return Fernet.generate_key().decode()


def development_keys(data_dir: Path) -> list[str]:
    """The key kept under `data_dir` for the embedded database, made on first use and readable by its owner only."""
    path = data_dir / "encryption.key"
    data_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with NamedTemporaryFile("w", dir=data_dir, encoding="ascii") as fresh:  # made with mode 0600
            fresh.write(generate_key())
            fresh.flush()
            with suppress(FileExistsError):  # another process was first, and its key is the one
                os.link(fresh.name, path)
    return [path.read_text(encoding="ascii").strip()]
