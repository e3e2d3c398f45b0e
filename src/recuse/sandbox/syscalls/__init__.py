"""The trapped system calls, one module for each family."""

from __future__ import annotations

from recuse.sandbox.arch import MACHINE, arch
from recuse.sandbox.syscalls import (
    aio,
    arm,
    attributes,
    compat,
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
)
from recuse.sandbox.syscalls.call import Handler

_FAMILIES = (
    rw,
    control,
    opening,
    status,
    attributes,
    names,
    workdir,
    listing,
    locks,
    filesystems,
    processes,
    passing,
    poll,
    epoll,
    aio,
    mmap,
    sigreturn,
)


def handlers() -> dict[int, Handler]:
    """The handlers by number, for this architecture."""
    return {
        arch.SYSCALLS[name]: handler
        for family in _FAMILIES
        for name, handler in family.HANDLERS.items()
        if name in arch.SYSCALLS
    }


def compat_handlers() -> dict[int, Handler]:
    """The handlers of 32-bit programs' calls by number."""
    return arm.handlers() if MACHINE == "aarch64" else compat.handlers()
