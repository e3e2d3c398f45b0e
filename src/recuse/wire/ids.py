"""Numbers that name things. They are all ints, except to type checkers.

A function that accepts either kind, such as one that looks into ``/proc``, takes an int.
"""

from typing import NewType

Tid = NewType("Tid", int)
"""A thread that makes a system call, by its number in the supervisor's pid namespace. A request's
header calls it ``pid``."""

Tgid = NewType("Tgid", Tid)
"""A process there: the number of its first thread, so it is also a thread's number."""

NO_PROCESS = Tgid(Tid(0))
"""The thread or process is outside the pid namespace, or gone."""

Kh = NewType("Kh", int)
"""An open file, by the number that a server uses to notify its pollers."""
