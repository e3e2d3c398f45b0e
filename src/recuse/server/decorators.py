"""Types of what `recuse.ioctl` returns, for type checkers to find mistakes in handlers.

A handler may be plain or ``async def``, and may take `Memory`; each combination is an overload.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from recuse.server.memory import Memory

if TYPE_CHECKING:
    from recuse.server.device import File

F = TypeVar("F")
"""The File class that the handler is a method of."""
V = TypeVar("V", bound=int | float | bytes | str | None)
"""What a simple ctypes type is in Python: int for c_int, float for c_double."""
C = TypeVar("C")
"""A ctypes structure, union or array."""
N = TypeVar("N", bound="File")
"""The File class of the files that it creates."""

Result = int | None
LaterResult = Coroutine[Any, Any, Result]


class ValueDecorator(Protocol):
    """For handlers whose argument is a plain number; they may omit it."""

    @overload
    def __call__(self, handler: Callable[[F], Result]) -> Callable[[F], Result]: ...
    @overload
    def __call__(self, handler: Callable[[F], LaterResult]) -> Callable[[F], LaterResult]: ...
    @overload
    def __call__(self, handler: Callable[[F, int], Result]) -> Callable[[F, int], Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, int], LaterResult]
    ) -> Callable[[F, int], LaterResult]: ...
    @overload
    def __call__(self, handler: Callable[[F, Memory], Result]) -> Callable[[F, Memory], Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, Memory], LaterResult]
    ) -> Callable[[F, Memory], LaterResult]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, int, Memory], Result]
    ) -> Callable[[F, int, Memory], Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, int, Memory], LaterResult]
    ) -> Callable[[F, int, Memory], LaterResult]: ...


class SimpleDecorator(Protocol[V]):
    """For handlers of a simple ctypes type: no argument for "r", one for "w" and "rw"."""

    @overload
    def __call__(self, handler: Callable[[F], V]) -> Callable[[F], V]: ...
    @overload
    def __call__(
        self, handler: Callable[[F], Coroutine[Any, Any, V]]
    ) -> Callable[[F], Coroutine[Any, Any, V]]: ...
    @overload
    def __call__(self, handler: Callable[[F, V], V | Result]) -> Callable[[F, V], V | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, V], Coroutine[Any, Any, V | Result]]
    ) -> Callable[[F, V], Coroutine[Any, Any, V | Result]]: ...
    @overload
    def __call__(self, handler: Callable[[F, Memory], V]) -> Callable[[F, Memory], V]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, Memory], Coroutine[Any, Any, V]]
    ) -> Callable[[F, Memory], Coroutine[Any, Any, V]]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, V, Memory], V | Result]
    ) -> Callable[[F, V, Memory], V | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, V, Memory], Coroutine[Any, Any, V | Result]]
    ) -> Callable[[F, V, Memory], Coroutine[Any, Any, V | Result]]: ...


class CompoundDecorator(Protocol[C]):
    """For handlers of a structure, union or array."""

    @overload
    def __call__(self, handler: Callable[[F, C], C | Result]) -> Callable[[F, C], C | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, C], Coroutine[Any, Any, C | Result]]
    ) -> Callable[[F, C], Coroutine[Any, Any, C | Result]]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, C, Memory], C | Result]
    ) -> Callable[[F, C, Memory], C | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, C, Memory], Coroutine[Any, Any, C | Result]]
    ) -> Callable[[F, C, Memory], Coroutine[Any, Any, C | Result]]: ...


class FileDecorator(Protocol[C]):
    """For handlers of a structure that create a new open file."""

    @overload
    def __call__(self, handler: Callable[[F, C], N]) -> Callable[[F, C], N]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, C], Coroutine[Any, Any, N]]
    ) -> Callable[[F, C], Coroutine[Any, Any, N]]: ...
    @overload
    def __call__(self, handler: Callable[[F, C, Memory], N]) -> Callable[[F, C, Memory], N]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, C, Memory], Coroutine[Any, Any, N]]
    ) -> Callable[[F, C, Memory], Coroutine[Any, Any, N]]: ...


class BytesDecorator(Protocol):
    """For handlers of bytes: no argument for "r", one for "w" and "rw"."""

    @overload
    def __call__(self, handler: Callable[[F], bytes]) -> Callable[[F], bytes]: ...
    @overload
    def __call__(
        self, handler: Callable[[F], Coroutine[Any, Any, bytes]]
    ) -> Callable[[F], Coroutine[Any, Any, bytes]]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, bytes], bytes | Result]
    ) -> Callable[[F, bytes], bytes | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, bytes], Coroutine[Any, Any, bytes | Result]]
    ) -> Callable[[F, bytes], Coroutine[Any, Any, bytes | Result]]: ...
    @overload
    def __call__(self, handler: Callable[[F, Memory], bytes]) -> Callable[[F, Memory], bytes]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, Memory], Coroutine[Any, Any, bytes]]
    ) -> Callable[[F, Memory], Coroutine[Any, Any, bytes]]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, bytes, Memory], bytes | Result]
    ) -> Callable[[F, bytes, Memory], bytes | Result]: ...
    @overload
    def __call__(
        self, handler: Callable[[F, bytes, Memory], Coroutine[Any, Any, bytes | Result]]
    ) -> Callable[[F, bytes, Memory], Coroutine[Any, Any, bytes | Result]]: ...
