"""ioctls of unrestricted devices, in as many rounds as they take."""

import ctypes
import errno
import threading
from ctypes import c_uint16, c_uint32, c_uint64

import pytest

from recuse import IO, IOR, IOW, IOWR, File, Memory, ioctl
from recuse.server.ioctl_retries import MOST_ROUNDS
from recuse.wire.fuse import FUSE_IOCTL_RETRY, fuse_ioctl_iovec

from .conftest import Peer, Program, Serve, Told


class Message(ctypes.Structure):
    """struct i2c_msg."""

    _fields_ = [("addr", c_uint16), ("flags", c_uint16), ("len", c_uint16), ("buf", c_uint64)]


class Transfer(ctypes.Structure):
    """struct i2c_rdwr_ioctl_data."""

    _fields_ = [("msgs", c_uint64), ("nmsgs", c_uint32)]


class Node(ctypes.Structure):
    _fields_ = [("next", c_uint64), ("value", c_uint64)]


RDWR = 0x707
READ = 1


class Bus(File):
    """Follows pointers to pointers, in and out, like an I2C bus."""

    def __init__(self) -> None:
        self.runs = 0
        self.transfers: list[list[bytes]] = []

    @ioctl(RDWR, Transfer, direction="w")
    def transfer(self, transfer: Transfer, memory: Memory) -> int:
        self.runs += 1
        messages = memory.read_array(transfer.msgs, Message, transfer.nmsgs)
        written = [memory.read(m.buf, m.len) for m in messages if not m.flags & READ]
        # Having read all, act: once.
        self.transfers.append(written)
        for number, message in enumerate(messages):
            if message.flags & READ:
                memory.write(message.buf, bytes([0x50 + number]) * message.len)
        return len(messages)

    @ioctl(RDWR + 0x10, Transfer, direction="w")
    async def transfer_later(self, transfer: Transfer, memory: Memory) -> Transfer | int | None:
        return self.transfer(transfer, memory)

    @ioctl(RDWR + 0x20, Transfer, direction="w")
    def transfer_at_once(self, transfer: Transfer, memory: Memory) -> int:
        self.runs += 1
        messages = memory.read_array(transfer.msgs, Message, transfer.nmsgs)
        self.transfers.append(
            memory.read_many([(m.buf, m.len) for m in messages if not m.flags & READ])
        )
        return len(messages)


def bus(serve: Serve) -> tuple[Peer, int, Bus]:
    """Return a peer, the handle of an open bus, and the bus."""
    peer = serve(Bus)
    fh = peer.open()
    file = peer.session._files[fh]
    assert isinstance(file, Bus)
    return peer, fh, file


def put_transfer(program: Program, *parts: bytes | int) -> tuple[int, list[tuple[int, int]]]:
    """Put messages into memory, bytes for those written, sizes for those read."""
    messages = (Message * len(parts))()
    buffers = []
    at = 0x1000
    for message, part in zip(messages, parts, strict=True):
        size = part if isinstance(part, int) else len(part)
        address = program.put(at, b"\xee" * size if isinstance(part, int) else part)
        message.flags, message.len, message.buf = isinstance(part, int), size, address
        buffers.append((address, size))
        at += size + 16
    array = program.put(0x100, bytes(messages))
    return program.put(0x10, bytes(Transfer(array, len(parts)))), buffers


@pytest.mark.parametrize("command", [RDWR, RDWR + 0x10])
def test_nested_pointers_in_and_out(serve: Serve, program: type[Program], command: int) -> None:
    peer, fh, file = bus(serve)
    caller = program(peer)
    argument, buffers = put_transfer(caller, b"\x10\x20", 4, b"third", 2)
    before = bytearray(caller.memory)
    assert caller.ioctl(fh, command, argument) == 4
    # The transfer, the messages, two buffers, then room for the answer.
    assert (caller.rounds, file.runs) == (6, 4)
    assert file.transfers == [[b"\x10\x20", b"third"]]
    for (address, size), byte in zip(buffers[1::2], b"\x51\x53", strict=True):
        at = address - program.BASE
        before[at : at + size] = bytes([byte]) * size
    assert caller.memory == before


