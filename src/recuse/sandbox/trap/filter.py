"""The seccomp filter: which system calls of a program come to the supervisor.

The filter is fixed once it is installed, and sees only a call's number and its arguments as
numbers. It decides by the call's number alone, as :mod:`recuse.sandbox.table` says, except for a
few calls. It traps ``fcntl`` for certain commands, and ``clone`` if it makes namespaces. It lets
``mmap`` pass if it maps no file, or if the C library's loader maps one. It lets ``sendmsg``,
``io_submit``, ``fchdir`` and ``close`` pass if they are made in a way that only recuse uses. Some
calls are trapped only if filesystems are mounted in the sandbox.

The filter does *not* ask which descriptors are devices. A device has the ordinary, lowest number
that the program would get from the kernel, and dup2, SCM_RIGHTS or a shell may move it anywhere. At
each call :mod:`recuse.sandbox.files.table` finds out which descriptor is a device.

System calls that are never trapped cost nothing: since Linux 5.11 a bitmap allows them before any
filter runs.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final

from recuse.sandbox.arch import arch, compat
from recuse.sandbox.table import Entry

MAP_ANONYMOUS: Final = 0x20
MAP_DENYWRITE: Final = 0x800
"""The kernel ignores this flag. The C library's loader sets it when it maps libraries, and recuse
sets it when it has a program map memory. Nobody else does."""

MAP_EXECUTABLE: Final = 0x1000
"""The kernel ignores this flag too, and nobody else sets it. In sandboxes with filesystems it marks
recuse's own calls, because the loader may map a file of a filesystem."""

LENDING: Final = 0x5640
"""MSG_DONTWAIT and MSG_NOSIGNAL, with MSG_FIN, MSG_SYN and MSG_RST, which no program uses and the
kernel ignores (linux/socket.h). With exactly these flags sendmsg is not trapped, so that a thread
under the filter can send a descriptor to recuse."""

OURS: Final = 0x52454355
"""A fourth argument of calls that have fewer. With it they are not trapped: recuse has a program
make them."""

MOST_CLOSED: Final = 4096
"""close is trapped for descriptors below that number. Some programs close every number that they
may use, up to a million of them."""

CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000

F_GETFL: Final = 3
F_SETFL: Final = 4
TRAPPED_FCNTL: Final = (F_GETFL, F_SETFL)
LOCK_COMMANDS: Final = (5, 6, 7, 36, 37, 38)
"""F_GETLK, F_SETLK, F_SETLKW, and the same for open file descriptions (linux/fcntl.h)."""
LOCK_COMMANDS_64: Final = (12, 13, 14)
"""F_GETLK64 and so on, of 32-bit programs."""

_VERDICTS: Final = {
    "always": "notify",
    "commands": "fcntl",
    "files": "mmap",
    "namespaces": "clone",
    "unless-lent": "sendmsg",
    "unless-ours": "unless ours",
    "refused": "nosys",
}
"""Where the filter continues, by the table's decision. Calls with other decisions are allowed."""
_WITH_FILESYSTEMS: Final = _VERDICTS | {
    "mounts": "notify",
    "mounts-unless-ours": "unless ours",
    "mounts-closes": "close",
}

# linux/seccomp.h
_RETURN_ALLOW: Final = 0x7FFF0000
_RETURN_NOTIFY: Final = 0x7FC00000
_RETURN_ERRNO: Final = 0x00050000

# linux/bpf_common.h: a 32-bit load from struct seccomp_data, jumps, and the end.
_LOAD: Final = 0x20
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_INSTRUCTION = struct.Struct("=HBBI")

# Offsets in struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}. The low half of an
# argument comes first: recuse supports little-endian machines only.
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16


