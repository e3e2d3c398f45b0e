"""Events of poll(2), as used in POLL and its answer (linux/poll.h)."""

DEFAULT_POLLMASK = 0x145
"""POLLIN, POLLOUT, POLLRDNORM and POLLWRNORM: a file without poll is always ready for these."""
