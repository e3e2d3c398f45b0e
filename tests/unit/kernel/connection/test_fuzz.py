"""Whatever bytes a server writes: an OSError at the most, and no harm to requests it does not name.

Seeded, with a fixed number of cases.
"""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recuse.kernel.char.cuse import CuseChannel, parse_info
from recuse.kernel.char.devices import DeviceTable, check_name
from recuse.kernel.connection.request import Reply, Request, State
from recuse.wire.fuse import FUSE_IOCTL, fuse_out_header

from ..support import (
    BIG,
    FakeMemory,
    Message,
    Opened,
    connection,
    drain,
    error_of,
    init_reply,
    reply_bytes,
    start,
)

fixed = settings(max_examples=300, deadline=None, derandomize=True)

u32 = st.integers(0, 2**32 - 1)


def mutated(message: bytes) -> st.SearchStrategy[bytes]:
    """The message with some bytes changed, cut off or added."""
    changes = st.lists(st.tuples(st.integers(0, max(len(message) - 1, 0)), st.integers(0, 255)))

    def change(changed: list[tuple[int, int]], cut: int, more: bytes) -> bytes:
        data = bytearray(message)
        for index, value in changed:
            data[index] = value
        return bytes(data[: len(data) - cut]) + more

    return st.builds(change, changes, st.just(0) | st.integers(0, len(message)), st.binary())


replies = (
    st.binary(max_size=64)
    | st.builds(
        lambda error, unique, payload: reply_bytes(unique, payload, error),
        st.integers(-(2**31), 2**31 - 1) | st.integers(-520, 10),
        st.integers(0, 20) | st.integers(0, 2**64 - 1),
        st.binary(max_size=20),
    )
    | mutated(reply_bytes(6, bytes(8)))
)


@fixed
@given(st.lists(replies, max_size=8))
@example([reply_bytes(6, bytes(8))])
def test_any_bytes_harm_at_most_the_request_that_they_name(messages: list[bytes]) -> None:
    made = connection()
    requests = [Request(1, b"", 8, 16) for _ in range(4)]
    got: list[list[Reply]] = [[] for _ in requests]
    for request, replies in zip(requests, got, strict=True):
        made.submit(request, replies.append)
    for _ in range(3):
        made.read(BIG)
    for message in messages:
        before = [len(replies) for replies in got]
        error = error_of(made.write, message)
        assert error in (0, errno.EINVAL, errno.ENOENT)
        after = [len(replies) for replies in got]
        changed = [index for index, count in enumerate(before) if count != after[index]]
        if changed:
            (index,) = changed
            header = fuse_out_header.unpack(message)
            assert header.unique == requests[index].unique
            assert header.len == len(message)
            reply = got[index][0]
            assert not error or reply.error == -errno.EIO
            assert bool(reply.error) or 8 <= len(reply.payload) <= 16
    assert requests[3].state is State.PENDING
    made.abort()
    assert [len(replies) for replies in got] == [1] * 4


@fixed
@given(mutated(init_reply()) | st.binary(max_size=200), st.integers(-40, 0))
@example(init_reply(), 0)
def test_any_reply_to_init_makes_a_device_or_refuses(payload: bytes, error: int) -> None:
    table = DeviceTable()
    channel = CuseChannel(table)
    (init,) = drain(channel.connection)
    message = reply_bytes(Message(init).unique, payload, error)
    refused = error_of(channel.connection.write, message)
    assert refused in (0, errno.EINVAL)
    assert not (refused and channel.device)
    if channel.device is None:
        assert channel.error is not None
        assert channel.connection.ended
    else:
        assert list(table) == [channel.device]
        assert channel.device.max_read >= 4096
    channel.close()
    assert len(table) == 0


@fixed
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from([b"DEVNAME", b"DEVMODE", b"=", b"\0", b" ", b"a", b"7", b"/", b"."])
    ).map(b"".join),
    st.booleans(),
)
def test_any_info_is_parsed_or_einval(info: bytes, node_info: bool) -> None:
    error = error_of(parse_info, info, node_info)
    assert error in (0, errno.EINVAL)
    if not error:
        device = parse_info(info, node_info)
        check_name(device.name)
        assert info.endswith(b"\0")
        assert 0 <= device.mode <= 0o777


ioctl_answers = st.builds(
    lambda result, flags, sources, targets, payload: b"".join(
        [
            result.to_bytes(4, "little"),
            flags.to_bytes(4, "little"),
            sources.to_bytes(4, "little"),
            targets.to_bytes(4, "little"),
            payload,
        ]
    ),
    u32,
    st.sampled_from([0, 1, 4, 5]),
    st.integers(0, 3) | u32,
    st.integers(0, 3) | u32,
    st.binary(max_size=80)
    | st.lists(
        st.tuples(st.integers(0, 2**16) | st.integers(0, 2**64 - 1), st.integers(0, 9)),
        max_size=4,
    ).map(
        lambda areas: b"".join(
            base.to_bytes(8, "little") + length.to_bytes(8, "little") for base, length in areas
        )
    ),
)


@fixed
@given(
    st.lists(ioctl_answers, min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
    u32,
    st.integers(0, 2**64 - 1),
)
def test_any_answers_to_ioctl_end_it(
    answers: list[bytes], unrestricted: bool, compat: bool, command: int, argument: int
) -> None:
    memory = FakeMemory(8, holes=(3,))
    opened = Opened(memory=memory, unrestricted=unrestricted)
    operation = opened.file.ioctl(opened.caller, command, argument, compat=compat)
    outcome = start(opened.connection, operation)
    for answer in answers:
        if not outcome.pending:
            break
        message = opened.asked[-1]
        assert message.opcode == FUSE_IOCTL
        assert len(message.payload) == message.body.in_size
        error = error_of(opened.server.reply, message, answer)
        assert error in (0, errno.EINVAL)
        assert not error or outcome.errno == errno.EIO
    if outcome.pending:
        opened.connection.abort()
    result, failure = outcome.calls[0]
    assert isinstance(failure, OSError) or isinstance(result, int)
    assert len(outcome.calls) == 1
    assert len(memory.data) == 8 * 4096


@pytest.mark.parametrize("size", [16, 17, 1000])
def test_bytes_of_one_value(size: int) -> None:
    for value in range(256):
        made = connection()
        assert error_of(made.write, bytes([value]) * size) == errno.EINVAL
