"""Declaring ioctl handlers, and what becomes of arguments and results."""

import ctypes
import errno
import os
from collections.abc import Callable
from ctypes import c_bool, c_char, c_double, c_int, c_int16, c_size_t, c_uint8, c_uint32
from typing import Any, cast

import pytest

from recuse import IO, IOR, IOW, IOWR, File, Memory, ioctl
from recuse.wire.cuse import CUSE_UNRESTRICTED_IOCTL, RECUSE_FILE_FLAGS, RECUSE_IOCTL_NONBLOCK
from recuse.wire.fuse import FUSE_IOCTL, fuse_ioctl_in

from .conftest import Program, Serve, Told


class Pair(ctypes.Structure):
    _fields_ = [("a", c_uint32), ("b", c_uint32)]


class Either(ctypes.Union):
    _fields_ = [("number", c_uint32), ("raw", c_uint8 * 4)]


ARGUMENT = 0x40
"""Where in the program's memory the argument is."""


class Both:
    """Does an ioctl on a restricted device, and on an unrestricted one, which must be the same."""

    def __init__(self, serve: Serve, program: type[Program], file: type[File]) -> None:
        self.plain = serve(file)
        self.plain_fh = self.plain.open()
        self.program = program(serve(file))
        self.fh = self.program.peer.open()

    def __call__(
        self,
        command: int,
        content: bytes = b"",
        size: int | None = None,
        argument: int | None = None,
    ) -> tuple[int, bytes]:
        """Return the result, and what is behind the argument afterwards."""
        bits = command >> 30
        size = command >> 16 & 0x3FFF if size is None else size
        filler = b"\xaa" * size
        before = content or filler
        address = self.program.put(ARGUMENT, before + b"\xbb" * 8)
        if argument is None:
            argument = address
        result = self.program.ioctl(self.fh, command, argument)
        after = self.program.get(address, size)
        assert self.program.get(address + size, 8) == b"\xbb" * 8
        if bits or not size:
            data = before if bits & 1 else b""
            out_size = size if bits & 2 else 0
            again, out = self.plain.restricted_ioctl(
                self.plain_fh, command, argument, data, out_size
            )
            assert again == result
            assert out + before[len(out) :] == after
        return result, after

    def fails(self, command: int, argument: int = 0, in_size: int = 0, out_size: int = 0) -> int:
        body = fuse_ioctl_in(
            fh=self.plain_fh, cmd=command, arg=argument, in_size=in_size, out_size=out_size
        )
        return self.plain.fails(FUSE_IOCTL, body, bytes(in_size))


Make = Callable[[type[File]], Both]


@pytest.fixture
def both(serve: Serve, program: type[Program]) -> Make:
    return lambda file: Both(serve, program, file)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("returned", "result"), [(None, 0), (0, 0), (7, 7), (0x7FFFFFFF,) * 2])
def test_plain_numbers(both: Make, later: bool, returned: int | None, result: int) -> None:
    class Plain(File):
        @ioctl(0x703)
        def slave(self, argument: int) -> int | None:
            assert argument == 0x1234567890
            return returned

        @ioctl(IO("E", 1))
        def reset(self) -> int | None:
            return returned

    class Later(File):
        @ioctl(0x703)
        async def slave(self, argument: int) -> int | None:
            assert argument == 0x1234567890
            return returned

        @ioctl(IO("E", 1))
        async def reset(self) -> int | None:
            return returned

    do = both(Later if later else Plain)
    assert do(0x703, argument=0x1234567890) == (result, b"")
    assert do(IO("E", 1)) == (result, b"")


def test_a_plain_number_whose_command_tells_of_more(both: Make) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 1, 8))
        def probe(self, argument: int) -> int:
            assert argument == Both_address()
            return 3

    def Both_address() -> int:  # noqa: N802
        return 0x7F00_0000_0000 + ARGUMENT

    assert both(Probe)(IOWR("E", 1, 8), b"12345678") == (3, b"12345678")


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (c_size_t, (1 << 64) - 1),
        (c_uint8, 255),
        (c_int16, -32768),
        (c_int, 0),
        (c_bool, True),
        (c_double, 0.1),
        (c_char, b"x"),
    ],
)
def test_simple_types(
    both: Make, type_: "type[ctypes._SimpleCData[Any]]", value: bytes | float
) -> None:
    class Probe(File):
        kept = value

        @ioctl(IOR("E", 0, type_), type_)
        def get(self) -> bytes | float:
            return self.kept

        @ioctl(IOW("E", 1, type_), type_)
        def set(self, value: bytes | float) -> int:
            assert value == self.kept
            return 9

        @ioctl(IOWR("E", 2, type_), type_)
        async def exchange(self, value: bytes | float) -> bytes | float:
            assert value == type_().value
            return self.kept

    do = both(Probe)
    size = ctypes.sizeof(type_)
    assert do(IOR("E", 0, type_)) == (0, bytes(type_(value)))
    assert do(IOW("E", 1, type_), bytes(type_(value))) == (9, bytes(type_(value)))
    assert do(IOWR("E", 2, type_), bytes(size)) == (0, bytes(type_(value)))


