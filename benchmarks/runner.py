"""Runs the client on each peer, in each placement, as often as asked."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import Peer
from benchmarks.processes import UnavailableError, note, output
from benchmarks.samples import FREE, PINNED, PLACEMENTS, Key, Results
from benchmarks.tools import Tools

# Far beyond what any work takes: a client that hangs shall not hang the benchmark.
CLIENT_SECONDS = 60.0


@dataclass
class Run:
    """What came out: figures, and why a peer has none or not all of them, in one line each.

    `others` is how many CPUs the rest of the machine kept busy meanwhile: beyond a few hundredths,
    the scheduler has no free CPU to wake a server on, and the figures with it free are those of
    another machine.
    """

    results: Results = field(default_factory=Results)
    missing: dict[str, str] = field(default_factory=dict)
    others: float = 0.0

    def miss(self, peer: str, reason: object) -> None:
        if peer not in self.missing:
            self.missing[peer] = str(reason)
            note(f"left out: {peer}: {reason}")


@contextmanager
def placed(placement: str) -> Iterator[None]:
    """Where this process and those it starts may run: on every CPU that it has, or on one only."""
    before = os.sched_getaffinity(0)
    try:
        if placement == PINNED:
            # Not the first: that is where a machine's interrupts tend to be.
            os.sched_setaffinity(0, {max(before)})
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy_seconds(stat: str) -> float:
    """CPU time that was not idle, all CPUs together, from the text of /proc/stat."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _others_seconds() -> float:
    """CPU time spent on what neither this process nor its (buried) children did."""
    busy = busy_seconds(Path("/proc/stat").read_text())
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        busy -= usage.ru_utime + usage.ru_stime
    return busy


def parse(text: str) -> dict[str, float]:
    """The client's lines as nanoseconds per operation, by the work's argument.

    Raises ValueError if a line is not one of the client's.
    """
    found = {}
    for line in text.splitlines():
        argument, operations, nanoseconds = line.split()
        found[argument] = int(nanoseconds) / int(operations)
    return found


def measure(tools: Tools, peer: Peer, seconds: float) -> dict[str, float]:
    """Starts the peer, runs the client on it once: nanoseconds per operation, by the work's name.

    Raises UnavailableError if either fails.
    """
    with peer.start() as target:
        arguments = [work.argument for work in peer.works]
        command = [*target.prefix, tools.client(), "-t", str(seconds)]
        figures = parse(output([*command, target.path, *arguments], CLIENT_SECONDS))
    return {work.name: figures[work.argument] for work in peer.works}


def run(tools: Tools, peers: Sequence[Peer], repetitions: int, seconds: float) -> Run:
    """A fresh server and client for each repetition, the peers in turn.

    In turn, so that what else the machine does hits all of them; fresh, so that where the scheduler
    happened to put a server varies too.
    """
    outcome = Run()
    start, others = time.monotonic(), _others_seconds()
    for repetition in range(repetitions):
        for placement in PLACEMENTS:
            for peer in peers:
                if peer.name in outcome.missing:
                    continue
                note(f"{repetition + 1}/{repetitions} {placement}: {peer.name}")
                try:
                    with placed(placement):
                        figures = measure(tools, peer, seconds)
                except UnavailableError as error:
                    outcome.miss(peer.name, error)
                    continue
                for work, nanoseconds in figures.items():
                    outcome.results.add(Key(placement, peer.name, work), nanoseconds)
    outcome.others = max(0.0, _others_seconds() - others) / (time.monotonic() - start)
    if len(os.sched_getaffinity(0)) == 1:
        note(f"this machine gave one CPU only: {FREE} is the same as {PINNED}")
    return outcome
