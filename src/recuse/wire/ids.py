"""Numbers that name things, which are all ints, but not to type checkers.

A function that takes the one or the other, such as one that looks into ``/proc``, takes an int.
"""

from typing import NewType

Tid = NewType("Tid", int)
"""A thread, by its number in the supervisor's pid namespace: who makes a system call. It is what a
request's header calls ``pid``."""

Tgid = NewType("Tgid", Tid)
"""A process there: the number of its first thread, which is a thread's as well."""

NO_PROCESS = Tgid(Tid(0))
"""Who is asked for is outside of the pid namespace, or gone."""

Kh = NewType("Kh", int)
"""An open file, by the number that a server is to notify its pollers by."""