@pytest.mark.parametrize("later", [False, True])
def test_structures(both: Make, later: bool) -> None:
    class Plain(File):
        @ioctl(IOR("E", 0, Pair), Pair)
        def get(self, pair: Pair) -> None:
            assert (pair.a, pair.b) == (0, 0)
            pair.b = 5

        @ioctl(IOW("E", 1, Pair), Pair)
        def set(self, pair: Pair) -> int:
            assert (pair.a, pair.b) == (1, 2)
            pair.a = 77  # not for the program
            return 4

        @ioctl(IOWR("E", 2, Pair), Pair)
        def swap(self, pair: Pair) -> int:
            pair.a, pair.b = pair.b, pair.a
            return 6

        @ioctl(IOWR("E", 3, Pair), Pair)
        def replace(self, pair: Pair) -> Pair:
            return Pair(pair.a + 1, pair.b + 1)

    plain = Plain()

    class Later(File):
        @ioctl(IOR("E", 0, Pair), Pair)
        async def get(self, pair: Pair) -> Pair | int | None:
            return plain.get(pair)

        @ioctl(IOW("E", 1, Pair), Pair)
        async def set(self, pair: Pair) -> Pair | int | None:
            return plain.set(pair)

        @ioctl(IOWR("E", 2, Pair), Pair)
        async def swap(self, pair: Pair) -> Pair | int | None:
            return plain.swap(pair)

        @ioctl(IOWR("E", 3, Pair), Pair)
        async def replace(self, pair: Pair) -> Pair | int | None:
            return plain.replace(pair)

    do = both(Later if later else Plain)
    content = bytes(Pair(1, 2))
    assert do(IOR("E", 0, Pair), content) == (0, bytes(Pair(0, 5)))
    assert do(IOW("E", 1, Pair), content) == (4, content)
    assert do(IOWR("E", 2, Pair), content) == (6, bytes(Pair(2, 1)))
    assert do(IOWR("E", 3, Pair), content) == (0, bytes(Pair(2, 3)))


def test_unions_and_arrays(both: Make) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 0, Either), Either)
        def union(self, either: Either) -> None:
            either.raw[0] += 1

        @ioctl(IOWR("E", 1, c_uint8 * 3), c_uint8 * 3)
        def array(self, array: ctypes.Array[c_uint8]) -> int:
            array[:] = array[::-1]  # type: ignore[assignment]  # it takes what it gives
            return len(array)

    do = both(Probe)
    assert do(IOWR("E", 0, Either), b"\1\2\3\4") == (0, b"\2\2\3\4")
    assert do(IOWR("E", 1, 3), b"\1\2\3") == (3, b"\3\2\1")


@pytest.mark.parametrize("later", [False, True])
def test_bytes_of_any_size(both: Make, later: bool) -> None:
    class Plain(File):
        @ioctl(IOR("E", 6, 0), bytes)
        def name(self) -> bytes:
            return b"keyboard\0"

        @ioctl(IOW("E", 7, 0), bytes)
        def keep(self, data: bytes) -> int:
            assert type(data) is bytes
            return len(data) + 100

        @ioctl(IOWR("E", 8, 99), bytes)
        def feature(self, data: bytes) -> bytes | int | None:
            return cast(bytes, memoryview(data[:1] + b"feature"))  # as any buffer may be

        @ioctl(IOR("E", 6, 4))
        def exact(self) -> int:
            return 44

    plain = Plain()

    class Later(File):
        @ioctl(IOR("E", 6, 0), bytes)
        async def name(self) -> bytes:
            return plain.name()

        @ioctl(IOW("E", 7, 0), bytes)
        async def keep(self, data: bytes) -> bytes | int | None:
            return plain.keep(data)

        @ioctl(IOWR("E", 8, 99), bytes)
        async def feature(self, data: bytes) -> bytes | int | None:
            return plain.feature(data)

        @ioctl(IOR("E", 6, 4))
        async def exact(self) -> int:
            return 44

    do = both(Later if later else Plain)
    assert do(IOR("E", 6, 256), b"." * 256) == (9, b"keyboard\0" + b"." * 247)
    assert do(IOR("E", 6, 3)) == (3, b"key")
    assert do(IOR("E", 6, 0)) == (0, b"")
    assert do(IOR("E", 6, 4), b"....") == (44, b"....")
    assert do(IOW("E", 7, 5), b"12345") == (105, b"12345")
    assert do(IOW("E", 7, 0)) == (100, b"")
    assert do(IOWR("E", 8, 6), b"123456") == (6, b"1featu")
    assert do.fails(IOWR("E", 6, 4)) == errno.ENOTTY


