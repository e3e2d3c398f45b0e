"""Counting a trace."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.trace.summary import Summary, TraceError, percentile

EXCHANGE = {
    "event": "exchange",
    "device": "echo",
    "name": "READ",
    "in_size": 0,
    "out_size": 16,
    "answered": True,
    "errno": None,
    "latency_us": 2.5,
}


def line(**changes: object) -> bytes:
    return json.dumps(EXCHANGE | changes).encode() + b"\n"


def summary(*lines: bytes) -> str:
    found = Summary()
    found.read(lines)
    return found.table()


def test_a_table() -> None:
    lines = [line(latency_us=float(us)) for us in range(1, 101)]
    lines += [line(name="WRITE", in_size=3, out_size=0, errno="EIO", latency_us=1234.56)]
    lines += [line(name="WRITE", in_size=3, out_size=0, errno="ENOSPC")] * 2
    lines += [line(device="tty", name="POLL", out_size=0, answered=False, latency_us=None)]
    lines += [b'{"event": "interrupt"}', b'{"event": "dropped", "count": 7}']
    lines += [b'{"event": "refused"}', b'{"event": "of a later version"}']
    rows = [one.split() for one in summary(*lines).splitlines()]
    assert rows == [
        ["device", "operation", "count", "errors", "in", "out", "min", "median", "p90", "p99"]
        + ["max"],
        ["echo", "READ", "100", "0", "0", "1600", "1.0", "50.0", "90.0", "99.0", "100.0"],
        ["echo", "WRITE", "3", "3", "9", "0", "2.5", "2.5", "1234.6", "1234.6", "1234.6"],
        ["tty", "POLL", "1", "0", "0", "0", "-", "-", "-", "-", "-"],
        [],
        ["device", "operation", "error", "count"],
        ["echo", "WRITE", "ENOSPC", "2"],
        ["echo", "WRITE", "EIO", "1"],
        [],
        ["never", "answered:", "1"],
        ["interrupts:", "1"],
        ["refused", "messages:", "1"],
        ["missing", "messages,", "as", "they", "were", "too", "many", "at", "once:", "7"],
    ]


def test_columns_are_aligned() -> None:
    table = summary(line(), line(device="a-long-name", name="IOCTL", latency_us=100000))
    head, first, second = table.splitlines()
    assert (
        first
        == "a-long-name  IOCTL          1       0   0   16  100000.0  100000.0  100000.0"
        + ("  100000.0  100000.0")
    )
    assert len(head) == len(first) == len(second)


def test_an_empty_trace_has_a_heading_only() -> None:
    assert summary().splitlines() == [summary().rstrip("\n")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"   0.002500 echo cat[1] READ() = 0\n", "not JSON; is it from --trace-format jsonl?"),
        (b"\xff\n", "not JSON; is it from --trace-format jsonl?"),
        (b"[" * 100_000, "not JSON; is it from --trace-format jsonl?"),
        (b"\n", "not JSON; is it from --trace-format jsonl?"),
        (b"[1]\n", "not a JSON object"),
        (b"{}\n", "event is missing"),
        (line(device=3), "device is 3"),
        (line(latency_us="x"), 'latency_us is "x"'),
        (line(latency_us=-1), "latency_us is -1"),
        (line(latency_us=float("nan")), "latency_us is nan"),
        (line(in_size=True), "in_size is true"),
        (line(out_size=-1), "out_size is -1"),
        (line(errno=5), "errno is 5"),
        (b'{"event": "dropped"}', "count is missing"),
    ],
)
def test_a_malformed_line_is_named(bad: bytes, message: str) -> None:
    with pytest.raises(TraceError) as raised:
        summary(line(), bad)
    assert str(raised.value) == f"line 2: {message}"


VALUES: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([])
)


@given(st.dictionaries(st.sampled_from([*EXCHANGE, "count"]), VALUES))
def test_whatever_a_line_has_it_is_counted_or_refused(changes: dict[str, object]) -> None:
    found = Summary()
    try:
        found.add(line(**changes))
    except TraceError:
        assert found.rows == {}
    assert found.table().isascii()


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_among_the_values(values: list[float]) -> None:
    values.sort()
    assert percentile(values, 50) == statistics.median_low(values)
    assert percentile(values, 100) == values[-1]
    for percent in (90, 99):
        found = percentile(values, percent)
        assert sum(value <= found for value in values) * 100 >= percent * len(values)
        assert sum(value < found for value in values) * 100 < percent * len(values)
