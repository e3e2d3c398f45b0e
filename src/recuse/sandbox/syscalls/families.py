"""All families of system calls: for each, the module with its handlers."""

from __future__ import annotations

from typing import Final

from recuse.sandbox.syscalls import (
    aio,
    attributes,
    closing,
    control,
    epoll,
    filesystems,
    listing,
    locks,
    mmap,
    mounting,
    names,
    opening,
    passing,
    poll,
    processes,
    regular,
    rw,
    sigreturn,
    status,
    watches,
    workdir,
    xattrs,
)

FAMILIES: Final = {
    "aio": aio,
    "attributes": attributes,
    "closing": closing,
    "control": control,
    "epoll": epoll,
    "filesystems": filesystems,
    "listing": listing,
    "locks": locks,
    "mmap": mmap,
    "mounting": mounting,
    "names": names,
    "opening": opening,
    "passing": passing,
    "poll": poll,
    "processes": processes,
    "regular": regular,
    "rw": rw,
    "sigreturn": sigreturn,
    "status": status,
    "watches": watches,
    "workdir": workdir,
    "xattrs": xattrs,
}
"""The modules, by the names that :mod:`recuse.sandbox.table` uses for them."""
