"""Requests made ready in a file, so that sending one costs no more than handing its bytes to the kernel.

Every request is there once, whole, with its head; a second file beside it tells where each begins.
"""

import mmap
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path


class Requests:
    """The requests of a file that `write_requests` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._begins, self._body_sizes = array("Q"), array("Q")
        index = _index_of(path).read_bytes()
        self._begins.frombytes(index[: len(index) // 2])
        self._body_sizes.frombytes(index[len(index) // 2 :])

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, number: int) -> memoryview:
        return self._bytes[self._begins[number] : self._begins[number + 1]]

    def body(self, number: int) -> bytes:
        """The body of one of them."""
        return bytes(self[number][-self._body_sizes[number] :]) if self._body_sizes[number] else b""

    def body_bytes(self, first: int, count: int) -> int:
        """Bytes of the bodies of so many requests."""
        return sum(self._body_sizes[first : first + count])


def write_requests(path: Path, heads: Iterable[str], bodies: Iterable[bytes], headers: Mapping[str, str]) -> Requests:
    """Make a file of requests: to each of `heads` (such as `POST /a`) belongs the next of `bodies`, until one ends."""
    begins, sizes = array("Q", [0]), array("Q")
    common = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **headers}.items())
    with path.open("wb") as file:
        for head, body in zip(heads, bodies, strict=False):
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            file.write(f"{head} HTTP/1.1\r\n{common}{length}\r\n".encode() + body)
            begins.append(file.tell())
            sizes.append(len(body))
    sizes.append(0)  # so that both are equally long
    _index_of(path).write_bytes(begins.tobytes() + sizes.tobytes())
    return Requests(path)


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index")