def test_commands_without_handler(both: Make) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def one(self) -> int:
            return 1

    do = both(Probe)
    assert do.fails(IO("E", 2)) == errno.ENOTTY
    assert do.fails(IOR("E", 1, 4), out_size=4) == errno.ENOTTY


def test_unknown_ioctl_gets_all_others(both: Make) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def one(self) -> int:
            return 1

        def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
            number = memory.read_struct(argument, c_uint32).value
            memory.write_struct(argument, c_uint32(number + 1))
            return command & 0xFF

    do = both(Probe)
    assert do(IO("E", 1)) == (1, b"")
    assert do(IOWR("E", 2, 4), bytes(c_uint32(6))) == (2, bytes(c_uint32(7)))
    # The same for a command that tells nothing; only on an unrestricted device.
    assert do(IO("E", 3), bytes(c_uint32(6)), size=4) == (3, bytes(c_uint32(7)))


def test_direction_may_be_said_for_commands_that_do_not_tell(
    serve: Serve, program: type[Program]
) -> None:
    class Probe(File):
        @ioctl(0x4600, Pair, direction="r")
        def get(self, pair: Pair) -> None:
            pair.a = 1

        @ioctl(0x4601, Pair, direction="w")
        def set(self, pair: Pair) -> int:
            return int(pair.a)

        @ioctl(0x4602, Pair, direction="rw")
        def swap(self, pair: Pair) -> None:
            pair.a, pair.b = pair.b, pair.a

        @ioctl(IOR("E", 1, 8), c_uint32, direction="rw")
        def lies(self, number: int) -> int:
            return number + 1

    peer = serve(Probe)
    fh = peer.open()
    caller = program(peer)
    address = caller.put(0, bytes(Pair(7, 8)))
    assert caller.ioctl(fh, 0x4601, address) == 7
    assert caller.ioctl(fh, 0x4602, address) == 0
    assert caller.get(address, 8) == bytes(Pair(8, 7))
    assert caller.ioctl(fh, IOR("E", 1, 8), address) == 0
    assert caller.get(address, 8) == bytes(Pair(9, 7))
    assert caller.ioctl(fh, 0x4600, address) == 0
    assert caller.get(address, 8) == bytes(Pair(1, 0))


def test_an_error_leaves_the_memory_alone(serve: Serve, program: type[Program]) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 1, Pair), Pair)
        def fail(self, pair: Pair, memory: Memory) -> None:
            pair.a = 77
            memory.write(program.BASE + 100, b"written")
            raise OSError(errno.ERANGE, "too much")

    peer = serve(Probe)
    fh = peer.open()
    caller = program(peer)
    before = bytes(caller.memory)
    with pytest.raises(Exception, match="ERANGE"):
        caller.ioctl(fh, IOWR("E", 1, Pair), program.BASE)
    assert caller.memory == before


def test_an_error_that_comes_with_the_structure(both: Make) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 1, Pair), Pair)
        def now(self, pair: Pair) -> int:
            pair.b = 1
            return -errno.ERANGE

        @ioctl(IOR("E", 2, Pair), Pair)
        async def later(self, pair: Pair) -> int:
            pair.b = 1
            return -511

    do = both(Probe)
    assert do(IOWR("E", 1, Pair), bytes(Pair(5, 6))) == (-errno.ERANGE, bytes(Pair(5, 1)))
    assert do(IOR("E", 2, Pair)) == (-511, bytes(Pair(0, 1)))


@pytest.mark.parametrize("offered", [False, True])
def test_o_nonblock_comes_with_ioctls(serve: Serve, offered: bool) -> None:
    seen = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self) -> None:
            seen.append(self.nonblocking)

    peer = serve(Probe)
    peer.init(flags=CUSE_UNRESTRICTED_IOCTL | offered * RECUSE_FILE_FLAGS)
    fh = peer.open(flags=os.O_RDWR)
    for flags in (0, RECUSE_IOCTL_NONBLOCK, 0):
        peer.call(FUSE_IOCTL, fuse_ioctl_in(fh=fh, flags=flags, cmd=IO("E", 1)))
    assert seen == [False, offered, False]


