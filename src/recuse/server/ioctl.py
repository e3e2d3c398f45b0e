"""Declaring ioctl handlers: the decorator, and what it checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from recuse.server.arguments import Argument, BytesPointer, pointer
from recuse.server.ioctl_table import DECLARATIONS, SIZE_BITS, Declaration
from recuse.wire.ioctl import IOC_READ, IOC_WRITE
from recuse.wire.ioctl import direction as command_direction
from recuse.wire.ioctl import size as command_size

if TYPE_CHECKING:
    from ctypes import Array, Structure, Union, _SimpleCData

    from recuse.server.decorators import (
        BytesDecorator,
        CompoundDecorator,
        FileDecorator,
        SimpleDecorator,
        ValueDecorator,
    )

    V = TypeVar("V", bound=int | float | bytes | str | None)
    C = TypeVar("C", bound=Structure | Union | Array[Any])

Direction = Literal["r", "w", "rw"]
"""As the program sees it: "r" reads what the device fills in, "w" writes to the device."""


@overload
def ioctl(command: int) -> ValueDecorator: ...
@overload
def ioctl(
    command: int, type: type[_SimpleCData[V]], *, direction: Direction | None = None
) -> SimpleDecorator[V]: ...
@overload
def ioctl(
    command: int, type: type[bytes], *, direction: Direction | None = None
) -> BytesDecorator: ...
@overload
def ioctl(
    command: int, type: type[C], *, direction: Direction | None = None
) -> CompoundDecorator[C]: ...
@overload
def ioctl(
    command: int, type: type[C], *, direction: Direction | None = None, descriptor: str
) -> FileDecorator[C]: ...
def ioctl(
    command: int,
    type: Any = None,  # noqa: A002
    *,
    direction: Direction | None = None,
    descriptor: str | None = None,
) -> Any:
    """Declare the decorated method of a `File` as the handler of an ioctl.

    ``command`` is the number that programs pass to ioctl(2), 32 bits.  Use the decorator several
    times on one method to answer several commands.

    Without ``type``, the third argument of ioctl(2) is a plain number.  The handler gets it if it
    takes an argument.  With a ctypes ``type``, that argument is a pointer:

    * to a simple type (c_int, c_uint64...): for "w" the handler gets the value, for "r" it gets
      nothing and returns the value, for "rw" it gets one and returns one;
    * to a structure, union or array: the handler gets an instance, which has the program's content
      for "w" and "rw" and is zero for "r".  For "r" and "rw" the program gets the instance as the
      handler leaves it, or another instance if the handler returns one;
    * to ``bytes``, for commands whose number has a size that the program chooses, like EVIOCGNAME:
      the handler answers the command with any size.  For "w" and "rw" it gets that many bytes.  For
      "r" and "rw" it returns bytes: the program gets as many as it has room for, and their number
      as the result.

    ``direction`` is the program's: it reads ("r"), writes ("w") or both.  By default the command's
    number decides.  Give it for commands whose number does not have it (old ones like I2C_RDWR,
    0x707) or has a wrong one.  Then the number's size is not compared with the type's either.

    ``descriptor`` is for commands that create a file, as GPIO's do: the name of a structure's
    field.  The handler returns a new `File`, and the program finds the number of its descriptor in
    that field; the result is 0.  Linux's CUSE cannot do this: there the command fails with
    EOPNOTSUPP, and the handler is not called.

    A handler returns the result of ioctl(2), 0 to 2**31 - 1, or None for 0.  To fail it raises
    OSError; then the program's memory stays unchanged.  A handler of a structure that the program
    reads may return a negative errno, -1 to -511, to fail and still have the structure written.

    A handler with a parameter ``memory`` gets the program's memory (`Memory`), to follow pointers.

    Raises ValueError if the command has more than 32 bits, its number contradicts the type or the
    direction, or the structure has no such field of 32 bits; TypeError for any other type.
    """
    declaration = _declare(command, type, direction, descriptor)

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        handler.__dict__.setdefault(DECLARATIONS, []).append(declaration)
        return handler

    return decorate


def _declare(
    command: int, type_: Any, direction: Direction | None, descriptor: str | None
) -> Declaration:
    if not 0 <= command < 1 << 32:
        raise ValueError(f"an ioctl command has 32 bits, but {command:#x} does not fit")
    if type_ is None:
        if direction is not None:
            raise ValueError("direction= needs an argument with a type")
        if descriptor is not None:
            raise ValueError("descriptor= needs an argument with a type")
        return Declaration(command, False, Argument())
    if direction is None:
        bits = command_direction(command)
        if not bits:
            raise ValueError(f"the number of ioctl {command:#x} has no direction: give direction=")
        fetches, stores = bool(bits & IOC_WRITE), bool(bits & IOC_READ)
    elif direction in ("r", "w", "rw"):
        fetches, stores = "w" in direction, "r" in direction
    else:
        raise ValueError(f'direction is {direction!r}, not "r", "w" or "rw"')
    argument = pointer(type_, fetches=fetches, stores=stores, descriptor=descriptor)
    size = argument.size(command)
    if direction is None and command_size(command) != size:
        raise ValueError(
            f"the number of ioctl {command:#x} says {command_size(command)} bytes, "
            f"but {type_.__name__} has {size}"
        )
    if isinstance(argument, BytesPointer):
        return Declaration(command & ~SIZE_BITS, True, argument)
    return Declaration(command, False, argument)