def test_read_many_takes_one_round_for_all(serve: Serve, program: type[Program]) -> None:
    peer, fh, file = bus(serve)
    caller = program(peer)
    argument, _ = put_transfer(caller, *[b"%d" % n for n in range(42)])
    assert caller.ioctl(fh, RDWR + 0x20, argument) == 42
    assert caller.rounds == 4
    assert file.transfers == [[b"%d" % n for n in range(42)]]
    argument, _ = put_transfer(caller, *[b"%d" % n for n in range(42)])
    assert caller.ioctl(fh, RDWR, argument) == 42
    assert caller.rounds == 4 + 41


def test_one_ioctl_after_the_other(serve: Serve, program: type[Program]) -> None:
    peer, fh, file = bus(serve)
    caller = program(peer)
    for number in range(5):
        argument, buffers = put_transfer(caller, b"%d" % number, 3)
        assert caller.ioctl(fh, RDWR, argument) == 2
        assert caller.get(*buffers[1]) == b"\x51\x51\x51"
    assert file.transfers == [[b"%d" % number] for number in range(5)]
    assert not peer.session._retries._kept


def test_arguments_that_the_declaration_tells_of_take_two_rounds(
    serve: Serve, program: type[Program]
) -> None:
    runs: list[int | str] = []

    class Probe(File):
        @ioctl(IOWR("E", 1, 4), c_uint32)
        def add(self, value: int) -> int:
            runs.append(value)
            return value + 1

        @ioctl(IOR("E", 2, 4), c_uint32)
        def get(self) -> int:
            runs.append("get")
            return 5

        @ioctl(IOR("E", 3, 0), bytes)
        def name(self) -> bytes:
            runs.append("name")
            return b"abc"

        @ioctl(IO("E", 4))
        def reset(self) -> None:
            runs.append("reset")

    caller = program(serve(Probe))
    fh = caller.peer.open()
    address = caller.put(0, bytes(c_uint32(10)))
    rounds = []
    for command in (IOWR("E", 1, 4), IOR("E", 2, 4), IOR("E", 3, 99), IO("E", 4)):
        caller.ioctl(fh, command, address)
        rounds.append(caller.rounds)
    assert rounds == [2, 2, 2, 1]
    assert runs == [10, "get", "name", "reset"]
    assert caller.get(address, 5) == b"abc\0\0"


def test_a_linked_list(serve: Serve, program: type[Program]) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def add(self, argument: int, memory: Memory) -> int:
            total = 0
            while argument:
                node = memory.read_struct(argument, Node)
                total += node.value
                argument = node.next
            return total

    caller = program(serve(Probe))
    fh = caller.peer.open()
    address = 0
    for number in range(200):
        address = caller.put(0x100 + number * 64, bytes(Node(address, number)))
    assert caller.ioctl(fh, IO("E", 1), address) == sum(range(200))
    assert caller.rounds == 201


def test_a_loop_in_the_programs_memory_is_the_handlers_business(
    serve: Serve, program: type[Program]
) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def add(self, argument: int, memory: Memory) -> int:
            for _ in range(1000):
                argument = memory.read_struct(argument, Node).next
            return 999

    caller = program(serve(Probe))
    first = caller.put(0, bytes(Node(program.BASE + 16, 0)))
    caller.put(16, bytes(Node(first, 0)))
    assert caller.ioctl(caller.peer.open(), IO("E", 1), first) == 999
    assert caller.rounds == 3  # One for each area, and one to add them.


def test_side_effects_after_the_last_read_happen_once(serve: Serve, program: type[Program]) -> None:
    effects: list[str] = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> int:
            effects.append("before")
            memory.read(argument, 4)
            memory.read(argument + 100, 4)
            effects.append("after")
            memory.write(argument, b"done")
            return len(effects)

    caller = program(serve(Probe))
    assert caller.ioctl(caller.peer.open(), IO("E", 1), caller.put(0, b"data")) == 4
    assert effects == ["before", "before", "before", "after"]
    assert caller.memory[:4] == b"done"


def test_a_fresh_ioctl_discards_a_kept_outcome(serve: Serve, program: type[Program]) -> None:
    effects: list[int] = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> int:
            effects.append(len(effects))
            memory.write(argument, bytes([len(effects)]) * 4)
            return len(effects)

    caller = program(serve(Probe))
    fh = caller.peer.open()
    argument = program.BASE
    out, _ = caller.round(fh, IO("E", 1), argument, [], [])
    assert out.flags == FUSE_IOCTL_RETRY
    # The program was interrupted, say; the same thread makes the same ioctl again.
    assert caller.ioctl(fh, IO("E", 1), argument) == 2
    assert caller.memory[:5] == b"\2\2\2\2\0"
    # And the outcome is used up.
    out, _ = caller.round(fh, IO("E", 1), argument, [], [(argument, 4)])
    assert out.flags == FUSE_IOCTL_RETRY
    assert len(effects) == 3


