"""Runs the client on each peer, in each placement, as often as asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.peers import Peer
from benchmarks.processes import UnavailableError, note, output
from benchmarks.samples import FREE, PINNED, PLACEMENTS, Key, Results
from benchmarks.tools import Tools

# Far beyond what any work takes: a client that hangs shall not hang the benchmark.
CLIENT_SECONDS = 60.0


@dataclass
class Run:
    """What came out: figures, and why a peer has none or not all of them, in one line each."""

    results: Results = field(default_factory=Results)
    missing: dict[str, str] = field(default_factory=dict)

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
    if len(os.sched_getaffinity(0)) == 1:
        note(f"this machine gave one CPU only: {FREE} is the same as {PINNED}")
    return outcome
