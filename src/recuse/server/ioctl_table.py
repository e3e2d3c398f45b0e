"""The table of a class's ioctl handlers, made from what `recuse.ioctl` says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recuse.runtime.records import record
from recuse.server.arguments import Argument
from recuse.wire.ioctl import size as command_size

DECLARATIONS = "__recuse_ioctls__"
SIZE_BITS = 0x3FFF << 16


@record
class Declaration:
    """What one use of the decorator says."""

    command: int
    any_size: bool
    """The bits for the command's size are 0 here, and may be anything in a request."""
    argument: Argument


@record
class IoctlHandler:
    """How the method of one class answers a command."""

    name: str
    argument: Argument
    takes_argument: bool
    takes_memory: bool
    takes_command: bool = False
    """It is `File.unknown_ioctl`, which answers commands that have no declared handler."""


class IoctlTable:
    """The handlers of one class, by command.

    A method that overrides a handler need not repeat the decorator. If it has a decorator of its
    own, it answers the commands that this decorator names.
    """

    __slots__ = ("_any_size", "_exact", "_unknown", "makes_files")

    def __init__(self, cls: type) -> None:
        """Collect them.

        Raises TypeError if two methods answer one command, if a method cannot be called with the
        arguments it would get, or if one is named "ioctl", as it would hide the decorator from the
        methods after it.
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
            if hasattr(member, DECLARATIONS)
        )
        for name in names:
            for declaration in _declarations(cls, name):
                self._add(cls, name, declaration)
        self.makes_files = any(one.argument.descriptor is not None for one in self._exact.values())
        """Whether one of them answers with a new file."""

    def find(self, command: int) -> IoctlHandler:
        """Return the handler of a command, `File.unknown_ioctl` if it has none of its own."""
        handler = self._exact.get(command)
        if handler is None:
            handler = self._any_size.get(command & ~SIZE_BITS, self._unknown)
        return handler

    @property
    def uses_memory(self) -> bool:
        """Whether one of them uses program memory that the command's number does not name."""
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
        # In the usual case inspect is not needed.
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
    """Return the declarations of the most derived class that decorates the method."""
    for base in cls.__mro__:
        found: list[Declaration] | None = getattr(vars(base).get(name), DECLARATIONS, None)
        if found is not None:
            return found
    return []


def _parameters(method: Callable[..., Any], declaration: Declaration) -> tuple[bool, bool]:
    """Return whether a handler takes the argument, and whether it takes memory.

    Raises TypeError if it cannot be called with them, or cannot take an argument that it must take.
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
