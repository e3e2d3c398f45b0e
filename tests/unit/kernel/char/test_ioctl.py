"""ioctl: the area that a command encodes, and the rounds of unrestricted devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from recuse.kernel.char.ioctl import MAX_ROUNDS
from recuse.wire import ioctl
from recuse.wire.cuse import RECUSE_IOCTL_NONBLOCK
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_IOCTL_32BIT,
    FUSE_IOCTL_COMPAT,
    FUSE_IOCTL_MAX_IOV,
    FUSE_IOCTL_RETRY,
    FUSE_IOCTL_UNRESTRICTED,
    fuse_in_header,
    fuse_ioctl_in,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
)

from ..support import PAGE, Answer, FakeMemory, Message, Opened, error_of

Area = tuple[int, int]
LIMIT = 32 * PAGE


def done(result: int = 0, data: bytes = b"") -> bytes:
    return fuse_ioctl_out(result=result).pack() + data


def retry(sources: list[Area], targets: list[Area]) -> bytes:
    out = fuse_ioctl_out(flags=FUSE_IOCTL_RETRY, in_iovs=len(sources), out_iovs=len(targets))
    areas = (fuse_ioctl_iovec(base, length) for base, length in (*sources, *targets))
    return out.pack() + b"".join(area.pack() for area in areas)


def failed(opened: Opened, command: int = 1, argument: int = 0, compat: bool = False) -> int:
    return error_of(opened.ioctl, command, argument, compat)


def answers(*in_turn: Answer, memory: FakeMemory | None = None) -> Opened:
    """An unrestricted device that gives these answers, the last one again and again."""
    left = list(in_turn)
    return Opened(lambda message: left.pop(0) if len(left) > 1 else left[0], memory=memory)


# Restricted


@pytest.mark.parametrize(
    ("command", "in_size", "out_size"),
    [
        (ioctl.IO("x", 1), 0, 0),
        (ioctl.IO("x", 1) | 8 << 16, 0, 0),
        (ioctl.IOW("x", 1, 8), 8, 0),
        (ioctl.IOR("x", 1, 8), 0, 8),
        (ioctl.IOWR("x", 1, 8), 8, 8),
        (ioctl.IOWR("x", 1, 0), 0, 0),
        (ioctl.IOWR("x", 1, 16383), 16383, 16383),
    ],
)
def test_a_restricted_device_gets_what_the_command_encodes(
    command: int, in_size: int, out_size: int
) -> None:
    opened = Opened(lambda message: done(3, b"\xaa" * message.body.out_size), unrestricted=False)
    opened.memory.data[100 : 100 + 16383] = b"x" * 16383
    assert opened.ioctl(command, 100) == 3
    (message,) = opened.asked
    assert message.header == fuse_in_header(
        len=72 + in_size, opcode=FUSE_IOCTL, unique=6, pid=11, uid=22, gid=33
    )
    assert message.body == fuse_ioctl_in(7, 0, command, 100, in_size, out_size)
    assert message.payload == b"x" * in_size
    expected = b"\xaa" * out_size + b"x" * (16383 - out_size)
    assert opened.memory.data[100 : 100 + 16383] == expected


def test_a_command_and_an_argument_may_have_all_their_bits() -> None:
    opened = Opened(lambda message: done())
    opened.ioctl(0xFFFFFFFF, (1 << 64) - 1)
    assert (opened.asked[0].body.cmd, opened.asked[0].body.arg) == (0xFFFFFFFF, (1 << 64) - 1)


def test_a_restricted_device_may_not_retry() -> None:
    opened = Opened(lambda message: retry([(0, 4)], []), unrestricted=False)
    assert failed(opened) == errno.EIO
    assert len(opened.asked) == 1


def test_output_may_be_shorter_than_its_area() -> None:
    opened = Opened(lambda message: done(0, b"abc"), unrestricted=False)
    opened.memory.data[:8] = b"x" * 8
    assert opened.ioctl(ioctl.IOR("x", 1, 8), 0) == 0
    assert opened.memory.data[:8] == b"abcxxxxx"


@pytest.mark.parametrize("size", [9, 4096])
def test_output_longer_than_its_area_is_eio(size: int) -> None:
    opened = Opened(lambda message: done(0, bytes(size)), unrestricted=False)
    opened.memory.data[:16] = b"x" * 16
    assert failed(opened, ioctl.IOR("x", 1, 8)) == errno.EIO
    assert opened.memory.data[:16] == b"x" * 16


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (ioctl.IOR("x", 1, 8), done(0, bytes(4097))),  # room for a page at least
        (ioctl.IOR("x", 1, 8000), done(0, bytes(8001))),
        (ioctl.IOR("x", 1, 8), done()[:15]),
        (ioctl.IOR("x", 1, 8), b""),
    ],
)
def test_an_answer_of_an_impossible_size_is_refused_to_the_server(
    command: int, answer: bytes
) -> None:
    opened = Opened(unrestricted=False)
    errors: list[int] = []

    def handler(message: Message) -> None:
        errors.append(error_of(opened.server.reply, message, answer))

    opened.handler = handler
    assert failed(opened, command) == errno.EIO
    assert errors == [errno.EINVAL]


@pytest.mark.parametrize("argument", [2 * PAGE, 2 * PAGE - 4, 1 << 63, (1 << 64) - 4])
def test_input_that_cannot_be_read_is_efault_and_no_request(argument: int) -> None:
    opened = Opened(unrestricted=False, memory=FakeMemory(4, holes=(2,)))
    assert failed(opened, ioctl.IOW("x", 1, 8), argument) == errno.EFAULT
    assert opened.asked == []


@pytest.mark.parametrize("argument", [2 * PAGE, 2 * PAGE - 4, 3 * PAGE, 1 << 63, (1 << 64) - 4])
def test_output_that_cannot_be_stored_is_efault(argument: int) -> None:
    opened = Opened(
        lambda message: done(0, bytes(8)),
        unrestricted=False,
        memory=FakeMemory(4, holes=(2,), readonly=(3,)),
    )
    assert failed(opened, ioctl.IOR("x", 1, 8), argument) == errno.EFAULT
    assert len(opened.asked) == 1


# Results


@pytest.mark.parametrize("result", [0, 1, 2**31 - 1, -(2**31), -4096])
def test_results_that_are_no_error(result: int) -> None:
    assert answers(done(result)).ioctl(1) == result


@pytest.mark.parametrize(
    ("result", "number"),
    [
        (-1, errno.EPERM),
        (-errno.ENOTTY, errno.ENOTTY),
        (-errno.ENOSYS, errno.ENOTTY),
        (-4095, 4095),
        (-512, 512),
        (-516, 516),
        (-515, errno.ENOTTY),
    ],
)
def test_results_that_are_errors(result: int, number: int) -> None:
    assert failed(answers(done(result))) == number


@pytest.mark.parametrize(
    ("error", "number"), [(-errno.EPERM, errno.EPERM), (-errno.ENOSYS, errno.ENOTTY)]
)
def test_errors_of_the_reply(error: int, number: int) -> None:
    assert failed(answers(error)) == number


def test_output_is_stored_with_a_negative_result_too() -> None:
    opened = Opened(lambda message: done(-errno.EBUSY, b"12345678"), unrestricted=False)
    assert failed(opened, ioctl.IOR("x", 1, 8), 100) == errno.EBUSY
    assert opened.memory.data[100:108] == b"12345678"


# Unrestricted


def test_the_first_round_carries_nothing() -> None:
    opened = answers(done())
    opened.ioctl(ioctl.IOWR("x", 1, 8), 100)
    (message,) = opened.asked
    assert message.body == fuse_ioctl_in(
        7, FUSE_IOCTL_UNRESTRICTED, ioctl.IOWR("x", 1, 8), 100, 0, 0
    )
    assert message.payload == b""


def test_rounds_gather_input_and_scatter_output() -> None:
    opened = answers(
        retry([(100, 4)], []),
        retry([(100, 4), (2 * PAGE - 2, 4)], [(300, 2), (400, 0), (500, 3)]),
        done(9, b"ABCDE"),
    )
    opened.memory.data[100:104] = b"abcd"
    opened.memory.data[2 * PAGE - 2 : 2 * PAGE + 2] = b"wxyz"
    assert opened.ioctl(5, 100) == 9
    assert [(m.body.in_size, m.body.out_size, m.payload) for m in opened.asked] == [
        (0, 0, b""),
        (4, 0, b"abcd"),
        (8, 5, b"abcdwxyz"),
    ]
    assert {(m.body.cmd, m.body.arg) for m in opened.asked} == {(5, 100)}
    assert opened.memory.data[299:303] == b"\0AB\0"
    assert opened.memory.data[499:504] == b"\0CDE\0"


def test_output_ends_where_the_answer_does() -> None:
    opened = answers(retry([], [(300, 4), (400, 4)]), done(0, b"ABCDE"))
    opened.memory.data[400:404] = b"xxxx"
    assert opened.ioctl(5) == 0
    assert opened.memory.data[300:304] == b"ABCD"
    assert opened.memory.data[400:404] == b"Exxx"


def test_each_round_forgets_the_areas_of_the_one_before() -> None:
    opened = answers(retry([(0, 4)], [(8, 4)]), retry([], []), done(1))
    assert opened.ioctl(5) == 1
    assert [(m.body.in_size, m.body.out_size) for m in opened.asked] == [(0, 0), (4, 4), (0, 0)]


def test_output_without_an_area_is_eio() -> None:
    assert failed(answers(done(0, b"x"))) == errno.EIO
    assert failed(answers(retry([(0, 4)], []), done(0, b"x"))) == errno.EIO


def test_256_areas_are_the_most() -> None:
    half = FUSE_IOCTL_MAX_IOV // 2
    most = [(index, 1) for index in range(FUSE_IOCTL_MAX_IOV)]
    for sources, targets in ((most, []), ([], most), (most[:half], most[half:])):
        opened = answers(retry(sources, targets), done(0))
        assert opened.ioctl(5) == 0
        assert len(opened.asked) == 2


@pytest.mark.parametrize(
    ("in_iovs", "out_iovs"),
    [(257, 0), (0, 257), (128, 129), (2**32 - 1, 1), (2**32 - 1, 2**32 - 1)],
)
def test_more_areas_are_enomem_whatever_follows(in_iovs: int, out_iovs: int) -> None:
    out = fuse_ioctl_out(flags=FUSE_IOCTL_RETRY, in_iovs=in_iovs, out_iovs=out_iovs)
    assert failed(answers(out.pack())) == errno.ENOMEM


@pytest.mark.parametrize(
    ("cut", "extra"), [(1, b""), (16, b""), (0, b"x"), (0, bytes(16)), (32, b"")]
)
def test_areas_of_another_number_than_said_are_eio(cut: int, extra: bytes) -> None:
    answer = retry([(0, 4)], [(8, 4)])
    opened = answers(answer[: len(answer) - cut] + extra)
    assert failed(opened) == errno.EIO
    assert len(opened.asked) == 1


def in_direction(incoming: bool, areas: list[Area]) -> bytes:
    return retry(areas, []) if incoming else retry([], areas)


@pytest.mark.parametrize("incoming", [True, False])
@pytest.mark.parametrize(
    "areas", [[(0, LIMIT + 1)], [(0, LIMIT), (0, 1)], [(0, 1), (0, 2**64 - 1)], [(0, 2**64 - 1)]]
)
def test_more_than_32_pages_are_enomem(incoming: bool, areas: list[Area]) -> None:
    opened = answers(in_direction(incoming, areas), memory=FakeMemory(64))
    assert failed(opened) == errno.ENOMEM
    assert opened.memory.touched == []


@pytest.mark.parametrize("incoming", [True, False])
def test_32_pages_in_each_direction_pass(incoming: bool) -> None:
    areas = [(0, LIMIT // 2), (PAGE, LIMIT // 2)]
    opened = answers(retry(areas, areas), done(0, b"x" * LIMIT))
    assert opened.ioctl(5) == 0
    assert len(opened.asked[1].payload) == LIMIT


@pytest.mark.parametrize("incoming", [True, False])
@pytest.mark.parametrize(
    "areas",
    [
        [(2 * PAGE, 4)],
        [(2 * PAGE - 2, 4)],
        [(0, 4), (2 * PAGE, 4)],
        [(2**64 - 2, 4)],
        [(2**64 - 1, 1)],
    ],
)
def test_areas_that_are_not_there_are_efault(incoming: bool, areas: list[Area]) -> None:
    size = 0 if incoming else sum(length for _, length in areas)
    opened = answers(
        in_direction(incoming, areas), done(0, bytes(size)), memory=FakeMemory(4, holes=(2,))
    )
    assert failed(opened) == errno.EFAULT
    assert len(opened.asked) == (1 if incoming else 2)


def test_areas_of_no_bytes_may_be_anywhere() -> None:
    opened = answers(retry([(2**64 - 1, 0)], [(1 << 63, 0)]), done(4))
    assert opened.ioctl(5) == 4
    assert opened.memory.touched == []


def test_output_areas_are_not_touched_without_output() -> None:
    opened = answers(retry([], [(2**63, 4)]), done(4))
    assert opened.ioctl(5) == 4


def test_a_server_that_never_stops_is_refused() -> None:
    opened = answers(retry([(0, 4)], []))
    assert failed(opened) == errno.EIO
    assert len(opened.asked) == MAX_ROUNDS == 512


def test_one_more_area_each_round_is_not_too_many() -> None:
    def handler(message: Message) -> bytes:
        if message.body.in_size == FUSE_IOCTL_MAX_IOV:
            return done(6)
        return retry([(index, 1) for index in range(message.body.in_size + 1)], [])

    assert Opened(handler).ioctl(5) == 6


def test_an_error_in_a_later_round() -> None:
    assert failed(answers(retry([(0, 4)], []), -errno.EPERM)) == errno.EPERM


def test_abort_between_rounds() -> None:
    opened = Opened()

    def handler(message: Message) -> Answer:
        if len(opened.asked) == 1:
            return retry([(0, 4)], [])
        opened.connection.abort()
        return None

    opened.handler = handler
    assert failed(opened) == errno.ECONNABORTED


# O_NONBLOCK


@pytest.mark.parametrize("wanted", [False, True])
def test_servers_that_want_to_hear_of_o_nonblock(wanted: bool) -> None:
    opened = Opened(lambda message: done(), file_flags=wanted)
    for flags in (os.O_RDWR, os.O_RDWR | os.O_NONBLOCK, os.O_RDWR):
        opened.file.flags = flags
        opened.ioctl(5, 6)
    told = RECUSE_IOCTL_NONBLOCK if wanted else 0
    assert [message.body.flags for message in opened.asked] == [
        FUSE_IOCTL_UNRESTRICTED,
        FUSE_IOCTL_UNRESTRICTED | told,
        FUSE_IOCTL_UNRESTRICTED,
    ]


# 32-bit callers


def test_a_compat_call_says_so() -> None:
    opened = answers(done())
    opened.ioctl(5, 6, compat=True)
    assert opened.asked[0].body.flags == (
        FUSE_IOCTL_UNRESTRICTED | FUSE_IOCTL_COMPAT | FUSE_IOCTL_32BIT
    )
    opened = Opened(lambda message: done(), unrestricted=False)
    opened.ioctl(5, 6, compat=True)
    assert opened.asked[0].body.flags == FUSE_IOCTL_COMPAT | FUSE_IOCTL_32BIT


@pytest.mark.parametrize("make", [lambda area: retry([area], []), lambda area: retry([], [area])])
def test_a_compat_call_has_areas_of_32_bits(make: Callable[[Area], bytes]) -> None:
    for area in ((1 << 32, 4), (0, 1 << 32)):
        assert failed(answers(make(area)), compat=True) == errno.EIO
    opened = answers(make((0, 4)), done())
    assert opened.ioctl(5, 0, compat=True) == 0


def test_ioctl_needs_no_access_mode() -> None:
    opened = Opened(lambda message: done(2), flags=os.O_ACCMODE)
    assert opened.ioctl(5) == 2
