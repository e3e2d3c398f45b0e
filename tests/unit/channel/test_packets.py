"""Messages over a socket, whole, in order, without waiting; and what is no message."""

import array
import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.channel import packets as module
from recuse.channel.packets import BACKLOG_MAX, MESSAGE_MAX, PART, Packets, is_trusted, peer_uid
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor

from .support import WAIT_S, ends, message


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.fixture
def pair() -> Iterator[list[Packets]]:
    """Two ends that belong together."""
    made = [Packets(sock) for sock in socket_pair()]
    yield made
    for end in made:
        end.close()


@pytest.fixture
def raw() -> Iterator[tuple[Packets, socket.socket]]:
    """An end, and the other one as a plain socket."""
    sock, ours = socket_pair()
    end = Packets(ours)
    yield end, sock
    end.close()
    sock.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets with as little room as an unprivileged user may get."""
    monkeypatch.setattr(module, "_BUFFER_SIZE", 212992)
    monkeypatch.setattr(module, "_roomy", lambda sock: sock)


def content(size: int, seed: int = 0) -> bytes:
    return (bytes(range(seed, 251)) * (size // 200 + 1))[:size]


SIZES = [0, 1, PART - 41, PART - 40, PART - 39, 2 * PART - 40, 2 * PART - 39, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", ["small", "large"])
def test_messages_of_any_size(request: pytest.FixtureRequest, room: str, size: int) -> None:
    if room == "small":
        request.getfixturevalue("small")
    one, other = request.getfixturevalue("pair")
    sent = message(2, content(size))
    one.send(sent)
    assert other.receive() == sent
    other.send(sent)
    assert one.receive() == sent


@pytest.mark.parametrize("size", [0, 131072 + 80])
def test_a_message_is_one_packet(raw: tuple[Packets, socket.socket], size: int) -> None:
    end, sock = raw
    end.send(message(2, bytes(size)))
    assert len(sock.recv(1 << 20)) == size + 40


def test_a_long_message_is_several(raw: tuple[Packets, socket.socket]) -> None:
    end, sock = raw
    sent = message(2, content(2 * PART))
    end.send(sent)
    received = [sock.recv(1 << 20) for _ in range(3)]
    assert [len(part) for part in received] == [PART, PART, 40]
    assert b"".join(received) == sent


@pytest.mark.usefixtures("small")
def test_sending_does_not_wait_and_keeps_the_order(pair: list[Packets]) -> None:
    one, other = pair
    sent = [message(number, content(size)) for number, size in enumerate([100000, 10] * 30)]
    for each in sent:
        one.send(each)
    assert [other.receive() for _ in sent] == sent


@pytest.mark.usefixtures("small")
def test_many_senders_do_not_mix_their_parts(pair: list[Packets]) -> None:
    one, other = pair
    sent = [
        [message(20 * sender + number, content(size, sender)) for number, size in enumerate(SIZES)]
        for sender in range(4)
    ]

    def send(each: list[bytes]) -> None:
        for packet in each:
            one.send(packet)

    threads = [threading.Thread(target=send, args=(each,)) for each in sent]
    for thread in threads:
        thread.start()
    received = [other.receive() for _ in range(4 * len(SIZES))]
    for thread in threads:
        thread.join()
    for each in sent:
        assert [m for m in received if m in each] == each
    assert len(received) == sum(map(len, sent))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * PART), min_size=1, max_size=8))
def test_any_sequence(sizes: list[int]) -> None:
    one, other = (Packets(sock) for sock in socket_pair())
    try:
        sent = [message(number, content(size)) for number, size in enumerate(sizes)]
        for each in sent:
            one.send(each)
        assert [other.receive() for _ in sent] == sent
    finally:
        one.close()
        other.close()


def long(length: int) -> bytes:
    """The first part of a message that says it has so many bytes."""
    return length.to_bytes(4, "little") + bytes(PART - 4)


MALFORMED = {
    "short": [b"abc"],
    "shorter than a header": [(15).to_bytes(4, "little") + bytes(11)],
    "a length that is too small": [b"\x10" + bytes(40)],
    "a length that is too large": [b"\x50" + bytes(40)],
    "a large length in a small packet": [(PART + 40).to_bytes(4, "little") + bytes(40)],
    "a packet that is too large": [message(2, bytes(PART - 39))],
    "a message that is too large": [long(MESSAGE_MAX + 1)],
    "no end of a message": [long(0xFFFFFFFF)],
    "a second part that is too short": [long(PART + 100), bytes(99)],
    "a second part that is too long": [long(PART + 100), bytes(101)],
    "a second part that is a message": [long(PART + 100), message(2)],
    "a third part that is too long": [long(2 * PART + 1), bytes(PART), b"12"],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_message_ends_the_connection(
    raw: tuple[Packets, socket.socket], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    end, sock = raw
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for packet in MALFORMED[what]:
        sock.send(packet)
    assert end.receive() is None
    assert "the other end of a socket sent" in caplog.text
    assert ends(sock)
    with pytest.raises(OSError, match="has ended") as raised:
        end.send(message(2))
    assert raised.value.errno == errno.ENODEV


PACKETS = st.binary(max_size=100).filter(lambda packet: packet != b"\0")
"""Any but the one that stands before a descriptor."""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(PACKETS, st.just(message(2))), max_size=5))
def test_any_bytes(sent: list[bytes]) -> None:
    sock, ours = socket_pair()
    end = Packets(ours)
    logging.getLogger("recuse.channel").disabled = True
    try:
        expected = []
        for packet in sent:
            sock.send(packet)
            expected.append(packet)
        sock.shutdown(socket.SHUT_WR)
        received = list(iter(end.receive, None))
        assert received == expected[: len(received)]
        assert all(int.from_bytes(m[:4], "little") == len(m) >= 16 for m in received)
        if len(received) < len(sent):
            assert sent[len(received)] != message(2)
    finally:
        logging.getLogger("recuse.channel").disabled = False
        end.close()
        sock.close()


@pytest.mark.parametrize("parts", [0, 1])
def test_the_other_end_goes(
    raw: tuple[Packets, socket.socket], caplog: pytest.LogCaptureFixture, parts: int
) -> None:
    end, sock = raw
    for _ in range(parts):
        sock.send(long(2 * PART))
    sock.close()
    assert end.receive() is None
    assert end.receive() is None
    assert caplog.text == ""


def test_what_was_sent_before_the_end_arrives(raw: tuple[Packets, socket.socket]) -> None:
    """Also if the other end has not read all: then Linux reports a reset first."""
    end, sock = raw
    end.send(message(2, b"not read"))
    sock.send(message(4))
    sock.close()
    assert end.receive() == message(4)
    assert end.receive() is None


def test_sending_to_nobody(raw: tuple[Packets, socket.socket]) -> None:
    end, sock = raw
    sock.close()
    for _ in range(2):
        with pytest.raises(OSError, match="has ended") as raised:
            end.send(message(2))
        assert raised.value.errno == errno.ENODEV


def receive_in_thread(end: Packets) -> tuple[threading.Thread, list[bytes | None]]:
    received: list[bytes | None] = []
    thread = threading.Thread(target=lambda: received.append(end.receive()))
    thread.start()
    return thread, received


def test_shutdown_ends_receivers(pair: list[Packets]) -> None:
    one, other = pair
    receivers = [receive_in_thread(one) for _ in range(3)]
    one.shutdown()
    for thread, received in receivers:
        thread.join(WAIT_S)
        assert received == [None]
    assert other.receive() is None


def test_what_comes_after_shutdown_is_not_received(pair: list[Packets]) -> None:
    one, other = pair
    other.send(message(2))
    one.shutdown()
    assert one.receive() is None


def test_close_while_a_receiver_waits(pair: list[Packets]) -> None:
    one, _ = pair
    thread, received = receive_in_thread(one)
    one.close()
    thread.join(WAIT_S)
    assert received == [None]
    one.close()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["shutdown", "close"])
def test_an_end_while_the_writer_waits(pair: list[Packets], how: str) -> None:
    one, other = pair
    for number in range(10):
        one.send(message(number, bytes(PART)))
    getattr(one, how)()
    one.close()
    assert [t.name for t in threading.enumerate() if t.name == "recuse-packets"] == []
    while other.receive() is not None:
        pass


@pytest.mark.usefixtures("small")
def test_the_other_end_goes_while_the_writer_waits(pair: list[Packets]) -> None:
    one, other = pair
    for number in range(10):
        one.send(message(number, bytes(PART)))
    other.close()
    assert one.receive() is None
    assert one._writer is not None
    one._writer.join(WAIT_S)
    assert not one._writer.is_alive()


@pytest.mark.usefixtures("small")
def test_who_does_not_read_is_not_served(pair: list[Packets]) -> None:
    """Else a peer that asks without end and takes no answers would fill the memory."""
    one, other = pair
    while one._backlog_bytes <= BACKLOG_MAX + (1 << 20):  # more than the socket takes meanwhile
        one.send(message(2, bytes(1 << 20)))
    other.send(message(4))
    thread, received = receive_in_thread(one)
    thread.join(0.05)  # not to be waited for, but a wrong answer would come in that time
    assert received == []
    while not received:
        assert len(other.receive() or b"") == (1 << 20) + 40
        thread.join(0.001)
    assert received == [message(4)]


@pytest.mark.usefixtures("small")
def test_who_waits_for_a_backlog_learns_of_the_end(pair: list[Packets]) -> None:
    one, _ = pair
    while one._backlog_bytes <= BACKLOG_MAX + (1 << 20):  # more than the socket takes meanwhile
        one.send(message(2, bytes(1 << 20)))
    thread, received = receive_in_thread(one)
    one.shutdown()
    thread.join(WAIT_S)
    assert received == [None]


def test_descriptors_are_dropped(raw: tuple[Packets, socket.socket]) -> None:
    """The fixture that finds descriptors left behind sees to the rest."""
    end, sock = raw
    rights = array.array("i", [sock.fileno()] * 3)
    sock.sendmsg([message(2)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    assert end.receive() == message(2)


def test_a_timeout(raw: tuple[Packets, socket.socket]) -> None:
    end, _ = raw
    end.set_timeout(0.001)
    assert end.receive() is None
    assert end.timed_out


def test_peers() -> None:
    one, other = socket_pair()
    with one, other:
        assert peer_uid(one) == os.getuid()
    assert is_trusted(0)
    assert is_trusted(os.geteuid())
    assert not is_trusted(os.geteuid() + 1)


def memfd(content: bytes) -> OwnedDescriptor:
    descriptor = OwnedDescriptor(os.memfd_create("test"))
    os.write(descriptor.fileno(), content)
    return descriptor


def test_a_message_brings_its_descriptor(pair: list[Packets]) -> None:
    left, right = pair
    left.send(message(2, bytes(20)))
    left.send(BytesWithDescriptor(message(2, bytes(30)), memfd(b"content")))
    left.send(message(2, bytes(PART + 5)))
    left.send(message(2, bytes(40)))
    assert type(right.receive()) is bytes
    received = right.receive()
    assert isinstance(received, BytesWithDescriptor)
    assert received == message(2, bytes(30))
    number = received.descriptor.fileno()
    assert os.pread(number, 10, 0) == b"content"
    assert not os.get_inheritable(number)
    assert [len(right.receive() or b"") for _ in range(2)] == [PART + 5 + 40, 40 + 40]


def test_a_descriptor_is_closed_when_it_is_sent_and_taken(pair: list[Packets]) -> None:
    left, right = pair
    memory = memfd(b"content")
    watched = memory.fileno()
    left.send(BytesWithDescriptor(message(2, bytes(30)), memory))
    del memory
    received = right.receive()
    # One after the other: the writer lets go after it has sent.
    left.send(message(2, bytes(PART + 5)))
    right.receive()
    assert isinstance(received, BytesWithDescriptor)
    inode = os.fstat(received.descriptor.fileno()).st_ino
    del received
    assert watched not in descriptors_of(inode)
    assert not descriptors_of(inode)


def descriptors_of(inode: int) -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino == inode:
                found.add(int(name))
    return found


@pytest.mark.parametrize("content", [b"x" * 40, (17).to_bytes(4, "little") + bytes(12), b""])
def test_what_comes_with_a_descriptor_has_to_be_a_message(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, contextlib.closing(Packets(ours)) as receiver:
        theirs.send(b"\0")
        socket.send_fds(theirs, [content], [0])
        assert receiver.receive() is None
        assert receiver.receive() is None


def test_a_message_whose_descriptor_was_left_out_comes_without(pair: list[Packets]) -> None:
    left, right = pair
    left._sock.send(b"\0")
    left._sock.send(message(2, bytes(30)))
    assert type(right.receive()) is bytes
