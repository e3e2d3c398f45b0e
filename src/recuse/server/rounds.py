"""One ioctl: the argument's way in, the handler, the way out, and the rounds that this may take.

An ioctl of an unrestricted device comes without any of the program's memory, and an answer to it
may carry none.  FUSE_IOCTL_RETRY names areas to bring (in) and to make room for (out); then the
request comes again (fs/fuse/ioctl.c, fuse_do_ioctl, Linux 6.1).  What a handler wants is found
out by running it, so it may run several times, each time with more; see `recuse.server.memory`.

When it has finished, and has written other areas than there is room for, the request has to come
once more.  It is then answered with the outcome that was kept, not by running the handler again:
what a handler does after its last read is done once.
"""

import threading
from dataclasses import dataclass
from typing import Any

from recuse.server.errors import Misuse, brief
from recuse.server.file import File
from recuse.server.ioctl import IoctlHandler, Kind
from recuse.server.memory import Area, Memory
from recuse.wire.fuse import (
    FUSE_IOCTL_MAX_IOV,
    FUSE_IOCTL_RETRY,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
)

RESULT_MAX = (1 << 31) - 1
"""A bigger result of ioctl(2) would be negative for the program."""

MOST_ROUNDS = 500
"""When to call it endless.  A handler that follows pointers with separate reads needs a round for
each, and there can be no more than FUSE_IOCTL_MAX_IOV of them."""

_MOST_STRANGERS = 64
"""Rounds kept for threads whose number is not known, for each file."""


@dataclass(slots=True)
class Round:
    """What was asked for, so that the next round can be recognised and understood."""

    command: int
    argument: int
    number: int
    inputs: list[Area]
    outputs: list[Area]
    outcome: bytes | None = None
    """The answer of a handler that has finished."""
    proof: bytes | None = None
    """What the inputs have to be for the outcome to be theirs, None if that is certain."""

    def is_continued(self, call: "IoctlCall", data: bytes, out_size: int) -> bool:
        """Whether a request is the round that this one asked for."""
        return (
            call.command == self.command
            and call.argument == self.argument
            and len(data) == total(self.inputs)
            and out_size == total(self.outputs)
            and self.proof in (None, data)
        )


def total(areas: list[Area]) -> int:
    """Return the number of bytes in areas."""
    return sum(size for _, size in areas)


class Rounds:
    """What the ioctls of unrestricted devices need to know of their rounds before.

    Kept under file and thread: a thread waits in one ioctl at a time, so its next request on the
    file either goes on with that one, or that one is over.  Threads that have no number in the
    server's pid namespace all say 0.  Theirs are told apart by what they ask and, where a kept
    outcome depends on it, by what is in their memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], list[Round]] = {}
        self._lock = threading.Lock()

    def begin(
        self, call: "IoctlCall", key: tuple[int, int], data: bytes, out_size: int
    ) -> bytes | None:
        """Give ``call`` what this round has brought; return an answer if that is possible at once.

        ``key`` is the file's handle and the thread's number.
        """
        last = self._take(call, key, data, out_size)
        call.join(self, key)
        if last is not None:
            if last.outcome is not None:
                return last.outcome
            call.supply(last.inputs, last.outputs, data, last.number + 1)
            return None
        inputs, outputs = call.declared()
        if len(data) == total(inputs) and out_size == total(outputs):
            call.supply(inputs, outputs, data, 1)
            return None
        # The first round; or a later one of which nothing is known, which is taken for a first.
        call.supply([], [], b"", 1)
        return call.ask(inputs, outputs) if inputs or outputs else None

    def keep(self, key: tuple[int, int], asked: Round) -> None:
        """Remember what a round asked for."""
        with self._lock:
            if key[1]:
                self._kept[key] = [asked]
            else:
                kept = self._kept.setdefault(key, [])
                kept.append(asked)
                del kept[:-_MOST_STRANGERS]

    def forget(self, handle: int) -> None:
        """Forget the rounds of a file."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == handle]:
                del self._kept[key]

    def _take(
        self, call: "IoctlCall", key: tuple[int, int], data: bytes, out_size: int
    ) -> Round | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            found = next((one for one in kept if one.is_continued(call, data, out_size)), None)
            if found is not None:
                kept.remove(found)
            if key[1] or not kept:
                del self._kept[key]
            return found


