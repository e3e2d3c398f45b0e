"""The trapped system calls, one module for each family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.sandbox.arch import MACHINE, arch
from recuse.sandbox.syscalls import (
    aio,
    attributes,
    control,
    epoll,
    filesystems,
    listing,
    locks,
    mmap,
    names,
    opening,
    passing,
    poll,
    processes,
    rw,
    sigreturn,
    status,
    workdir,
    xattrs,
)
from recuse.sandbox.syscalls.handler import Handler

if TYPE_CHECKING or MACHINE != "aarch64":
    from recuse.sandbox.syscalls.compat import i386 as narrow
else:
    from recuse.sandbox.syscalls.compat import arm as narrow

FAMILIES: Final = {
    "aio": aio,
    "attributes": attributes,
    "control": control,
    "epoll": epoll,
    "filesystems": filesystems,
    "listing": listing,
    "locks": locks,
    "mmap": mmap,
    "names": names,
    "opening": opening,
    "passing": passing,
    "poll": poll,
    "processes": processes,
    "rw": rw,
    "sigreturn": sigreturn,
    "status": status,
    "workdir": workdir,
    "xattrs": xattrs,
}
"""The modules, by the names that :mod:`recuse.sandbox.table` uses for them."""


def handlers() -> dict[int, Handler]:
    """The handlers of this architecture's calls, by number."""
    return {
        call.number: FAMILIES[call.family].HANDLERS[call.name]
        for call in arch.CALLS
        if call.trapped
    }


def compat_handlers() -> dict[int, Handler]:
    """The handlers of 32-bit programs' calls, by number."""
    return narrow.handlers()
