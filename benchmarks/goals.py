"""What recuse set out to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import peers, trees, workloads
from benchmarks.extras import Memory, Startup
from benchmarks.samples import FREE, PINNED, PLACEMENTS, Results
from benchmarks.trees import Trees

# The memory that a million operations may add: what an allocator may round up, not what a leak of
# one object for each operation would come to.
FLAT_MIB = 1.0


@dataclass(frozen=True)
class Goal:
    """`figure` shall be at most `limit`, both in `unit`; None if it could not be measured."""

    name: str
    figure: float | None
    limit: float
    unit: str

    @property
    def met(self) -> bool | None:
        return None if self.figure is None else self.figure <= self.limit

    def __str__(self) -> str:
        goal = f"(goal: at most {self.limit:g})"
        if self.figure is None:
            return f"NOT MEASURED  {self.name}: {self.unit} {goal}"
        word = "met   " if self.met else "MISSED"
        return f"{word}        {self.name}: {self.figure:.2f} {self.unit} {goal}"


def _fastest_libfuse(results: Results, placement: str, work: str) -> float | None:
    """Recuse's median over the better of libfuse's two."""
    bases = (peers.LIBFUSE_MULTI, peers.LIBFUSE_SINGLE)
    ratios = [results.ratio(placement, peers.RECUSE_PLAIN, work, base) for base in bases]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _ratios(results: Results) -> Iterator[Goal]:
    multi, single = "x libfuse's multi-threaded server", "x libfuse's single-threaded server"
    plain, read = peers.RECUSE_PLAIN, workloads.READ_16.name
    yield Goal(f"{read}, {FREE}", results.ratio(FREE, plain, read, peers.LIBFUSE_MULTI), 0.5, multi)
    yield Goal(
        f"{read}, {PINNED}", results.ratio(PINNED, plain, read, peers.LIBFUSE_SINGLE), 1.5, single
    )
    for placement in PLACEMENTS:
        large = workloads.READ_1M.name
        figure = _fastest_libfuse(results, placement, large)
        yield Goal(f"{large}, {placement}", figure, 1.0, "x libfuse's faster server")
    for placement in PLACEMENTS:
        ioctl = workloads.IOCTL_16.name
        figure = results.ratio(placement, plain, ioctl, peers.UMOCKDEV)
        yield Goal(f"{ioctl}, {placement}", figure, 0.1, "x umockdev")
    for placement in PLACEMENTS:
        opening = workloads.OPEN_CLOSE.name
        figure = results.ratio(placement, peers.FILE_SANDBOX, opening, peers.FILE)
        yield Goal(
            f"{opening} of an ordinary file in the sandbox, {placement}",
            figure,
            8.0,
            "x outside",
        )
    for placement in PLACEMENTS:
        copy = workloads.COPY_1M.name
        figure = results.ratio(placement, plain, copy, peers.MEMORY)
        yield Goal(f"{copy}, {placement}", figure, 1.05, "x plain memory")


def _mounts(results: Results) -> Iterator[Goal]:
    def best(placement: str, work: workloads.Work, base: str, *ours: str) -> float | None:
        """The lower one of both transports' medians, over the base's."""
        ratios = [results.ratio(placement, peer, work.name, base) for peer in ours]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    plain = peers.MOUNT, peers.MOUNT_RINGS
    limits = [
        (workloads.READ_16, peers.LIBFUSE_MULTI, 0.7),
        (workloads.READ_16, peers.PYFUSE3, 0.25),
    ]
    limits += [(work, peers.LIBFUSE_MULTI, 1.1) for work in (workloads.READ_1M, workloads.WRITE_1M)]
    for base in (peers.PYFUSE3, peers.MFUSEPY):
        limits += [(work, base, 0.5) for work in workloads.NAMES]
    for work, base, limit in limits:
        figure = best(FREE, work, base, *plain)
        yield Goal(f"{work.name} of a mount, {FREE}", figure, limit, f"x {base}")
    for base in (peers.PYFUSE3, peers.MFUSEPY):
        figure = best(PINNED, workloads.READ_16, base, *plain)
        yield Goal(f"{workloads.READ_16.name} of a mount, {PINNED}", figure, 1.0, f"x {base}")
    asynchronous = peers.MOUNT_ASYNC, peers.MOUNT_ASYNC_RINGS
    figure = best(PINNED, workloads.READ_16, peers.PYFUSE3, *asynchronous)
    yield Goal(
        f"async {workloads.READ_16.name} of a mount, {PINNED}", figure, 0.5, f"x {peers.PYFUSE3}"
    )

    figure = best(PINNED, workloads.READ_16, peers.RAW_LOOP, *plain)
    yield Goal(
        f"{workloads.READ_16.name} of a mount, {PINNED}", figure, 1.15, f"x {peers.RAW_LOOP}"
    )
    for placement in PLACEMENTS:
        through = results.summary(placement, peers.PASSTHROUGH, workloads.READ_16.name)
        below = results.summary(placement, peers.TMPFS, workloads.READ_16.name)
        more = None
        if through and below:
            more = (through.median - 1.05 * below.median) / 1000
        name = f"{workloads.READ_16.name} by passthrough, {placement}"
        yield Goal(name, more, 0.1, "us more than 1.05 x the backing file")
        for work, beside in (
            (workloads.READ_1M, peers.TMPFS),
            (workloads.COPY_1M, peers.MEMORY),
        ):
            figure = results.ratio(placement, peers.PASSTHROUGH, work.name, beside)
            yield Goal(f"{work.name} by passthrough, {placement}", figure, 1.05, f"x {beside}")


def _in_the_sandbox(results: Results) -> Iterator[Goal]:
    """Filesystems without the kernel's FUSE."""
    mount, cached = peers.MOUNT_SANDBOX, peers.CACHED_SANDBOX
    for work in (*workloads.NAMES, workloads.READ_16, workloads.READ_128K):
        figure = results.ratio(FREE, mount, work.name, peers.PYFUSE3)
        yield Goal(f"{work.name} in the sandbox, {FREE}", figure, 1.0, f"x {peers.PYFUSE3}")
    for placement in PLACEMENTS:
        stat = workloads.STAT_CACHED.name
        figure = results.ratio(placement, mount, stat, peers.FILE_SANDBOX)
        yield Goal(f"{stat}, {placement}", figure, 1.2, f"x {peers.FILE_SANDBOX}")
        for work in (workloads.READ_16, workloads.READ_128K):
            figure = results.ratio(placement, cached, work.name, peers.TMPFS_SANDBOX)
            yield Goal(f"cached {work.name}, {placement}", figure, 1.1, f"x {peers.TMPFS_SANDBOX}")
        copy = workloads.COPY_1M.name
        figure = results.ratio(placement, cached, copy, peers.MEMORY)
        name = f"{copy} of a file in the sandbox, {placement}"
        yield Goal(name, figure, 1.05, f"x {peers.MEMORY}")


