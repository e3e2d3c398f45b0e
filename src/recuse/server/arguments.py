"""The third argument of ioctl(2): one class for each kind of handler.

Each class decodes what the handler gets, and turns what it returns into the result of ioctl(2) and
the bytes that the argument points to afterwards.
"""

from __future__ import annotations

import ctypes
from typing import Any

from recuse.server.errors import Misuse, brief
from recuse.wire.ioctl import size as command_size

RESULT_MAX = (1 << 31) - 1
"""A larger result of ioctl(2) would be negative for the program."""


ERRNO_MAX = 511
"""The highest errno that a program may see."""


class Argument:
    """A plain number, which means nothing to the protocol."""

    __slots__ = ("descriptor", "fetches", "is_given", "stores")

    is_number = True

    def __init__(self, *, fetches: bool = False, stores: bool = False) -> None:
        self.fetches = fetches
        """What it points to is copied in: the handler gets the program's content."""
        self.stores = stores
        """What it points to is copied out: the program gets the handler's content."""
        self.is_given = True
        """Whether the handler gets something."""
        self.descriptor: int | None = None
        """Where a new descriptor's number is stored in what it points to; None if there is none."""

    def size(self, command: int) -> int:
        """Return how many bytes it points to."""
        return 0

    def decode(self, data: bytes) -> Any:
        """Return what the handler gets; ``data`` is empty if nothing is fetched."""
        raise NotImplementedError

    def outcome(self, returned: Any, given: Any, size: int) -> tuple[int, bytes]:
        """Return the result, and what to copy out: ``size`` bytes, fewer, or none.

        Raises Misuse if the handler returned something wrong.
        """
        return checked_result(returned), b""


class Pointer(Argument):
    """Points to an instance of a ctypes type."""

    __slots__ = ("_size", "type")

    is_number = False

    def __init__(self, type_: Any, *, fetches: bool, stores: bool) -> None:
        super().__init__(fetches=fetches, stores=stores)
        self.type = type_
        self._size = ctypes.sizeof(type_)

    def size(self, command: int) -> int:
        return self._size


class SimplePointer(Pointer):
    """Points to a simple ctypes type; handlers see its Python value."""

    __slots__ = ()

    def __init__(self, type_: Any, *, fetches: bool, stores: bool) -> None:
        super().__init__(type_, fetches=fetches, stores=stores)
        self.is_given = fetches

    def decode(self, data: bytes) -> Any:
        return self.type.from_buffer_copy(data).value if data else None

    def outcome(self, returned: Any, given: Any, size: int) -> tuple[int, bytes]:
        if not self.stores:
            return checked_result(returned), b""
        try:
            value = self.type(returned)
        except TypeError:
            value = None
        # ctypes truncates what does not fit; an author wants to know.
        if value is None or (isinstance(returned, int) and value.value != returned):
            raise Misuse(f"returned {brief(returned)}, not a value of {self.type.__name__}")
        return 0, bytes(value)


class CompoundPointer(Pointer):
    """Points to a structure, union or array; handlers see an instance."""

    __slots__ = ()

    def decode(self, data: bytes) -> Any:
        return self.type.from_buffer_copy(data) if data else self.type()

    def outcome(self, returned: Any, given: Any, size: int) -> tuple[int, bytes]:
        if isinstance(returned, self.type):
            if not self.stores:
                raise Misuse(f"returned {brief(returned)}, but the program does not read it")
            return 0, bytes(returned)
        if self.stores and isinstance(returned, int) and -ERRNO_MAX <= returned < 0:
            return int(returned), bytes(given)
        return checked_result(returned), bytes(given) if self.stores else b""


class FilePointer(CompoundPointer):
    """Points to a structure with a field for the descriptor of a file that the handler creates."""

    __slots__ = ()

    def __init__(self, type_: Any, field: str, *, fetches: bool, stores: bool) -> None:
        """Raises ValueError if the structure has no such field of a C int's size."""
        super().__init__(type_, fetches=fetches, stores=stores)
        place: Any = getattr(type_, field, None)
        if not stores or getattr(place, "size", 0) != ctypes.sizeof(ctypes.c_int):
            raise ValueError(
                f"{type_.__name__} has no field {field!r} of {ctypes.sizeof(ctypes.c_int)} bytes "
                "that the program reads"
            )
        self.descriptor = place.offset

    def outcome(self, returned: Any, given: Any, size: int) -> tuple[int, bytes]:
        # The handler returned the file, which is handled elsewhere.
        return 0, bytes(given)


class BytesPointer(Argument):
    """Points to as many bytes as the command's number says."""

    __slots__ = ()

    is_number = False

    def __init__(self, *, fetches: bool, stores: bool) -> None:
        super().__init__(fetches=fetches, stores=stores)
        self.is_given = fetches

    def size(self, command: int) -> int:
        return command_size(command)

    def decode(self, data: bytes) -> Any:
        return data

    def outcome(self, returned: Any, given: Any, size: int) -> tuple[int, bytes]:
        if not self.stores:
            return checked_result(returned), b""
        try:
            stored = memoryview(returned).tobytes()[:size]
        except TypeError:
            raise Misuse(f"returned {brief(returned)}, not bytes") from None
        return len(stored), stored


def pointer(
    type_: Any, *, fetches: bool, stores: bool, descriptor: str | None = None
) -> Pointer | BytesPointer:
    """Return the kind of argument that points to ``type_``.

    ``descriptor`` is the name of the field for a new descriptor's number.

    Raises TypeError if ``type_`` is not a simple ctypes type, structure, union, array or bytes, or
    has no fields; ValueError if the field is missing or not a C int.
    """
    if descriptor is not None:
        if not (isinstance(type_, type) and issubclass(type_, ctypes.Structure | ctypes.Union)):
            raise TypeError(f"{type_!r} is not a structure or union with a field {descriptor!r}")
        return FilePointer(type_, descriptor, fetches=fetches, stores=stores)
    if type_ is bytes:
        return BytesPointer(fetches=fetches, stores=stores)
    if isinstance(type_, type) and type_ is not ctypes.py_object:
        if issubclass(type_, ctypes._SimpleCData):
            return SimplePointer(type_, fetches=fetches, stores=stores)
        if issubclass(type_, ctypes.Structure | ctypes.Union | ctypes.Array):
            return CompoundPointer(type_, fetches=fetches, stores=stores)
    raise TypeError(f"{type_!r} is not a simple ctypes type, structure, union, array or bytes")


def checked_result(returned: Any) -> int:
    """Return a handler's result, given what it returned.  Raises Misuse."""
    if returned is None:
        return 0
    if not isinstance(returned, int):
        raise Misuse(f"returned {brief(returned)}, not a result")
    if not 0 <= returned <= RESULT_MAX:
        raise Misuse(f"returned {returned}, not a result from 0 to {RESULT_MAX}")
    return int(returned)
