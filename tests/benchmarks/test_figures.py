"""Statistics, table, JSON and goals, from figures made up here."""

import json
import os

import pytest

from benchmarks import goals, report, trees
from benchmarks.camera import Camera, reported
from benchmarks.extras import Memory, Startup, flatness
from benchmarks.goals import Goal
from benchmarks.peers import (
    FILE,
    FILE_SANDBOX,
    LIBFUSE_MULTI,
    LIBFUSE_SINGLE,
    MEMORY,
    MOUNT,
    MOUNT_RINGS,
    RECUSE_PLAIN,
    UMOCKDEV,
)
from benchmarks.processes import UnavailableError
from benchmarks.runner import Run, busy_seconds, parse
from benchmarks.samples import FREE, PINNED, Key, Results, Summary, summarise
from benchmarks.workloads import COPY_1M, IOCTL_16, OPEN_CLOSE, READ_1M, READ_16

MIB = 1 << 20


def results(*figures: tuple[str, str, str, float]) -> Results:
    found = Results()
    for placement, peer, work, nanoseconds in figures:
        found.add(Key(placement, peer, work), nanoseconds)
    return found


def judged(found: Results, name: str) -> Goal:
    (goal,) = [goal for goal in goals.evaluate(found, None, None) if goal.name == name]
    return goal


def test_summary_is_median_least_and_greatest() -> None:
    assert summarise([5.0, 1.0, 9.0, 2.0, 3.0]) == Summary(3.0, 1.0, 9.0)
    assert summarise([4.0, 1.0]) == Summary(2.5, 1.0, 4.0)


def test_no_samples_no_summary() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


def test_ratio_is_of_medians() -> None:
    found = results(
        (FREE, "a", "w", 30.0),
        (FREE, "a", "w", 10.0),
        (FREE, "a", "w", 11.0),
        (FREE, "b", "w", 22.0),
        (PINNED, "b", "w", 1.0),
    )
    assert found.ratio(FREE, "a", "w", "b") == 0.5
    assert found.ratio(PINNED, "a", "w", "b") is None
    assert found.ratio(FREE, "a", "w", "c") is None


def test_client_lines_become_nanoseconds_per_operation() -> None:
    assert parse("read:16 1000 8000000\nopenclose 4 10\n") == {"read:16": 8000.0, "openclose": 2.5}
    with pytest.raises(ValueError, match="not enough values"):
        parse("read:16 1000\n")


def test_busy_time_leaves_out_idling_and_waiting_for_disks() -> None:
    stat = "cpu  10 20 30 4000 5000 1 2 3 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert busy_seconds(stat) == (10 + 20 + 30 + 1 + 2 + 3) / os.sysconf("SC_CLK_TCK")


def test_flatness_compares_the_second_tenth_with_the_last() -> None:
    samples = [1.0] * 10 + [5.0] * 10 + [9.0] * 70 + [6.0] * 10
    assert flatness(7, samples) == Memory(operations=7, early=5.0, late=6.0, highest=9.0)


def test_flatness_needs_samples() -> None:
    with pytest.raises(ValueError, match="only 9 samples"):
        flatness(7, [1.0] * 9)


@pytest.mark.parametrize(
    ("placement", "base", "limit"),
    [(FREE, LIBFUSE_MULTI, 0.5), (PINNED, LIBFUSE_SINGLE, 1.5)],
)
def test_goal_for_small_reads(placement: str, base: str, limit: float) -> None:
    for figure, met in ((limit * 100, True), (limit * 100 + 1, False)):
        found = results(
            (placement, RECUSE_PLAIN, READ_16.name, figure),
            (placement, base, READ_16.name, 100.0),
        )
        assert judged(found, f"read 16 B, {placement}").met is met


def test_goal_for_large_reads_takes_the_faster_libfuse() -> None:
    found = results(
        (FREE, RECUSE_PLAIN, READ_1M.name, 90.0),
        (FREE, LIBFUSE_MULTI, READ_1M.name, 100.0),
        (FREE, LIBFUSE_SINGLE, READ_1M.name, 80.0),
    )
    goal = judged(found, "read 1 MiB, free")
    assert goal.figure == 90 / 80
    assert goal.met is False


def test_goal_for_ioctls_is_a_tenth_of_umockdev() -> None:
    found = results(
        (FREE, RECUSE_PLAIN, IOCTL_16.name, 12.0),
        (FREE, UMOCKDEV, IOCTL_16.name, 130.0),
        (PINNED, RECUSE_PLAIN, IOCTL_16.name, 12.0),
        (PINNED, UMOCKDEV, IOCTL_16.name, 110.0),
    )
    assert judged(found, "ioctl 16 B, free").met is True
    assert judged(found, "ioctl 16 B, pinned").met is False


def test_goal_for_ordinary_files() -> None:
    found = results(
        (FREE, FILE_SANDBOX, OPEN_CLOSE.name, 13.0),
        (FREE, FILE, OPEN_CLOSE.name, 1.6),
    )
    goal = judged(found, "open+close of an ordinary file in the sandbox, free")
    assert goal.met is False
    assert str(goal) == (
        "MISSED        open+close of an ordinary file in the sandbox, free: 8.12 x outside "
        "(goal: at most 8)"
    )


def test_goal_for_mapped_memory() -> None:
    found = results(
        (FREE, RECUSE_PLAIN, COPY_1M.name, 20.0),
        (FREE, MEMORY, COPY_1M.name, 19.0),
    )
    goal = judged(found, "copy 1 MiB out of a mapping, free")
    assert goal.met is False
    assert goal.figure == pytest.approx(1.0526, abs=0.001)