def _trees(found: Trees | None) -> Iterator[Goal]:
    for job in (trees.FIND, trees.LIST):
        figure = found.ratio(job, trees.MIRROR, trees.PASSTHROUGH_LL) if found else None
        yield Goal(job, figure, 1.0, f"x {trees.PASSTHROUGH_LL}")
    for peer, base, limit in (
        (trees.MEMORY, trees.PASSTHROUGH_LL, 1.0),
        (trees.MEMORY, trees.PYFUSE3_MEMORY, 0.5),
    ):
        figure = found.ratio(trees.UNTAR, peer, base) if found else None
        yield Goal(trees.UNTAR, figure, limit, f"x {base}")
    first = found.seconds[trees.FIRST][trees.MEMORY] if found else None
    yield Goal(trees.FIRST, first, 0.15, "s")


def evaluate(
    results: Results,
    startup: Startup | None,
    memory: Memory | None,
    found: Trees | None = None,
) -> list[Goal]:
    """All goals, whatever was measured."""
    added = startup.inside.median - startup.outside.median if startup else None
    another = startup.another.median - startup.outside.median if startup else None
    grown = (memory.late - memory.early) / (1 << 20) if memory else None
    return [
        *_ratios(results),
        *_mounts(results),
        *_in_the_sandbox(results),
        *_trees(found),
        Goal("start-up: `recuse run -- /bin/true` over /bin/true", added, 0.08, "s more"),
        Goal("start-up: `Sandbox.run` of /bin/true over /bin/true", another, 0.01, "s more"),
        Goal("the supervisor's memory over a million operations", grown, FLAT_MIB, "MiB more"),
    ]
