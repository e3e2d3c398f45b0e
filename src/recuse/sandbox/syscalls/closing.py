"""close, close_range, dup2 and dup3 of filesystems' files (fs/open.c, fs/file.c; Linux 6.18).

Linux calls a file's flush for each descriptor that is closed (filp_flush), and close returns its
error. The descriptor is closed nevertheless. These calls are trapped in sandboxes with filesystems
only. They end as natively: by the kernel, which closes the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler
from recuse.sandbox.trap.call import Errand, OnDevice, Outcome, Steps, TrappedCall
from recuse.sandbox.trap.filter import OURS
from recuse.sandbox.trap.inject import GoneError, Injection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from recuse.sandbox.machine import Machine

_CLOSE_RANGE_UNSHARE: Final = 2
"""linux/close_range.h"""
_32_BITS: Final = 0xFFFFFFFF


def close(call: TrappedCall, machine: Machine) -> Outcome:
    """``close(fd)``; raises OSError as the server answers FLUSH."""
    file = _find(call, machine, call.a0)
    if file is None or (flush := file.flush(call)) is None:
        return PROCEED
    return _close(call, machine, flush)


def _close(call: TrappedCall, machine: Machine, flush: OnDevice[None]) -> Steps[int]:
    try:
        yield flush
    except OSError as error:
        failed = error
    else:
        return PROCEED
    yield Errand(machine.errands)
    # Only the thread itself can close the descriptor and still see an error.
    try:
        with Injection(call) as thread, contextlib.suppress(OSError):
            thread.result = -(failed.errno or errno.EIO)
            thread.call("close", call.a0 & _32_BITS, 0, 0, OURS)
    except GoneError:
        pass
    except OSError:
        # It cannot be stopped. It must learn of the error, so the descriptor stays open.
        raise failed from None
    return ANSWERED


def _find(call: TrappedCall, machine: Machine, number: int) -> FileDescription | None:
    """A descriptor's file; None also if nobody may look: it is closed without us then."""
    try:
        return machine.files.find(call.tid, number)
    except OSError:
        return None


def close_range(call: TrappedCall, machine: Machine) -> Outcome:
    """``close_range(first, last, flags)``, which ignores errors."""
    first, last = call.a0 & _32_BITS, call.a1 & _32_BITS
    if not machine.files.by_link or call.a2 & _32_BITS & ~_CLOSE_RANGE_UNSHARE:
        return PROCEED
    try:
        held = [int(name) for name in os.listdir(f"/proc/{call.tid}/fd")]
    except OSError:
        return PROCEED
    return _flush_all(call, machine, (n for n in sorted(held) if first <= n <= last))


def dup2(call: TrappedCall, machine: Machine) -> Outcome:
    """``dup2(old, new)``, which closes ``new`` and ignores the error."""
    old, new = call.a0 & _32_BITS, call.a1 & _32_BITS
    if (
        old == new
        or _find(call, machine, new) is None
        or not os.path.lexists(f"/proc/{call.tid}/fd/{old}")
    ):
        return PROCEED
    return _flush_all(call, machine, [new])


def dup3(call: TrappedCall, machine: Machine) -> Outcome:
    """``dup3(old, new, flags)``."""
    return PROCEED if call.a2 & _32_BITS & ~os.O_CLOEXEC else dup2(call, machine)


def _flush_all(call: TrappedCall, machine: Machine, numbers: Iterable[int]) -> Steps[int]:
    for number in numbers:
        file = _find(call, machine, number)
        if file is not None and (flush := file.flush(call)) is not None:
            with contextlib.suppress(OSError):
                yield flush
    return PROCEED


HANDLERS: Final[dict[str, Handler]] = {
    "close": close,
    "close_range": close_range,
    "dup2": dup2,
    "dup3": dup3,
}
