"""The figures: nanoseconds per operation, by placement, peer and work."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

FREE = "free"
PINNED = "pinned"
PLACEMENTS = (FREE, PINNED)


@dataclass(frozen=True)
class Summary:
    """Median, least and greatest of some samples, in the samples' unit."""

    median: float
    minimum: float
    maximum: float


def summarise(samples: Iterable[float]) -> Summary:
    """Raises ValueError if there are none."""
    values = sorted(samples)
    if not values:
        raise ValueError("no samples")
    return Summary(statistics.median(values), values[0], values[-1])


@dataclass(frozen=True)
class Key:
    """Where a sample belongs: a placement, a peer's name and a work's name."""

    placement: str
    peer: str
    work: str


@dataclass
class Results:
    """Samples in nanoseconds per operation, one for each repetition."""

    samples: dict[Key, list[float]] = field(default_factory=dict)

    def add(self, key: Key, nanoseconds: float) -> None:
        self.samples.setdefault(key, []).append(nanoseconds)

    def summary(self, placement: str, peer: str, work: str) -> Summary | None:
        """None if it was not measured."""
        samples = self.samples.get(Key(placement, peer, work))
        return summarise(samples) if samples else None

    def ratio(self, placement: str, peer: str, work: str, base: str) -> float | None:
        """The peer's median over the base peer's for the same work; None without either."""
        own = self.summary(placement, peer, work)
        other = self.summary(placement, base, work)
        return own.median / other.median if own and other else None
