"""Declaring ioctl handlers: the decorator, what it checks, and the table made of it for a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from recuse.runtime.records import record
from recuse.server.arguments import Argument, BytesPointer, pointer
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
"""As the program sees it: "r", it reads what the device fills in; "w", it writes to the device."""

_DECLARATIONS = "__recuse_ioctls__"
_SIZE_BITS = 0x3FFF << 16


@record
class Declaration:
    """What one use of the decorator says."""

    command: int
    any_size: bool
    """The command's bits for the size are 0 here, and anything in a request."""
    argument: Argument


@record
class IoctlHandler:
    """How the method of one class answers a command."""

    name: str
    argument: Argument
    takes_argument: bool
    takes_memory: bool
    takes_command: bool = False
    """It is `File.unknown_ioctl`, which answers commands that nothing is declared for."""


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

    ``command`` is the number that programs pass to ioctl(2), 32 bits; several uses of the
    decorator on one method make it answer several commands.

    Without ``type`` the handler is given the third argument of ioctl(2) as the plain number that
    it is, if it takes one.  With a ctypes ``type`` that argument is a pointer to such a thing:

    * a simple type (c_int, c_uint64...): for "w" the handler is given the value, for "r" it is
      given nothing and returns the value, for "rw" it is given one and returns one;
    * a structure, union or array: the handler is given an instance, which has the program's
      content for "w" and "rw" and is zero for "r".  For "r" and "rw" the program gets what the
      handler has made of it, or another instance if it returns one;
    * ``bytes``, for commands whose number has a size that the program chooses, like EVIOCGNAME:
      the handler answers the command with any size.  For "w" and "rw" it is given that many
      bytes.  For "r" and "rw" it returns bytes: the program gets those for which it has room, and
      their number as the result.

    ``direction`` is the program's: it reads ("r"), writes ("w") or both.  Without, the command's
    number says it.  Say it for commands whose number does not (old ones like I2C_RDWR, 0x707), or
    not truly; then the number's size is not compared with the type's either.

    ``descriptor`` is for commands that make a new file, as GPIO's do: the name of a structure's
    field.  The handler returns a new `File`, and the program finds there the number of a descriptor
    of it; the result is 0.  Linux's CUSE has no such thing: there the command fails with
    EOPNOTSUPP, and the handler is not called.

    A handler returns the result of ioctl(2), 0 to 2**31 - 1, or None for 0.  It raises OSError to
    fail; then the program's memory stays as it was.  One of a structure that the program reads may
    return a negative errno, -1 to -511, to fail and have the structure written.

    A handler that names a parameter ``memory`` is given the program's memory (`Memory`), through
    which it follows pointers.

    Raises ValueError if the command is not 32 bits, its number contradicts type or direction, or
    the structure has no such field of 32 bits; TypeError if the type is none of the above.
    """
    declaration = _declare(command, type, direction, descriptor)

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        handler.__dict__.setdefault(_DECLARATIONS, []).append(declaration)
        return handler

    return decorate


def _declare(
    command: int, type_: Any, direction: Direction | None, descriptor: str | None
) -> Declaration:
    if not 0 <= command < 1 << 32:
        raise ValueError(f"an ioctl command has 32 bits, {command:#x} has more")
    if type_ is None:
        if direction is not None:
            raise ValueError("a direction is for an argument with a type")
        if descriptor is not None:
            raise ValueError("a descriptor is for an argument with a type")
        return Declaration(command, False, Argument())
    if direction is None:
        bits = command_direction(command)
        if not bits:
            raise ValueError(f"the number of ioctl {command:#x} tells no direction: say direction=")
        fetches, stores = bool(bits & IOC_WRITE), bool(bits & IOC_READ)
    elif direction in ("r", "w", "rw"):
        fetches, stores = "w" in direction, "r" in direction
    else:
        raise ValueError(f'direction is {direction!r}, not "r", "w" or "rw"')
    argument = pointer(type_, fetches=fetches, stores=stores, descriptor=descriptor)
    size = argument.size(command)
    if direction is None and command_size(command) != size:
        raise ValueError(
            f"the number of ioctl {command:#x} tells of {command_size(command)} bytes, "
            f"but {type_.__name__} has {size}"
        )
    if isinstance(argument, BytesPointer):
        return Declaration(command & ~_SIZE_BITS, True, argument)
    return Declaration(command, False, argument)


class IoctlTable:
    """The handlers of one class, by command.

    A method that overrides a handler need not repeat the decorator; with a decorator of its own
    it answers the commands that this one says.
    """

    __slots__ = ("_any_size", "_exact", "_unknown")

    def __init__(self, cls: type) -> None:
        """Collect them.

        Raises TypeError if two methods answer one command, if one cannot be called as it would
        be, or if it is named "ioctl", which would hide the decorator from those that follow.
        """
        if "ioctl" in vars(cls):
            raise TypeError(
                f"{cls.__name__}.ioctl: the method for commands without a handler is called "
                "unknown_ioctl"
            )
        self._exact: dict[int, IoctlHandler] = {}
        self._any_size: dict[int, IoctlHandler] = {}
        self._unknown = _unknown_ioctl(cls)
        names = dict.fromkeys(
            name
            for base in reversed(cls.__mro__)
            for name, member in vars(base).items()
            if hasattr(member, _DECLARATIONS)
        )
        for name in names:
            for declaration in _declarations(cls, name):
                self._add(cls, name, declaration)

    def find(self, command: int) -> IoctlHandler:
        """Return the handler of a command, `File.unknown_ioctl` if it has none of its own."""
        handler = self._exact.get(command)
        if handler is None:
            handler = self._any_size.get(command & ~_SIZE_BITS, self._unknown)
        return handler

    @property
    def makes_files(self) -> bool:
        """Whether one of them answers with a new file."""
        return any(handler.argument.descriptor is not None for handler in self._exact.values())

    @property
    def uses_memory(self) -> bool:
        """Whether one of them uses memory of the program of which its number does not tell."""
        return any(handler.takes_memory for handler in self._any_size.values()) or any(
            handler.takes_memory or handler.argument.size(command) > command_size(command)
            for command, handler in self._exact.items()
        )

    def _add(self, cls: type, name: str, declaration: Declaration) -> None:
        table = self._any_size if declaration.any_size else self._exact
        other = table.get(declaration.command)
        if other is not None:
            raise TypeError(
                f"{cls.__name__}.{other.name} and {cls.__name__}.{name} "
                f"both answer ioctl {declaration.command:#x}"
            )
        takes_argument, takes_memory = _parameters(getattr(cls, name), declaration)
        table[declaration.command] = IoctlHandler(
            name, declaration.argument, takes_argument, takes_memory
        )


_CO_STAR = 0xC  # of inspect: CO_VARARGS | CO_VARKEYWORDS


def _parameter_names(method: Callable[..., Any]) -> list[str]:
    """Without self."""
    code = getattr(method, "__code__", None)
    names = ["command", "argument", "memory"]
    if code is not None and not hasattr(method, "__wrapped__"):
        # The usual case does without inspect.
        star = code.co_flags & _CO_STAR or code.co_kwonlyargcount
        if not star and list(code.co_varnames[1 : code.co_argcount]) == names:
            return names
    from inspect import signature  # noqa: PLC0415

    return list(signature(method).parameters)[1:]


def _unknown_ioctl(cls: Any) -> IoctlHandler:
    names = _parameter_names(cls.unknown_ioctl)
    if names != ["command", "argument", "memory"]:
        raise TypeError(
            f"{cls.__name__}.unknown_ioctl takes {', '.join(names) or 'nothing'}; "
            "it is given command, argument, memory"
        )
    return IoctlHandler(
        "unknown_ioctl", Argument(), takes_argument=True, takes_memory=True, takes_command=True
    )


def _declarations(cls: type, name: str) -> list[Declaration]:
    """Return those of the most derived class that decorates the method."""
    for base in cls.__mro__:
        found: list[Declaration] | None = getattr(vars(base).get(name), _DECLARATIONS, None)
        if found is not None:
            return found
    return []


def _parameters(method: Callable[..., Any], declaration: Declaration) -> tuple[bool, bool]:
    """Return whether a handler takes the argument, and whether it takes memory.

    Raises TypeError if it cannot be called with them, or without the argument that it has to take.
    """
    import inspect  # noqa: PLC0415  # which most devices do without

    gives_argument = declaration.argument.is_given
    signature = inspect.signature(method)
    memory = {"memory": None} if "memory" in signature.parameters else {}
    for given in ([None], []) if gives_argument else ([],):
        try:
            signature.bind(None, *given, **memory)
        except TypeError:
            continue
        if given or not gives_argument or declaration.argument.is_number:
            return bool(given), bool(memory)
    raise TypeError(
        f"{method.__qualname__}, which answers ioctl {declaration.command:#x}, takes "
        f"{', '.join(list(signature.parameters)[1:]) or 'nothing'}; it is given "
        f"{'the argument' if gives_argument else 'nothing'}, and memory if it names that last"
    )