def build_filter(*, filesystems: bool = False) -> bytes:
    """Return the filter as an array of ``struct sock_filter``, 8 bytes each.

    ``filesystems``: filesystems are mounted in the sandbox, so more calls are trapped.

    - calls that :mod:`recuse.sandbox.table` lists as trapped: the supervisor decides;
    - x32 calls, and calls that the table lists as refused: ENOSYS. x32 calls would have other
      argument layouts, and programs fall back from both;
    - everything else: allowed.
    """
    program = _Assembler()
    program.load(_ARCH)
    program.jump(_JUMP_EQUAL, arch.AUDIT_ARCH, then="native")
    program.jump(_JUMP_EQUAL, compat.AUDIT_ARCH, then="compat")
    program.give("foreign", _RETURN_ALLOW)
    # A conditional jump reaches 255 instructions, an unconditional one any number.
    program.label("compat")
    program.go("compat calls")
    program.label("native")
    program.load(_NUMBER)
    if arch.FOREIGN_CALL_BIT:
        program.jump(_JUMP_SET, arch.FOREIGN_CALL_BIT, then="nosys")
    _decide(program, "", arch.CALLS, filesystems)
    program.label("compat calls")
    program.load(_NUMBER)
    _decide(program, "compat ", compat.CALLS, filesystems)
    return program.assemble()


def _decide(program: _Assembler, prefix: str, calls: Sequence[Entry], filesystems: bool) -> None:
    """Add the code that decides on the call whose number is loaded; labels get ``prefix``."""
    verdicts = _WITH_FILESYSTEMS if filesystems else _VERDICTS
    for call in calls:
        if call.decision in verdicts:
            program.jump(_JUMP_EQUAL, call.number, then=prefix + verdicts[call.decision])
    program.give(prefix + "allow", _RETURN_ALLOW)
    program.label(prefix + "fcntl")
    program.load(_ARGUMENTS + 8)
    locks = (*LOCK_COMMANDS, *LOCK_COMMANDS_64) if filesystems else ()
    for command in (*TRAPPED_FCNTL, *locks):
        program.jump(_JUMP_EQUAL, command, then=prefix + "notify")
    program.give(prefix + "other command", _RETURN_ALLOW)
    program.label(prefix + "mmap")
    program.load(_ARGUMENTS + 3 * 8)
    if filesystems:  # the loader may map a library that lies there
        program.jump(_JUMP_SET, MAP_ANONYMOUS | MAP_EXECUTABLE, then=prefix + "no file")
    else:
        program.jump(_JUMP_SET, MAP_ANONYMOUS | MAP_DENYWRITE, then=prefix + "no file")
    program.load(_ARGUMENTS + 4 * 8)
    program.jump(_JUMP_EQUAL, 0xFFFFFFFF, then=prefix + "no file")
    program.go(prefix + "notify")
    program.give(prefix + "no file", _RETURN_ALLOW)
    program.label(prefix + "clone")
    program.load(_ARGUMENTS)
    program.jump(_JUMP_SET, CLONE_NEWNS | CLONE_NEWUSER, then=prefix + "notify")
    program.give(prefix + "no namespace", _RETURN_ALLOW)
    program.label(prefix + "sendmsg")
    program.load(_ARGUMENTS + 2 * 8)
    program.jump(_JUMP_EQUAL, LENDING, then=prefix + "lending")
    program.go(prefix + "notify")
    program.give(prefix + "lending", _RETURN_ALLOW)
    program.label(prefix + "close")
    program.load(_ARGUMENTS)
    program.jump(_JUMP_SET, -MOST_CLOSED & 0xFFFFFFFF, then=prefix + "ours")
    program.label(prefix + "unless ours")
    program.load(_ARGUMENTS + 3 * 8)
    program.jump(_JUMP_EQUAL, OURS, then=prefix + "ours")
    program.go(prefix + "notify")
    program.give(prefix + "ours", _RETURN_ALLOW)
    program.give(prefix + "notify", _RETURN_NOTIFY)
    program.give(prefix + "nosys", _RETURN_ERRNO | errno.ENOSYS)


class _Assembler:
    """Classic BPF with named jump targets. All jumps are forward."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        self._code.append((_LOAD, None, offset))

    def jump(self, kind: int, value: int, *, then: str) -> None:
        self._code.append((kind, then, value))

    def go(self, name: str) -> None:
        self._code.append((_JUMP, name, 0))

    def give(self, name: str, action: int) -> None:
        self.label(name)
        self._code.append((_RETURN, None, action))

    def assemble(self) -> bytes:
        code = bytearray()
        for index, (kind, target, value) in enumerate(self._code):
            distance = self._labels[target] - index - 1 if target else 0
            if kind == _JUMP:
                code += _INSTRUCTION.pack(kind, 0, 0, distance)
            else:
                code += _INSTRUCTION.pack(kind, distance, 0, value)
        return bytes(code)