def test_a_fresh_ioctl_that_fails_discards_a_kept_outcome_too(
    serve: Serve, program: type[Program]
) -> None:
    class Probe(File):
        runs = 0

        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> None:
            self.runs += 1
            if self.runs == 2:
                raise OSError(errno.EBUSY, "busy")
            memory.write(argument, bytes([self.runs]) * 4)

    caller = program(serve(Probe))
    fh = caller.peer.open()
    caller.round(fh, IO("E", 1), program.BASE, [], [])
    with pytest.raises(Exception, match="EBUSY"):
        caller.ioctl(fh, IO("E", 1), program.BASE)
    out, _ = caller.round(fh, IO("E", 1), program.BASE, [], [(program.BASE, 4)])
    assert out.flags == FUSE_IOCTL_RETRY


@pytest.mark.parametrize("other", ["command", "argument", "size", "thread", "file"])
def test_a_kept_outcome_is_only_for_the_round_that_it_was_kept_for(
    serve: Serve, program: type[Program], other: str
) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        @ioctl(IO("E", 2))
        def probe(self, argument: int, memory: Memory) -> int:
            memory.write(argument, b"done")
            return 1

    peer = serve(Probe)
    fh, command, argument, size = peer.open(), IO("E", 1), program.BASE, 4
    caller = program(peer)
    caller.round(fh, command, argument, [], [])
    if other == "command":
        command = IO("E", 2)
    elif other == "argument":
        argument += 1
    elif other == "size":
        size = 5
    elif other == "thread":
        caller.pid += 1
    else:
        fh = peer.open()
    out, payload = caller.round(fh, command, argument, [], [(argument, size)])
    assert out.flags == FUSE_IOCTL_RETRY
    assert list(fuse_ioctl_iovec.CODEC.iter_unpack(payload)) == [(argument, 4)]


def test_the_outcome_is_kept_though_the_memory_changes(
    serve: Serve, program: type[Program]
) -> None:
    # Other threads of the program may write to it at any time.
    values = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> None:
            values.append(memory.read_struct(argument, c_uint32).value)
            memory.write(argument + 8, bytes(c_uint32(values[-1])))

    caller = program(serve(Probe))
    argument = caller.put(0, bytes(c_uint32(7)))

    def change(number: int) -> None:
        caller.put(0, bytes(c_uint32(100 + number)))

    caller.after_round = change
    caller.ioctl(caller.peer.open(), IO("E", 1), argument)
    assert values == [101]
    assert caller.memory[8:12] == bytes(c_uint32(101))


def test_pointers_that_change_between_rounds(serve: Serve, program: type[Program]) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> int:
            first = memory.read_struct(argument, c_uint64).value
            return memory.read_struct(first, c_uint32).value

    caller = program(serve(Probe))
    argument = caller.put(0, bytes(c_uint64(program.BASE + 100)))
    caller.put(100, bytes(c_uint32(100)))
    caller.put(200, bytes(c_uint32(200)))

    def change(number: int) -> None:
        if number == 2:
            caller.put(0, bytes(c_uint64(program.BASE + 200)))

    caller.after_round = change
    assert caller.ioctl(caller.peer.open(), IO("E", 1), argument) == 200
    assert caller.rounds == 4


def test_handlers_that_catch_everything_do_no_harm(serve: Serve, program: type[Program]) -> None:
    outcomes = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> int:
            try:
                value = memory.read(argument, 4)
            except BaseException:
                value = b"none"
                memory.write(argument + 50, b"wrong")
            outcomes.append(value)
            memory.write(argument + 4, value)
            return 3

    caller = program(serve(Probe))
    assert caller.ioctl(caller.peer.open(), IO("E", 1), caller.put(0, b"data")) == 3
    assert caller.memory[:100] == b"datadata".ljust(100, b"\0")
    assert outcomes == [b"none", b"data"]


def test_finally_runs_in_each_run(serve: Serve, program: type[Program]) -> None:
    locked = threading.Lock()

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> int:
            with locked:
                return memory.read(argument, 1)[0]

    caller = program(serve(Probe))
    assert caller.ioctl(caller.peer.open(), IO("E", 1), caller.put(0, b"\5")) == 5
    assert not locked.locked()


