"""Events of poll(2), as POLL and its answer have them (linux/poll.h)."""

DEFAULT_POLLMASK = 0x145
"""POLLIN, POLLOUT, POLLRDNORM and POLLWRNORM: what a file is always that has no poll."""
