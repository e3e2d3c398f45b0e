"""Messages as bytes in, lines out: each operation that a device's server gets."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.trace import jsonl, text
from recuse.trace.exchanges import LIMIT, Event, Exchange, Exchanges, Kind, Record
from recuse.wire import cuse, fuse
from recuse.wire.declare import Structure
from recuse.wire.message import encode_request
from recuse.wire.optable import OPERATIONS

UNIQUE = 6
START = 1_000_000
SENT = START + 2_500_000
ANSWERED = SENT + 12_345
HEAD = "   0.002500 echo cat[4711] "


def asked(opcode: int, body: Structure | None = None, payload: bytes = b"") -> Record:
    header = fuse.fuse_in_header(opcode=opcode, unique=UNIQUE, pid=4711)
    message = encode_request(header, body, payload)
    return (Kind.REQUEST, 1, SENT, message[:LIMIT], len(message), b"cat")


def answered(body: Structure | None = None, payload: bytes = b"", error: int = 0) -> Record:
    rest = (b"" if body is None else body.pack()) + payload
    message = fuse.fuse_out_header(len=16 + len(rest), error=-error, unique=UNIQUE).pack() + rest
    return (Kind.REPLY, 1, ANSWERED, message[:LIMIT], len(message), b"")


ADDED: Record = (Kind.ADDED, 1, START, b"echo", 254 << 20 | 3, b"")
REMOVED: Record = (Kind.REMOVED, 1, START + 3_000_000_000, b"", 0, b"")


def lines(*records: Record, colour: bool = False) -> list[str]:
    exchanges, formatter = Exchanges(START), text.Formatter(colour=colour)
    items = [item for record in (ADDED, *records) for item in exchanges.feed(record)]
    return [formatter.line(item) for item in (*items, *exchanges.end())][1:]


def objects(*records: Record) -> list[dict[str, object]]:
    exchanges, formatter = Exchanges(START), jsonl.Formatter()
    items = [item for record in (ADDED, *records) for item in exchanges.feed(record)]
    found = [formatter.line(item) for item in (*items, *exchanges.end())]
    assert all(line.count("\n") == 1 and line.endswith("\n") for line in found)
    return [json.loads(line) for line in found][1:]


FLAGS = os.O_RDWR | os.O_NONBLOCK
EVIOCGVERSION = 0x80044501

GOLDEN = {
    "open": (
        asked(fuse.FUSE_OPEN, fuse.fuse_open_in(flags=FLAGS | os.O_SYNC | 0o100000)),
        answered(fuse.fuse_open_out(fh=3, open_flags=fuse.FOPEN_DIRECT_IO)),
        "OPEN(flags=O_RDWR|O_NONBLOCK|O_SYNC) = fh=3, open_flags=FOPEN_DIRECT_IO",
    ),
    "open refused": (
        asked(fuse.FUSE_OPEN, fuse.fuse_open_in(flags=os.O_WRONLY | 1 << 30)),
        answered(error=16),
        "OPEN(flags=O_WRONLY|0x40000000) = EBUSY",
    ),
    "read": (
        asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, offset=7, size=4096, flags=FLAGS)),
        answered(payload=b'one\n"two"\\\0\xff'),
        "READ(fh=3, offset=7, size=4096, flags=O_RDWR|O_NONBLOCK)"
        r' = 12 "one\n\"two\"\\\x00\xff"',
    ),
    "read at the end of the file": (
        asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=16, read_flags=2, lock_owner=0xABC)),
        answered(),
        "READ(fh=3, offset=0, size=16, flags=O_RDONLY) = 0",
    ),
    "read of more than is shown": (
        asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=100)),
        answered(payload=b"R" * 33),
        f'READ(fh=3, offset=0, size=100, flags=O_RDONLY) = 33 "{"R" * 32}"...',
    ),
    "read of more than is recorded": (
        asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=1 << 20)),
        answered(payload=b"R" * (1 << 20)),
        f'READ(fh=3, offset=0, size=1048576, flags=O_RDONLY) = 1048576 "{"R" * 32}"...',
    ),
    "read of more than was asked for": (
        asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=2)),
        answered(payload=b"abc"),
        "READ(fh=3, offset=0, size=2, flags=O_RDONLY)"
        " = EIO: 61 62 63 /* 3 bytes where 2 were asked for */",
    ),
    "write": (
        asked(fuse.FUSE_WRITE, fuse.fuse_write_in(fh=3, size=3, flags=os.O_WRONLY), b"hi\n"),
        answered(fuse.fuse_write_out(size=3)),
        r'WRITE(fh=3, offset=0, size=3, flags=O_WRONLY, "hi\n") = 3',
    ),
    "large write": (
        asked(fuse.FUSE_WRITE, fuse.fuse_write_in(fh=3, size=131072), b"w" * 131072),
        answered(fuse.fuse_write_out(size=4096)),
        f'WRITE(fh=3, offset=0, size=131072, flags=O_RDONLY, "{"w" * 32}"...) = 4096',
    ),
    "release": (
        asked(fuse.FUSE_RELEASE, fuse.fuse_release_in(fh=3, release_flags=fuse.FUSE_RELEASE_FLUSH)),
        answered(),
        "RELEASE(fh=3, flags=O_RDONLY, release_flags=FUSE_RELEASE_FLUSH) = 0",
    ),
    "ioctl": (
        asked(
            fuse.FUSE_IOCTL,
            fuse.fuse_ioctl_in(
                fh=3, flags=fuse.FUSE_IOCTL_UNRESTRICTED, cmd=EVIOCGVERSION, arg=0x7FFC10
            ),
        ),
        answered(fuse.fuse_ioctl_out(result=1), b"\1\0\1\0"),
        "IOCTL(fh=3, flags=FUSE_IOCTL_UNRESTRICTED, cmd=EVIOCGVERSION, arg=0x7ffc10,"
        r' in_size=0, out_size=0) = 1 "\x01\x00\x01\x00"',
    ),
    "ioctl with input": (
        asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(cmd=0xC0107A09, in_size=2, out_size=16), b"ab"),
        answered(error=25),
        "IOCTL(fh=0, flags=0, cmd=_IOWR('z', 0x9, 16), arg=0x0, in_size=2, out_size=16, \"ab\")"
        " = ENOTTY",
    ),
    "ioctl that asks for memory": (
        asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(cmd=0x707, arg=0x1000)),
        answered(
            fuse.fuse_ioctl_out(flags=fuse.FUSE_IOCTL_RETRY, in_iovs=1, out_iovs=2),
            b"".join(
                fuse.fuse_ioctl_iovec(base=base, len=length).pack()
                for base, length in ((0x1000, 16), (0x1000, 4), (0x2000, 1))
            ),
        ),
        "IOCTL(fh=0, flags=0, cmd=I2C_RDWR, arg=0x1000, in_size=0, out_size=0)"
        " = RETRY in=[0x1000:16] out=[0x1000:4 0x2000:1]",
    ),
    "ioctl that makes a file": (
        asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(fh=1, cmd=0xC00C7801, arg=0x1000)),
        answered(
            fuse.fuse_ioctl_out(flags=cuse.RECUSE_IOCTL_FILE),
            cuse.recuse_ioctl_file(5, 0o2000002, 8).pack() + b"abcdefgh\0\0\0\0",
        ),
        "IOCTL(fh=1, flags=0, cmd=_IOWR('x', 0x1, 12), arg=0x1000, in_size=0, out_size=0)"
        r' = 0 file={fh=5, flags=O_RDWR|O_CLOEXEC, offset=8} "abcdefgh\x00\x00\x00\x00"',
    ),
    "ioctl that says that it makes one": (
        asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(cmd=1)),
        answered(fuse.fuse_ioctl_out(flags=cuse.RECUSE_IOCTL_FILE), b"ab"),
        "IOCTL(fh=0, flags=0, cmd=_IO(0x0, 0x1), arg=0x0, in_size=0, out_size=0)"
        " = EIO: 61 62 /* says that there is a file, and has none */",
    ),
    "poll": (
        asked(fuse.FUSE_POLL, fuse.fuse_poll_in(fh=3, kh=9, flags=1, events=0x41)),
        answered(fuse.fuse_poll_out(revents=0x1)),
        "POLL(fh=3, kh=0x9, flags=FUSE_POLL_SCHEDULE_NOTIFY, events=POLLIN|POLLRDNORM) = POLLIN",
    ),
    "init": (
        asked(cuse.CUSE_INIT, cuse.cuse_init_in(major=7, minor=45, flags=0x30001)),
        answered(
            cuse.cuse_init_out(major=7, minor=39, flags=1, max_read=4096, max_write=8192),
            b"DEVNAME=echo\0",
        ),
        "CUSE_INIT(major=7, minor=45, flags=CUSE_UNRESTRICTED_IOCTL|RECUSE_SEEKABLE"
        "|RECUSE_NODE_INFO) = major=7, minor=39, flags=CUSE_UNRESTRICTED_IOCTL, max_read=4096,"
        r' max_write=8192, dev_major=0, dev_minor=0 "DEVNAME=echo\x00"',
    ),
    "flush": (asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=3)), answered(), "FLUSH(fh=3) = 0"),
    "fsync": (
        asked(fuse.FUSE_FSYNC, fuse.fuse_fsync_in(fh=3, fsync_flags=1)),
        answered(error=22),
        "FSYNC(fh=3, fsync_flags=FUSE_FSYNC_FDATASYNC) = EINVAL",
    ),
    "name": (asked(fuse.FUSE_UNLINK, None, b"a\0"), answered(), r'UNLINK("a\x00") = 0'),
    "an operation that nobody knows": (
        asked(999, None, b"\1\2"),
        answered(payload=b"x"),
        r'OPCODE_999("\x01\x02") = 1 "x"',
    ),
    "an errno without a name": (
        asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=3)),
        answered(error=511),
        "FLUSH(fh=3) = 511",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_an_exchange_as_a_line(case: str) -> None:
    request, reply, expected = GOLDEN[case]
    assert lines(request, reply) == [f"{HEAD}{expected} <12.3 us>\n"]


def test_what_is_not_answered_says_so_at_the_end() -> None:
    request = asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=3))
    assert lines(request) == [f"{HEAD}FLUSH(fh=3) = ? (never answered)\n"]
    assert lines(request, REMOVED) == [
        f"{HEAD}FLUSH(fh=3) = ? (never answered)\n",
        "   3.000000 echo -- device removed\n",
    ]


def test_a_mount_is_no_device() -> None:
    init = asked(fuse.FUSE_INIT, fuse.fuse_init_in(major=7))
    added = (Kind.ADDED, 1, ANSWERED, b"/mnt", 0, b"")
    shown = [" ".join(line.split()[1:]) for line in lines(init, added, REMOVED)]
    assert (shown[0], shown[-1]) == ("/mnt -- mounted", "/mnt -- unmounted")
    found = objects(init, added, REMOVED)
    assert [one["mount"] for one in found if one["event"] != "exchange"] == [True, True]


def test_a_request_without_answer_is_printed_at_once() -> None:
    forget = asked(fuse.FUSE_FORGET, _structure(fuse.FUSE_FORGET))
    assert lines(forget, REMOVED)[0].startswith(f"{HEAD}FORGET(nlookup=0) = (no answer)\n")


def _structure(opcode: int) -> Structure:
    kind = OPERATIONS[opcode].request
    assert kind is not None
    return kind()


def test_events() -> None:
    interrupt = (
        fuse.fuse_in_header(len=48, opcode=fuse.FUSE_INTERRUPT, unique=UNIQUE | 1).pack()
        + fuse.fuse_interrupt_in(unique=UNIQUE).pack()
    )
    wakeup = fuse.fuse_out_header(len=24, error=fuse.FUSE_NOTIFY_POLL).pack() + bytes(8)
    found = lines(
        asked(fuse.FUSE_READ, fuse.fuse_read_in(size=1)),
        (Kind.REQUEST, 1, ANSWERED, interrupt, len(interrupt), b""),
        (Kind.REPLY, 1, ANSWERED, wakeup, len(wakeup), b""),
        (Kind.DROPPED, 0, ANSWERED, b"", 17, b""),
        REMOVED,
    )
    assert [
        line.partition(" ")[2].strip() for line in (" ".join(one.split()) for one in found)
    ] == [
        "echo -- INTERRUPT(unique=6 /* READ */)",
        "echo -- notification POLL",
        "-- 17 messages are missing here: too many at once",
        "echo cat[4711] READ(fh=0, offset=0, size=1, flags=O_RDONLY)"
        " = ? (the answer may be missing)",
        "echo -- device removed",
    ]


def test_a_device_is_known_from_the_answer_to_its_first_request() -> None:
    exchanges = Exchanges()
    assert list(exchanges.feed(asked(cuse.CUSE_INIT, cuse.cuse_init_in()))) == []
    (exchange,) = exchanges.feed(answered(cuse.cuse_init_out(), b"DEVMODE=0666\0DEVNAME= tty9\0"))
    assert exchange.device == "tty9"
    (removed,) = exchanges.feed(REMOVED)
    assert removed.device == "tty9"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"abc", "shorter than a header"),
        (fuse.fuse_out_header(len=17, unique=UNIQUE).pack(), "says that it has 17 bytes"),
        (fuse.fuse_out_header(len=16, unique=8).pack(), "answers 8, which is not waiting"),
        (fuse.fuse_out_header(len=16, unique=UNIQUE, error=5).pack(), "error 5"),
        (fuse.fuse_out_header(len=16, unique=UNIQUE, error=-512).pack(), "error -512"),
        (fuse.fuse_out_header(len=16, error=2).pack(), "notification 2"),
        (
            fuse.fuse_out_header(len=16, unique=UNIQUE | 1, error=-11).pack(),
            "answers INTERRUPT 7 with error -11",
        ),
    ],
)
def test_a_refused_message_ends_no_request(message: bytes, reason: str) -> None:
    bad, good = lines(
        asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=3)),
        (Kind.REPLY, 1, ANSWERED, message, len(message), b""),
        answered(),
    )
    assert f"-- refused message, {reason}: {message.hex(' ')}\n" in bad
    assert "FLUSH(fh=3) = 0 <" in good


def test_a_malformed_answer_is_shown_in_hex() -> None:
    request = asked(fuse.FUSE_WRITE, fuse.fuse_write_in(fh=3, size=1), b"x")
    (line,) = lines(request, answered(payload=b"\1\2\3"))
    assert " = EIO: 01 02 03 /* fuse_write_out takes 8 bytes, but 3 are there */ <" in line
    (found,) = objects(request, answered(payload=b"\1\2\3"))
    assert (found["errno"], found["result"], found["out_data"]) == ("EIO", None, "010203")


def test_names_cannot_touch_the_terminal() -> None:
    kind, number, time, data, size, _ = asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in())
    (line,) = lines((kind, number, time, data, size, b"\x1b[31m evil\xff"), answered())
    assert r" \x1b[31m\x20evil" in line
    assert line[:-1].isprintable()


def test_colours_are_only_round_what_is_dim_or_failed() -> None:
    request = asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=3))
    (line,) = lines(request, answered(error=5), colour=True)
    assert "= \x1b[31mEIO\x1b[0m \x1b[2m<12.3 us>\x1b[0m\n" in line
    assert "\x1b[31m" not in lines(request, answered(), colour=True)[0]


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [(0, "0.0 us"), (999_949, "999.9 us"), (999_950, "1.0 ms"), (2_500_000_000, "2.5 s")],
)
def test_durations(nanoseconds: int, words: str) -> None:
    assert text.duration(nanoseconds) == words


def test_an_exchange_as_an_object() -> None:
    request, reply, _ = GOLDEN["ioctl"]
    assert objects(request, reply) == [
        {
            "event": "exchange",
            "ts": 0.0025,
            "device": "echo",
            "unique": UNIQUE,
            "opcode": 39,
            "name": "IOCTL",
            "pid": 4711,
            "program": "cat",
            "args": {
                "fh": 3,
                "flags": 2,
                "cmd": EVIOCGVERSION,
                "arg": 0x7FFC10,
                "in_size": 0,
                "out_size": 0,
                "command": "EVIOCGVERSION",
            },
            "in_size": 0,
            "in_data": "",
            "answered": True,
            "result": 1,
            "errno": None,
            "reply": {"result": 1, "flags": 0, "in_iovs": 0, "out_iovs": 0},
            "out_size": 4,
            "out_data": "01000100",
            "latency_us": 12.345,
            "problem": None,
        }
    ]


@pytest.mark.parametrize(
    ("case", "result", "error"),
    [
        ("open", 3, None),
        ("open refused", None, "EBUSY"),
        ("read", 12, None),
        ("large write", 4096, None),
        ("poll", 1, None),
        ("release", 0, None),
        ("init", 0, None),
    ],
)
def test_results_of_objects(case: str, result: int | None, error: str | None) -> None:
    request, reply, _ = GOLDEN[case]
    (found,) = objects(request, reply)
    assert (found["result"], found["errno"]) == (result, error)


def test_an_unanswered_object() -> None:
    (found,) = objects(asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in()))
    assert (found["answered"], found["result"], found["errno"], found["latency_us"]) == (
        False,
        None,
        None,
        None,
    )


def test_events_as_objects() -> None:
    short = objects((Kind.REPLY, 1, SENT, b"abc", 3, b""), REMOVED)
    assert short == [
        {
            "event": "refused",
            "ts": 0.0025,
            "device": "echo",
            "reason": "shorter than a header",
            "size": 3,
            "data": "616263",
        },
        {"event": "removed", "ts": 3.0, "device": "echo"},
    ]


HEADERS = st.builds(
    fuse.fuse_in_header,
    opcode=st.sampled_from([*OPERATIONS, 0, 999]),
    unique=st.integers(0, 8),
    pid=st.integers(0, 2**32 - 1),
    total_extlen=st.integers(0, 2),
)
CLAIMS = st.none() | st.integers(0, 2**32 - 1)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    header, rest = draw(HEADERS), draw(st.binary(max_size=LIMIT + 100))
    claim = draw(CLAIMS)
    header.len = 40 + len(rest) if claim is None else claim
    return header.pack() + rest


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    rest, claim = draw(st.binary(max_size=LIMIT + 100)), draw(CLAIMS)
    error = draw(st.just(0) | st.integers(-600, 10))
    length = 16 + len(rest) if claim is None else claim
    header = fuse.fuse_out_header(len=length, error=error, unique=draw(st.integers(0, 9)))
    return header.pack() + rest


RECORDS = st.tuples(
    st.just(int(Kind.REQUEST)), requests() | st.binary(max_size=60), st.binary(max_size=16)
) | st.tuples(
    st.sampled_from([int(kind) for kind in Kind if kind != Kind.REQUEST]),
    replies() | st.binary(max_size=60),
    st.just(b""),
)


@given(st.lists(RECORDS, max_size=12))
def test_whatever_passes_is_printed(found: list[tuple[int, bytes, bytes]]) -> None:
    """Each request once, in both forms, and each line is one line."""
    exchanges = Exchanges()
    items: list[Exchange | Event] = []
    for time, (kind, data, program) in enumerate(found):
        cut, size = data[:LIMIT], len(data)
        items += exchanges.feed((kind, 1, time, cut, size, program))
    items += exchanges.end()
    for item in items:
        line = text.Formatter().line(item)
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        assert json.loads(jsonl.Formatter().line(item))["ts"] >= 0


def test_an_answer_whose_request_is_missing_is_left_out() -> None:
    dropped: Record = (Kind.DROPPED, 0, SENT, b"", 2, b"")
    found = objects(dropped, answered(), asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in()), answered())
    assert [one["event"] for one in found] == ["dropped", "exchange"]
    found = objects(asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in()), dropped)
    assert [one.get("answered", 0) for one in found] == [0, None]


JOINED: Record = (Kind.JOINED, 1, START, b"echo", 4710, b"recuse")
LEFT: Record = (Kind.LEFT, 1, START + 3_000_000_000, b"", 0, b"")


def test_connections_that_share_a_device_are_told_apart() -> None:
    read = asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=16))
    other = (read[0], 2, *read[2:])
    records = (JOINED, (JOINED[0], 2, *JOINED[2:]), read, other, answered(), LEFT)
    exchanges, formatter = Exchanges(START), text.Formatter()
    items = [item for record in records for item in exchanges.feed(record)]
    items += exchanges.end()
    assert [formatter.line(item)[12:] for item in items] == [
        "echo#1 -- joined by recuse[4710]\n",
        "echo#2 -- joined by recuse[4710]\n",
        "echo#1 cat[4711] READ(fh=3, offset=0, size=16, flags=O_RDONLY) = 0 <12.3 us>\n",
        "echo#1 -- left\n",
        "echo#2 cat[4711] READ(fh=3, offset=0, size=16, flags=O_RDONLY) = ? (never answered)\n",
    ]
    found = [jsonl.record(item) for item in items]
    assert [(one["device"], one["connection"]) for one in found] == [
        *[("echo", 1), ("echo", 2), ("echo", 1), ("echo", 1), ("echo", 2)]
    ]
    assert found[0] == {
        "event": "joined",
        "ts": 0.0,
        "device": "echo",
        "connection": 1,
        "pid": 4710,
        "program": "recuse",
    }


def test_what_a_connection_that_has_left_was_not_answered() -> None:
    read = asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=3, size=16))
    exchanges = Exchanges(START)
    items = [item for record in (JOINED, read, LEFT) for item in exchanges.feed(record)]
    assert [text.Formatter().line(item)[12:] for item in items[1:]] == [
        "echo#1 cat[4711] READ(fh=3, offset=0, size=16, flags=O_RDONLY) = ? (never answered)\n",
        "echo#1 -- left\n",
    ]
    assert list(exchanges.end()) == []