def test_bad_addresses_are_for_the_program(serve: Serve, program: type[Program]) -> None:
    runs = []

    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> None:
            runs.append("begin")
            memory.read(argument, 4)
            runs.append("end")

        @ioctl(IO("E", 2))
        def far(self, argument: int, memory: Memory) -> None:
            memory.read(argument, 1 << 63)

    caller = program(serve(Probe))
    fh = caller.peer.open()
    with pytest.raises(Exception, match="EFAULT"):
        caller.ioctl(fh, IO("E", 1), 0x10)
    assert runs == ["begin"]
    with pytest.raises(Exception, match="EFAULT"):
        caller.ioctl(fh, IO("E", 2), (1 << 64) - 16)
    # And nothing of it is left.
    assert caller.ioctl(fh, IO("E", 1), caller.put(0, b"data")) == 0


def test_too_many_areas(serve: Serve, program: type[Program], told: Told) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def reads(self, argument: int, memory: Memory) -> None:
            memory.read_many([(argument + 8 * n, 4) for n in range(257)])

        @ioctl(IO("E", 2))
        def writes(self, argument: int, memory: Memory) -> None:
            for n in range(257):
                memory.write(argument + 8 * n, b"data")

        @ioctl(IO("E", 3))
        def joined(self, argument: int, memory: Memory) -> None:
            for n in range(1000):
                memory.write(argument + 4 * n, b"data")

    caller = program(serve(Probe))
    fh = caller.peer.open()
    for command, name in [(IO("E", 1), "reads"), (IO("E", 2), "writes")]:
        with pytest.raises(Exception, match="EIO"):
            caller.ioctl(fh, command, program.BASE)
        assert told.line() == (
            f"Probe.{name} uses 257 areas of the program's memory, more than 256: "
            "EIO for the program"
        )
    caller.ioctl(fh, IO("E", 3), program.BASE)
    assert caller.memory[:4001] == b"data" * 1000 + b"\0"


def test_a_handler_that_never_has_enough(serve: Serve, program: type[Program], told: Told) -> None:
    class Probe(File):
        addresses = iter(range(program.BASE, program.BASE + 10000))

        @ioctl(IO("E", 1))
        def probe(self, memory: Memory) -> None:
            memory.read(next(self.addresses) * 2 - program.BASE, 1)

    caller = program(serve(Probe))
    with pytest.raises(Exception, match="EIO"):
        caller.ioctl(caller.peer.open(), IO("E", 1))
    assert caller.rounds == MOST_ROUNDS
    assert f"after {MOST_ROUNDS} rounds" in told.line()


def test_rounds_are_forgotten_with_the_file(serve: Serve, program: type[Program]) -> None:
    peer, fh, _ = bus(serve)
    other = peer.open()
    caller = program(peer)
    argument, _ = put_transfer(caller, b"x")
    for handle in (fh, other):
        caller.round(handle, RDWR, argument, [(argument, 16)], [])
    assert len(peer.session._retries._kept) == 2
    peer.release(fh)
    assert [key[0] for key in peer.session._retries._kept] == [other]


def test_a_round_that_is_not_remembered_begins_again(serve: Serve, program: type[Program]) -> None:
    peer, fh, file = bus(serve)
    caller = program(peer)
    argument, _ = put_transfer(caller, b"x")
    # As if the session had begun to serve in the middle.
    out, payload = caller.round(fh, RDWR, argument, [(argument, 16), (program.BASE, 7)], [])
    assert out.flags == FUSE_IOCTL_RETRY
    assert list(fuse_ioctl_iovec.CODEC.iter_unpack(payload)) == [(argument, 16)]
    assert file.runs == 0


def test_threads_do_not_disturb_each_other(serve: Serve, program: type[Program]) -> None:
    peer, fh, file = bus(serve)
    callers = [program(peer, pid) for pid in range(100, 104)]
    start = threading.Barrier(len(callers), timeout=20)
    failures = []

    def work(caller: Program) -> None:
        start.wait()
        for number in range(40):
            text = b"%d %d" % (caller.pid, number)
            argument, buffers = put_transfer(caller, text, 5)
            if caller.ioctl(fh, RDWR, argument) != 2 or caller.get(*buffers[1]) != b"QQQQQ":
                failures.append(text)

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = [[b"%d %d" % (caller.pid, n)] for caller in callers for n in range(40)]
    assert sorted(file.transfers) == sorted(expected)


