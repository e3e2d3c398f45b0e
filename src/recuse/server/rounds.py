"""One ioctl: the argument's way in, the handler, the way out, and the rounds that this may take.

An ioctl of an unrestricted device comes without any of the program's memory, and an answer may
carry none.  FUSE_IOCTL_RETRY names areas of it to bring (in) and to make room for (out); then the
request comes again (fs/fuse/ioctl.c, fuse_do_ioctl, Linux 6.1).  What a handler wants is found
out by running it, so it may run several times, each time with more; see `MoreMemory`.

When it has finished, and wrote other areas than were asked to be writable, the request has to come
once more.  It is then answered with the outcome that was kept, not by running the handler again:
what the handler did after its last read is done once.

What a round needs to know of the one before is kept under file and thread, for a thread waits in
one ioctl at a time.  Requests of threads that the server's pid namespace does not have all say
pid 0: two of them in the same ioctl of one file disturb each other, at worst by running a handler
again from the start.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recuse.server.errors import Misuse
from recuse.server.ioctl import Declaration, IoctlHandler, Kind
from recuse.server.memory import Area, Memory
from recuse.wire.fuse import (
    FUSE_IOCTL_MAX_IOV,
    FUSE_IOCTL_RETRY,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
)

if TYPE_CHECKING:
    from recuse.server.file import File

RESULT_MAX = (1 << 31) - 1


@dataclass(slots=True)
class Round:
    """What was asked for, so that the next round can be recognised and understood."""

    command: int
    argument: int
    inputs: list[Area]
    outputs: list[Area]
    outcome: bytes | None = None
    """The answer of a handler that has finished."""

    def answered_by(self, command: int, argument: int, in_size: int, out_size: int) -> bool:
        """Return whether a request is the round that this one asked for."""
        return (
            command == self.command
            and argument == self.argument
            and in_size == total(self.inputs)
            and out_size == total(self.outputs)
        )


def total(areas: list[Area]) -> int:
    """Return the number of bytes in areas."""
    return sum(size for _, size in areas)


class IoctlCall:
    """One run of a handler, from the bytes of the request to those of the answer."""

    __slots__ = (
        "_argument",
        "_command",
        "_file",
        "_handler",
        "_instance",
        "_memory",
        "_outputs",
        "_unrestricted",
        "key",
        "next",
    )

    def __init__(
        self,
        file: "File",
        handler: IoctlHandler,
        command: int,
        argument: int,
        *,
        unrestricted: bool,
        key: tuple[int, int],
    ) -> None:
        self.key = key
        """The file's handle and the thread's id."""
        self._file = file
        self._handler = handler
        self._command = command
        self._argument = argument
        self._unrestricted = unrestricted
        self._outputs: list[Area] = []
        self._memory = Memory([], b"", unrestricted)
        self._instance: Any = None
        self.next: Round | None = None
        """Set if the answer asks for another round."""

    @property
    def label(self) -> str:
        return f"{type(self._file).__name__}.{self._handler.name}"

    def declared(self) -> tuple[list[Area], list[Area]]:
        """Return the areas in and out that the handler's declaration tells of."""
        declaration = self._handler.declaration
        area = [(self._argument, declaration.size)]
        return (
            area if declaration.fetches else [],
            area if declaration.stores else [],
        )

    def supply(self, inputs: list[Area], outputs: list[Area], data: bytes) -> None:
        """Take the areas of this round, and what the program has in those that are in."""
        self._memory = Memory(inputs, data, self._unrestricted)
        self._outputs = outputs

    def begin(self) -> Any:
        """Call the handler; return what it returns.  Raises MoreMemory, and all that it raises."""
        handler = self._handler
        declaration = handler.declaration
        arguments: list[Any] = []
        if declaration.kind is Kind.VALUE:
            if handler.takes_command:
                arguments.append(self._command)
            if handler.takes_argument:
                arguments.append(self._argument)
        elif declaration.fetches:
            instance = self._memory.read_struct(self._argument, declaration.type)
            simple = declaration.kind is Kind.SIMPLE
            self._instance = None if simple else instance
            arguments.append(instance.value if simple else instance)
        elif declaration.kind is Kind.COMPOUND:
            self._instance = declaration.type()
            arguments.append(self._instance)
        method = getattr(self._file, handler.name)
        if handler.takes_memory:
            return method(*arguments, memory=self._memory)
        return method(*arguments)

    def answer(self, returned: Any) -> bytes:
        """Return the answer's payload, for what the handler returned.

        Raises Misuse if it returned what it must not.
        """
        if self._memory.wanted:
            # It has caught MoreMemory; whatever it made of that is void.
            return self.more_memory()
        result, stored = self._outcome(returned)
        if stored is not None:
            self._memory.write(self._argument, stored)
        written = self._memory.written
        data = self._fitting(written)
        if data is not None:
            return fuse_ioctl_out(result=result).pack() + data
        if not self._unrestricted:
            raise Misuse(
                "writes to the program's memory where the command's number does not tell of it, "
                "and the device is restricted"
            )
        data = self._memory.content(written) or b""
        outcome = fuse_ioctl_out(result=result).pack() + data
        return self.ask([], written, outcome)

    def more_memory(self) -> bytes:
        """Return the answer that asks for what the handler read and did not get."""
        return self.ask(self._memory.wanted, self.declared()[1])

    def ask(self, inputs: list[Area], outputs: list[Area], outcome: bytes | None = None) -> bytes:
        """Return the answer that asks for another round with these areas."""
        if len(inputs) + len(outputs) > FUSE_IOCTL_MAX_IOV:
            raise Misuse(
                f"uses {len(inputs) + len(outputs)} areas of the program's memory, "
                f"more than {FUSE_IOCTL_MAX_IOV}"
            )
        self.next = Round(self._command, self._argument, inputs, outputs, outcome)
        header = fuse_ioctl_out(
            flags=FUSE_IOCTL_RETRY, in_iovs=len(inputs), out_iovs=len(outputs)
        ).pack()
        return header + b"".join(
            fuse_ioctl_iovec(base=address, len=size).pack() for address, size in inputs + outputs
        )

    def _fitting(self, written: list[Area]) -> bytes | None:
        """Return the bytes for the areas that are writable now, None if those are not enough.

        The kernel half spreads an answer over them in order; it may end early.
        """
        left = list(written)
        covered: list[Area] = []
        for address, size in self._outputs:
            if not left:
                break
            covered.append((address, min(size, left[0][1])))
            if covered[-1] != left.pop(0):
                return None
            if covered[-1][1] < size and left:
                return None
        return None if left else self._memory.content(written)

    def _outcome(self, returned: Any) -> tuple[int, bytes | None]:
        """Return the result of ioctl(2), and what the argument points to afterwards."""
        declaration = self._handler.declaration
        if declaration.kind is Kind.SIMPLE and declaration.stores:
            return 0, _simple(declaration, returned)
        instance = self._instance
        if declaration.kind is Kind.COMPOUND and isinstance(returned, declaration.type):
            if not declaration.stores:
                raise Misuse("returned a structure, but the program does not read one")
            instance, returned = returned, 0
        if returned is None:
            returned = 0
        if not isinstance(returned, int):
            raise Misuse(f"returned {_brief(returned)}, not a result")
        if not 0 <= returned <= RESULT_MAX:
            raise Misuse(f"returned {returned}, not a result from 0 to {RESULT_MAX}")
        stored = bytes(instance) if declaration.stores and instance is not None else None
        return int(returned), stored


def _simple(declaration: Declaration, returned: Any) -> bytes:
    try:
        value = declaration.type(returned)
    except TypeError:
        value = None
    # ctypes cuts what does not fit; an author wants to know.
    if value is None or (isinstance(returned, int) and value.value != returned):
        raise Misuse(f"returned {_brief(returned)}, not a value of {declaration.type.__name__}")
    return bytes(value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