class IoctlCall:
    """One run of a handler, from the bytes of the request to those of the answer."""

    __slots__ = (
        "_data",
        "_file",
        "_handler",
        "_inputs",
        "_instance",
        "_key",
        "_memory",
        "_number",
        "_outputs",
        "_rounds",
        "argument",
        "command",
    )

    _data: bytes
    _inputs: list[Area]
    _outputs: list[Area]
    _memory: Memory
    _key: tuple[int, int]
    _number: int

    def __init__(self, file: File, command: int, argument: int) -> None:
        """Make a call, which then needs `supply` or `restrict`."""
        self.command = command
        self.argument = argument
        self._file = file
        self._handler: IoctlHandler = file.ioctls.find(command)
        self._instance: Any = None
        self._rounds: Rounds | None = None

    @property
    def label(self) -> str:
        """The author's method, as "Class.method"."""
        return f"{type(self._file).__name__}.{self._handler.name}"

    def declared(self) -> tuple[list[Area], list[Area]]:
        """Return the areas in and out that the handler's declaration tells of."""
        declaration = self._handler.declaration
        area = _area(self.argument, self._handler.size(self.command))
        return area if declaration.fetches else [], area if declaration.stores else []

    def join(self, rounds: Rounds, key: tuple[int, int]) -> None:
        """Make it one that can ask for rounds, remembered there."""
        self._rounds, self._key = rounds, key

    def supply(self, inputs: list[Area], outputs: list[Area], data: bytes, number: int) -> None:
        """Take this round's areas, and what the program has in those that are in."""
        self._number = number
        self._inputs, self._outputs, self._data = inputs, outputs, data
        self._memory = Memory(inputs, data)

    def restrict(self, data: bytes, out_size: int) -> None:
        """Take all that there will be: what the command's number tells of."""
        self._outputs = _area(self.argument, out_size)
        self._memory = Memory(_area(self.argument, len(data)), data, self._outputs)

    def begin(self) -> Any:
        """Call the handler; return what it returns.  Raises MoreMemory, and all that it raises."""
        handler = self._handler
        declaration = handler.declaration
        arguments: list[Any] = []
        if declaration.kind is Kind.VALUE:
            if handler.takes_command:
                arguments.append(self.command)
            if handler.takes_argument:
                arguments.append(self.argument)
        elif declaration.kind is Kind.BYTES:
            if declaration.fetches:
                arguments.append(self._memory.read(self.argument, handler.size(self.command)))
        elif declaration.kind is Kind.SIMPLE:
            if declaration.fetches:
                arguments.append(self._memory.read_struct(self.argument, declaration.type).value)
        else:
            if declaration.fetches:
                self._instance = self._memory.read_struct(self.argument, declaration.type)
            else:
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
        memory = self._memory
        if memory.wanted:
            # It has not finished, or it has caught MoreMemory and made something void of it.
            return self.ask(memory.wanted, self.declared()[1])
        result, stored = self._outcome(returned)
        if stored:
            memory.write(self.argument, stored)
        header = fuse_ioctl_out(result=result).pack()
        written = memory.written
        room = _prefix(self._outputs, written)
        if room is not None:
            data = memory.content(room)
            if data is not None:
                return header + data
        if self._rounds is None:
            raise Misuse("wrote only a part of what the program is to get, not its beginning")
        outcome = header + (memory.content(written) or b"")
        if self._key[1]:
            return self.ask([], written, outcome)
        return self.ask(self._inputs, written, outcome, self._data)

    def ask(
        self,
        inputs: list[Area],
        outputs: list[Area],
        outcome: bytes | None = None,
        proof: bytes | None = None,
    ) -> bytes:
        """Return the answer that asks for another round, with these areas."""
        count = len(inputs) + len(outputs)
        if count > FUSE_IOCTL_MAX_IOV:
            raise Misuse(
                f"uses {count} areas of the program's memory, more than {FUSE_IOCTL_MAX_IOV}"
            )
        if self._number >= MOST_ROUNDS:
            raise Misuse(f"wants other areas of the program's memory after {MOST_ROUNDS} rounds")
        assert self._rounds is not None
        self._rounds.keep(
            self._key,
            Round(self.command, self.argument, self._number, inputs, outputs, outcome, proof),
        )
        header = fuse_ioctl_out(
            flags=FUSE_IOCTL_RETRY, in_iovs=len(inputs), out_iovs=len(outputs)
        ).pack()
        return header + b"".join(
            fuse_ioctl_iovec.CODEC.pack(address, size) for address, size in inputs + outputs
        )

    def _outcome(self, returned: Any) -> tuple[int, bytes]:
        """Return the result of ioctl(2), and the new content of what the argument points to."""
        declaration = self._handler.declaration
        stored = b""
        if declaration.kind is Kind.SIMPLE and declaration.stores:
            return 0, _simple(declaration.type, returned)
        if declaration.kind is Kind.BYTES and declaration.stores:
            try:
                stored = memoryview(returned).tobytes()
            except TypeError:
                raise Misuse(f"returned {brief(returned)}, not bytes") from None
            stored = stored[: self._handler.size(self.command)]
            return len(stored), stored
        if declaration.kind is Kind.COMPOUND:
            instance = self._instance
            if isinstance(returned, declaration.type):
                if not declaration.stores:
                    raise Misuse(f"returned {brief(returned)}, but the program does not read it")
                instance, returned = returned, None
            if declaration.stores:
                stored = bytes(instance)
        if returned is None:
            return 0, stored
        if not isinstance(returned, int):
            raise Misuse(f"returned {brief(returned)}, not a result")
        if not 0 <= returned <= RESULT_MAX:
            raise Misuse(f"returned {returned}, not a result from 0 to {RESULT_MAX}")
        return int(returned), stored


def ioctl_answer(returned: Any, call: IoctlCall) -> bytes:
    """Return the payload for what an ioctl handler returned."""
    return call.answer(returned)


def _prefix(room: list[Area], written: list[Area]) -> list[Area] | None:
    """Return the least beginning of ``room`` that has all of ``written``, None if none has it.

    The kernel half spreads an answer's data over the room in order, and it may end early.
    """
    needed: list[Area] = []
    left = list(written)
    for address, size in room:
        if not left:
            break
        end = address
        while left and address <= left[0][0] and sum(left[0]) <= address + size:
            end = sum(left.pop(0))
        needed.append((address, end - address if not left else size))
    return None if left else [area for area in needed if area[1]]


def _simple(type_: Any, returned: Any) -> bytes:
    """Return a value as the bytes of a simple ctypes type."""
    try:
        value = type_(returned)
    except TypeError:
        value = None
    # ctypes cuts what does not fit; an author wants to know.
    if value is None or (isinstance(returned, int) and value.value != returned):
        raise Misuse(f"returned {brief(returned)}, not a value of {type_.__name__}")
    return bytes(value)


def _area(address: int, size: int) -> list[Area]:
    return [(address, size)] if size else []