def test_threads_without_number_are_told_apart_by_their_memory(
    serve: Serve, program: type[Program]
) -> None:
    # A program outside of the server's pid namespace has pid 0.  The worst case: the same
    # program, twice, with everything at the same addresses, each round of one between the other's.
    peer, fh, file = bus(serve)
    one, two = program(peer, 0), program(peer, 0)
    put_transfer(two, b"two", 3)
    argument, buffers = put_transfer(one, b"one", 3)
    begun = []

    def between(number: int) -> None:
        if number == 1:
            begun.append(two.round(fh, RDWR, argument, [], []))

    one.after_round = between
    assert one.ioctl(fh, RDWR, argument) == 2

    def let_other(number: int) -> None:
        two.ioctl(fh, RDWR, argument)

    one.after_round = let_other
    assert one.ioctl(fh, RDWR, argument) == 2
    assert {tuple(written) for written in file.transfers} == {(b"one",), (b"two",)}
    assert one.get(*buffers[1]) == two.get(*buffers[1]) == b"QQQ"


def test_threads_without_number_do_not_get_the_outcome_of_others(
    serve: Serve, program: type[Program]
) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def double(self, argument: int, memory: Memory) -> int:
            data = memory.read(argument, 4)
            memory.write(argument + 8, data * 2)
            return data[0]

    peer = serve(Probe)
    fh = peer.open()
    one, two = program(peer, 0), program(peer, 0)
    one.put(0, b"1111")
    two.put(0, b"2222")
    # Both have their outcome kept before either comes for it.
    rounds = {}
    for caller in (one, two):
        inputs: list[tuple[int, int]] = []
        outputs: list[tuple[int, int]] = []
        for _ in range(2):
            out, payload = caller.round(fh, IO("E", 1), program.BASE, inputs, outputs)
            areas = list(fuse_ioctl_iovec.CODEC.iter_unpack(payload))
            inputs, outputs = areas[: out.in_iovs], areas[out.in_iovs :]
        rounds[caller] = inputs, outputs
    for caller, expected in ((two, b"2"), (one, b"1")):
        out, payload = caller.round(fh, IO("E", 1), program.BASE, *rounds[caller])
        assert (out.flags, out.result, payload) == (0, expected[0], expected * 8)


def test_rounds_of_threads_without_number_do_not_pile_up(
    serve: Serve, program: type[Program]
) -> None:
    peer, fh, _ = bus(serve)
    caller = program(peer, 0)
    for number in range(200):
        argument = caller.put(16 * number, bytes(Transfer(program.BASE, 1)))
        caller.round(fh, RDWR, argument, [(argument, 16)], [])
    ((_, kept),) = peer.session._retries._kept.items()
    assert len(kept) == 64


def test_an_argument_and_more(serve: Serve, program: type[Program]) -> None:
    """The argument is in and out, and there is another buffer behind it: as SG_IO has it."""

    class Header(ctypes.Structure):
        _fields_ = [("data", c_uint64), ("size", c_uint32), ("status", c_uint32)]

    class Probe(File):
        @ioctl(0x2285, Header, direction="rw")
        def sg_io(self, header: Header, memory: Memory) -> None:
            memory.write(header.data, b"s" * header.size)
            header.status = 5

        @ioctl(IOW("E", 1, Header), Header)
        async def set(self, header: Header, memory: Memory) -> int:
            return len(memory.read(header.data, header.size))

    peer = serve(Probe)
    fh = peer.open()
    caller = program(peer)
    argument = caller.put(0, bytes(Header(program.BASE + 0x100, 6, 0)))
    assert caller.ioctl(fh, 0x2285, argument) == 0
    assert caller.get(argument, 16) == bytes(Header(program.BASE + 0x100, 6, 5))
    assert caller.memory[0x100:0x107] == b"ssssss\0"
    assert caller.ioctl(fh, IOW("E", 1, Header), argument) == 6


def test_an_error_after_rounds(serve: Serve, program: type[Program]) -> None:
    class Probe(File):
        @ioctl(IO("E", 1))
        def probe(self, argument: int, memory: Memory) -> None:
            memory.write(argument, memory.read(argument + 4, 4))
            raise OSError(errno.ENXIO, "no such chip")

    caller = program(serve(Probe))
    with pytest.raises(Exception, match="ENXIO"):
        caller.ioctl(caller.peer.open(), IO("E", 1), caller.put(0, b"12345678"))
    assert caller.memory[:8] == b"12345678"