@pytest.mark.parametrize(
    ("command", "returned", "line"),
    [
        (0, "text", "returned 'text', not a result"),
        (0, 1.0, "returned 1.0, not a result"),
        (0, -1, "returned -1, not a result from 0 to 2147483647"),
        (0, 1 << 31, "returned 2147483648, not a result from 0 to 2147483647"),
        (1, None, "returned None, not a value of c_ubyte"),
        (1, "1", "returned '1', not a value of c_ubyte"),
        (1, 256, "returned 256, not a value of c_ubyte"),
        (1, -1, "returned -1, not a value of c_ubyte"),
        (2, b"12345678", "returned b'12345678', not a result"),
        (2, -512, "returned -512, not a result from 0 to 2147483647"),
        (3, None, "returned None, not bytes"),
        (3, 5, "returned 5, not bytes"),
        (3, "text", "returned 'text', not bytes"),
        (4, -1, "returned -1, not a result from 0 to 2147483647"),
    ],
)
def test_results_that_are_none(
    serve: Serve, told: Told, command: int, returned: Any, line: str
) -> None:
    class Probe(File):
        @ioctl(IO("E", 0))
        def value(self) -> Any:
            return returned

        @ioctl(IOR("E", 1, 1), c_uint8)
        def simple(self) -> Any:
            return returned

        @ioctl(IOWR("E", 2, 8), Pair)
        def pair(self, pair: Pair) -> Any:
            return returned

        @ioctl(IOR("E", 3, 0), bytes)
        def bytes(self) -> Any:
            return returned

        def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> Any:
            return returned

    number = [IO("E", 0), IOR("E", 1, 1), IOWR("E", 2, 8), IOR("E", 3, 9), IO("E", 4)][command]
    name = ["value", "simple", "pair", "bytes", "unknown_ioctl"][command]
    peer = serve(Probe)
    size = number >> 16 & 0x3FFF
    in_size = size if number >> 30 & 1 else 0
    body = fuse_ioctl_in(fh=peer.open(), cmd=number, in_size=in_size, out_size=size)
    assert peer.fails(FUSE_IOCTL, body, bytes(in_size)) == errno.EIO
    assert told.line() == f"Probe.{name} {line}: EIO for the program"


def test_a_structure_returned_where_the_program_does_not_read(serve: Serve, told: Told) -> None:
    class Probe(File):
        @ioctl(IOW("E", 1, Pair), Pair)
        def set(self, pair: Pair) -> Pair:
            return pair

    peer = serve(Probe)
    body = fuse_ioctl_in(fh=peer.open(), cmd=IOW("E", 1, Pair), in_size=8)
    assert peer.fails(FUSE_IOCTL, body, bytes(8)) == errno.EIO
    assert "Probe.set returned" in (line := told.line())
    assert "does not read it" in line


def test_one_handler_of_several_commands(both: Make) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        @ioctl(IO("E", 2))
        def either(self, argument: int) -> int:
            return 5

    do = both(Probe)
    assert do(IO("E", 1))[0] == do(IO("E", 2))[0] == 5
    assert Probe().either(0) == 5


def test_subclasses_inherit_and_override(both: Make) -> None:
    class Base(File):
        @ioctl(IO("E", 1))
        def one(self) -> int:
            return 1

        @ioctl(IO("E", 2))
        def two(self) -> int:
            return 2

        @ioctl(IO("E", 3))
        def three(self) -> int:
            return 3

    class Derived(Base):
        def one(self) -> int:
            return 11

        @ioctl(IO("E", 22))
        def two(self) -> int:
            return 22

    do = both(Derived)
    assert [do(IO("E", n))[0] for n in (1, 3, 22)] == [11, 3, 22]
    assert do.fails(IO("E", 2)) == errno.ENOTTY
    assert both(Base)(IO("E", 2))[0] == 2


def test_an_override_without_decorator_is_checked_too() -> None:
    class Base(File):
        @ioctl(IOW("E", 1, c_int), c_int)
        def one(self, value: int) -> int:
            return 1

    with pytest.raises(TypeError, match=r"Derived.one"):

        class Derived(Base):
            def one(self) -> int:  # type: ignore[override]  # that is what is wrong
                return 1


def test_optional_and_keyword_parameters(serve: Serve, program: type[Program]) -> None:
    class Probe(File):
        @ioctl(IOW("E", 1, c_int), c_int)  # type: ignore[arg-type]  # by keyword
        def one(self, value: int, more: int = 5, *, memory: Memory) -> int:
            assert isinstance(memory, Memory)
            return value + more

        @ioctl(IO("E", 2))  # type: ignore[arg-type]  # by keyword
        def two(self, *, memory: Memory) -> int:
            assert isinstance(memory, Memory)
            return 6

        @ioctl(IO("E", 3))
        def three(self, argument: int = 9) -> int:
            return argument

        @ioctl(0)
        @ioctl(0xFFFFFFFF)
        def ends(self) -> int:
            return 8

    peer = serve(Probe)
    fh = peer.open()
    caller = program(peer)
    assert caller.ioctl(fh, IOW("E", 1, c_int), caller.put(0, bytes(c_int(10)))) == 15
    assert caller.ioctl(fh, IO("E", 2)) == 6
    assert caller.ioctl(fh, IO("E", 3), 7) == 7
    assert caller.ioctl(fh, 0) == caller.ioctl(fh, 0xFFFFFFFF) == 8