def test_goals_for_mounts_take_the_faster_transport() -> None:
    found = results(
        (FREE, MOUNT, READ_1M.name, 130.0),
        (FREE, MOUNT_RINGS, READ_1M.name, 110.0),
        (FREE, LIBFUSE_MULTI, READ_1M.name, 100.0),
    )
    goal = judged(found, "read 1 MiB of a mount, free")
    assert goal.figure == pytest.approx(1.1)
    assert goal.limit == 1.1


def test_goals_for_startup_and_memory() -> None:
    startup = Startup(Summary(0.001, 0, 0), Summary(0.08, 0, 0), Summary(0.012, 0, 0))
    memory = Memory(10**6, early=30.0 * MIB, late=32.0 * MIB, highest=32.0 * MIB)
    *_, start, another, grown = goals.evaluate(Results(), startup, memory)
    assert start.figure == pytest.approx(0.079)
    assert start.met is True
    assert another.figure == pytest.approx(0.011)
    assert another.met is False
    assert grown.figure == 2.0
    assert grown.met is False


def test_goal_that_was_not_measured_is_neither_met_nor_missed() -> None:
    everything = goals.evaluate(Results(), None, None)
    assert len(everything) == 51
    assert {goal.met for goal in everything} == {None}
    assert all(str(goal).startswith("NOT MEASURED") for goal in everything)


def test_goals_of_trees_are_ratios_between_peers() -> None:
    seconds = {
        trees.FIND: {trees.MIRROR: 3.0, trees.PASSTHROUGH_LL: 2.0},
        trees.LIST: {trees.MIRROR: 3.0},
        trees.UNTAR: {trees.MEMORY: 1.0, trees.PYFUSE3_MEMORY: 4.0, trees.PASSTHROUGH_LL: 1.0},
        trees.FIRST: {trees.MEMORY: 0.1},
    }
    found = trees.Trees(seconds, {trees.MEMORY: 450.0}, {"pyfuse3": "no pyfuse3"})
    judged = goals.evaluate(Results(), None, None, found)
    names = (trees.FIND, trees.LIST, trees.UNTAR, trees.FIRST)
    figures = [(goal.figure, goal.met) for goal in judged if goal.name in names]
    assert figures == [(1.5, False), (None, None), (1.0, True), (0.25, True), (0.1, True)]
    text = report.trees_text(found)
    assert "recuse, mirror: 3000 ms" in text
    assert "recuse, memory: 450 bytes" in text
    assert "no pyfuse3" in text


def test_table_has_both_placements_and_ratios_on_a_line() -> None:
    found = results(
        (FREE, RECUSE_PLAIN, READ_16.name, 10_000.0),
        (FREE, LIBFUSE_MULTI, READ_16.name, 40_000.0),
        (PINNED, RECUSE_PLAIN, READ_16.name, 9_000.0),
        (PINNED, RECUSE_PLAIN, READ_16.name, 8_000.0),
        (PINNED, RECUSE_PLAIN, READ_16.name, 8_500.0),
    )
    lines = report.table(found).splitlines()
    assert lines[2] == "read 16 B"
    # Median, least, greatest, ratio to each of libfuse's servers; a dash where there is none.
    assert lines[3].removeprefix("  recuse plain").split() == (
        ["10.00", "10.00", "10.00", "0.25", "-", "|", "8.50", "8.00", "9.00", "-", "-"]
    )
    assert lines[4].removeprefix("  libfuse multi").split() == (
        ["40.00", "40.00", "40.00", "1.00", "-", "|", "-", "-", "-", "-", "-"]
    )
    assert len({line.index("|") for line in (*lines[:2], *lines[3:5])}) == 1


@pytest.mark.parametrize(("others", "warned"), [(0.02, False), (0.2, True)])
def test_other_work_is_told_and_warned_of(others: float, warned: bool) -> None:
    text = report.extras_text(Run(others=others), None, None)
    assert f"kept busy meanwhile: {others:.2f}" in text
    assert ("measure again" in text) is warned


def test_document_holds_samples_ratios_and_what_is_missing() -> None:
    found = results(
        (FREE, RECUSE_PLAIN, READ_16.name, 10.0),
        (FREE, LIBFUSE_SINGLE, READ_16.name, 40.0),
    )
    outcome = Run(found, {"pyfuse3": "no pyfuse3"}, others=0.5)
    everything = goals.evaluate(found, None, None)
    document = report.document({"quick": True}, outcome, None, None, everything)
    assert json.loads(json.dumps(document)) == document
    assert document["others_cpus"] == 0.5
    assert document["missing"] == {"pyfuse3": "no pyfuse3"}
    assert document["results"][0] == {
        "placement": FREE,
        "peer": RECUSE_PLAIN,
        "work": READ_16.name,
        "median_ns": 10.0,
        "min_ns": 10.0,
        "max_ns": 10.0,
        "samples_ns": [10.0],
        "ratio_libfuse_multi": None,
        "ratio_libfuse_single": 0.25,
    }
    assert [goal["met"] for goal in document["goals"]] == [None] * 51


def test_camera() -> None:
    text = "<<<<<<< 29.99 fps, dropped buffers: 1\n<<<<<< 30.00 fps\n<<<<<< 31.00 fps\n<"
    assert reported(text) == 30.0
    with pytest.raises(UnavailableError, match="no frame rate"):
        reported("<<<<<")
    found = Camera(reported_fps=30.0, cpus=0.0517, most_fps=1048.2)
    assert report.extras_text(Run(), None, None, found).splitlines()[1:] == [
        "camera, 1920x1080 YUYV: 30.00 of 30 frames a second by v4l2-ctl's report, "
        "0.052 CPUs busy; 1048 at the most"
    ]
