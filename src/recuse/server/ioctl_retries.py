"""One ioctl: its argument, its handler, its answer, and the rounds that this may take.

An ioctl of an unrestricted device comes without any of the program's memory, and an answer to it
may carry none. FUSE_IOCTL_RETRY names areas to bring (in) and to make room for (out). Then the
request comes again (fs/fuse/ioctl.c, fuse_do_ioctl, Linux 6.1). What a handler needs is found out
by running it. So it may run several times, each time with more memory; see `recuse.server.memory`.

If a handler has finished, but has written areas that there is no room for, the request has to come
once more. Then it is answered with the outcome that was kept, without running the handler again.
So what a handler does after its last read is done only once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from recuse.runtime.locks import new_lock
from recuse.runtime.records import record
from recuse.server.device import File, find_handler
from recuse.server.errors import Misuse
from recuse.server.memory import Memory, Span, Spans
from recuse.wire.cuse import RECUSE_IOCTL_FILE, recuse_ioctl_file
from recuse.wire.fuse import (
    FUSE_IOCTL_MAX_IOV,
    FUSE_IOCTL_RETRY,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
)

MOST_ROUNDS = 500
"""With this many rounds it counts as endless. A handler that follows pointers with separate reads
needs one round for each, and there can be no more than FUSE_IOCTL_MAX_IOV of them."""

_MOST_STRANGERS = 64
"""How many rounds are kept, for each file, for threads whose number is not known."""

_pack_out = fuse_ioctl_out.CODEC.pack
_pack_file = recuse_ioctl_file.CODEC.pack
_pack_iovec = fuse_ioctl_iovec.CODEC.pack


@record
class Round:
    """What was asked for, so that the next round can be recognised."""

    command: int
    argument: int
    number: int
    inputs: list[Span]
    outputs: list[Span]
    outcome: bytes | None
    """The answer of a finished handler."""
    made: int | None
    """The handle of the file that the handler made; it belongs to the outcome."""
    proof: bytes | None
    """The inputs that the outcome depends on, None if they need no check."""

    def is_continued(self, call: IoctlCall) -> bool:
        """Whether a request is the round that this one asked for."""
        return (
            call.command == self.command
            and call.argument == self.argument
            and len(call.data) == total(self.inputs)
            and call.out_size == total(self.outputs)
            and (self.proof is None or self.proof == call.data)
        )


def total(areas: list[Span]) -> int:
    """Return the number of bytes in areas."""
    # Mostly there is one area or none, and for these this is three times as fast as the sum.
    if not areas:
        return 0
    return areas[0][1] if len(areas) == 1 else sum(size for _, size in areas)


class Files(Protocol):
    """The open files of a session, for ioctls that make files."""

    def adopt(self, file: object) -> tuple[int, int]:
        """Add a file that a handler has returned; return its handle and its flags.

        Raises Misuse if it is not a File, OSError if it is no longer of use.
        """

    def drop(self, handle: int) -> None:
        """Release a file that the kernel half is not told about."""


class IoctlRetries:
    """What is remembered between the rounds of ioctls of unrestricted devices.

    It is kept by file and thread. A thread waits in one ioctl at a time, so its next request on the
    file either continues that ioctl, or shows that it is over. Threads that have no number in the
    server's pid namespace all have number 0. They are told apart by what they ask and, if a kept
    outcome depends on it, by what is in their memory.
    """

    def __init__(self, unwanted: Callable[[int], None]) -> None:
        """Make it; ``unwanted`` is called with each file whose outcome nobody has fetched."""
        self._unwanted = unwanted
        self._kept: dict[tuple[int, int], list[Round]] = {}
        self._lock = new_lock("IoctlRetries")

    def begin(self, call: IoctlCall, key: tuple[int, int]) -> bytes | None:
        """Prepare ``call`` to run with the memory so far; return an answer if there is one already.

        ``key`` is the file's handle and the thread's number.
        """
        last = self._take(call, key) if self._kept else None
        if last is None:
            return call.begin_rounds(self, key)
        if last.outcome is not None:
            return last.outcome
        call.continue_rounds(self, key, last)
        return None

    def keep(self, key: tuple[int, int], asked: Round) -> None:
        """Remember what a round asked for."""
        with self._lock:
            kept = [] if key[1] else self._kept.get(key, [])
            kept.append(asked)
            forgotten, kept[:] = kept[:-_MOST_STRANGERS], kept[-_MOST_STRANGERS:]
            self._kept[key] = kept
        self._let_go(forgotten)

    def forget(self, handle: int) -> None:
        """Forget the rounds of a file."""
        with self._lock:
            keys = [key for key in self._kept if key[0] == handle]
            forgotten = [one for key in keys for one in self._kept.pop(key)]
        self._let_go(forgotten)

    def _take(self, call: IoctlCall, key: tuple[int, int]) -> Round | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            found = next((one for one in kept if one.is_continued(call)), None)
            if found is not None:
                kept.remove(found)
            if key[1] or not kept:
                del self._kept[key]
        if key[1] and kept:
            self._let_go(kept)
        return found

    def _let_go(self, rounds: list[Round]) -> None:
        for one in rounds:
            if one.made is not None:
                self._unwanted(one.made)


class IoctlCall:
    """One run of a handler, from the bytes of the request to those of the answer."""

    __slots__ = (
        "_area",
        "_file",
        "_files",
        "_given",
        "_handler",
        "_inputs",
        "_key",
        "_made",
        "_memory",
        "_number",
        "_outputs",
        "_rounds",
        "argument",
        "command",
        "data",
        "out_size",
    )

    def __init__(  # noqa: PLR0917  # by position, as one is made for each ioctl
        self,
        file: File,
        command: int,
        argument: int,
        data: bytes,
        out_size: int,
        files: Files,
    ) -> None:
        """Make a call, with what the kernel half has sent and the room for an answer's data.

        ``files`` accepts the file that a handler makes.
        """
        self.command = command
        self.argument = argument
        self.data = data
        self.out_size = out_size
        self._file = file
        self._files = files
        self._made: tuple[int, int] | None = None
        """Handle and flags of the file that the handler has made."""
        handler = find_handler(file, command)
        self._handler = handler
        size = handler.argument.size(command)
        self._area: list[Span] = [(argument, size)] if size else []
        """The areas that the handler's declaration describes."""
        # In the usual case what has come, and the room, are exactly that.
        self._inputs = self._area if handler.argument.fetches else []
        self._outputs = self._area if handler.argument.stores else []
        self._memory: Memory | None = None
        self._rounds: IoctlRetries | None = None
        self._key = (0, 0)
        self._number = 1

    @property
    def makes_file(self) -> bool:
        """Whether the handler answers with a new file."""
        return self._handler.argument.descriptor is not None

    @property
    def label(self) -> str:
        """The author's method, as "Class.method"."""
        return f"{type(self._file).__name__}.{self._handler.name}"

    @property
    def method(self) -> Any:
        """The author's method itself."""
        return getattr(self._file, self._handler.name)

    # One of these three is called first.

    def restrict(self) -> None:
        """Set up a restricted call: it has all the memory that the command's number names."""
        if not self._has_declared():
            self._inputs = [(self.argument, len(self.data))] if self.data else []
            self._outputs = [(self.argument, self.out_size)] if self.out_size else []

    def begin_rounds(self, rounds: IoctlRetries, key: tuple[int, int]) -> bytes | None:
        """Set up a call with no known earlier round; return an answer if there is one."""
        self._rounds = rounds
        self._key = key
        if self._has_declared():
            return None
        if not self.data and not self.out_size:
            return _retry(self._inputs, self._outputs)
        self._inputs, self._outputs, self.data = [], [], b""
        return None

    def continue_rounds(self, rounds: IoctlRetries, key: tuple[int, int], last: Round) -> None:
        """Set up the round that ``last`` asked for."""
        self._rounds = rounds
        self._key = key
        self._number = last.number + 1
        self._inputs, self._outputs = last.inputs, last.outputs

    def _has_declared(self) -> bool:
        return len(self.data) == total(self._inputs) and self.out_size == total(self._outputs)

    def begin(self) -> Any:
        """Call the handler; return its result. Raises MoreMemory, and what the handler raises."""
        handler = self._handler
        argument = handler.argument
        if argument.is_number:
            self._given = self.argument
        elif not argument.fetches:
            self._given = argument.decode(b"")
        elif self._inputs is self._area:
            self._given = argument.decode(self.data)
        else:
            self._given = argument.decode(b"".join(self.memory().read_many(self._area)))
        method = getattr(self._file, handler.name)
        if handler.takes_command:
            return method(self.command, self._given, self.memory())
        if handler.takes_memory:
            if handler.takes_argument:
                return method(self._given, memory=self.memory())
            return method(memory=self.memory())
        return method(self._given) if handler.takes_argument else method()

    def memory(self) -> Memory:
        """Return the program's memory, as far as it is known."""
        if self._memory is None:
            room = self._outputs if self._rounds is None else None
            self._memory = Memory(self._inputs, self.data, room)
        return self._memory

    def answer(self, returned: Any, _: None) -> bytes:
        """Return the answer's payload for what the handler returned.

        Raises Misuse if it returned something invalid.
        """
        memory = self._memory
        argument = self._handler.argument
        if memory is not None and (wanted := memory.wanted):
            # It has not finished, or it caught MoreMemory, and so its result does not count.
            if argument.fetches:
                wanted = list(Spans([*self._area, *wanted]))
            return self._ask(wanted, self._area if argument.stores else [])
        size = self._area[0][1] if self._area else 0
        result, stored = argument.outcome(returned, self._given, size)
        if argument.descriptor is None:
            return self._finish(result, stored)
        self._made = self._files.adopt(returned)
        try:
            return self._finish(result, stored)
        except BaseException:
            self._files.drop(self._made[0])
            raise

    def _finish(self, result: int, stored: bytes) -> bytes:
        """Return the payload of an answer that gives the program what was stored and written."""
        if self._memory is None and (not stored or self._outputs is self._area):
            return self._head(result, self._area) + stored
        memory = self.memory()
        if stored:
            memory.write(self.argument, stored)
        written = memory.written
        room = _prefix(self._outputs, written)
        if room is not None and (data := memory.content(room)) is not None:
            return self._head(result, room) + data
        if self._rounds is None:
            raise Misuse("wrote only a part of what the program is to get, not its beginning")
        outcome = self._head(result, written) + (memory.content(written) or b"")
        if not self._key[1]:
            return self._ask(self._inputs, written, outcome, self.data)
        # Nothing has to be read any more. But in a round without input that follows one with
        # input, Linux (at least 6.1) sends its structure as garbage: in_pages stays set, and the
        # last argument of the request, which is then the structure, is taken from the pages.
        return self._ask([(address, 1) for address, _ in self._inputs[:1]], written, outcome)

    def _head(self, result: int, areas: list[Span]) -> bytes:
        """Return the beginning of the payload; the data for the areas follow it."""
        if self._made is None:
            return _pack_out(result, 0, 0, 0)
        place = self.argument + (self._handler.argument.descriptor or 0)
        offset = 0
        for address, size in areas:
            if address <= place < address + size:
                offset += place - address
                break
            offset += size
        return _pack_out(result, RECUSE_IOCTL_FILE, 0, 0) + _pack_file(*self._made, offset)

    def _ask(
        self,
        inputs: list[Span],
        outputs: list[Span],
        outcome: bytes | None = None,
        proof: bytes | None = None,
    ) -> bytes:
        """Return the answer that asks for another round, with these areas."""
        if self._rounds is None:
            raise AssertionError("a restricted device has no rounds")
        count = len(inputs) + len(outputs)
        if count > FUSE_IOCTL_MAX_IOV:
            raise Misuse(
                f"uses {count} areas of the program's memory, more than {FUSE_IOCTL_MAX_IOV}"
            )
        if self._number >= MOST_ROUNDS:
            raise Misuse(f"wants other areas of the program's memory after {MOST_ROUNDS} rounds")
        asked = Round(
            self.command,
            self.argument,
            self._number,
            inputs,
            outputs,
            outcome,
            None if self._made is None else self._made[0],
            proof,
        )
        self._rounds.keep(self._key, asked)
        return _retry(inputs, outputs)


def _retry(inputs: list[Span], outputs: list[Span]) -> bytes:
    areas = inputs + outputs
    return _pack_out(0, FUSE_IOCTL_RETRY, len(inputs), len(outputs)) + b"".join(
        [_pack_iovec(address, size) for address, size in areas]
    )


def _prefix(room: list[Span], written: list[Span]) -> list[Span] | None:
    """Return the shortest beginning of ``room`` that has all of ``written``, None if none does.

    The kernel half spreads an answer's data over the room in order, and the data may end early.
    """
    if room == written:
        return room
    needed: list[Span] = []
    left = list(written)
    for address, size in room:
        if not left:
            break
        end = address
        while left and address <= left[0][0] and sum(left[0]) <= address + size:
            end = sum(left.pop(0))
        needed.append((address, end - address if not left else size))
    return None if left else needed
