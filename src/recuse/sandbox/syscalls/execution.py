"""execve of files that are on filesystems of the sandbox (fs/exec.c, fs/binfmt_script.c).

The kernel cannot find such a file. So its content is put into a memfd, and the thread makes its
call again, with the memfd's path. For a script, it makes the call again with the interpreter, as
the kernel itself would go on. What the changed call points to is below the thread's stack, where
no program keeps anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.room import check_room, keeping
from recuse.sandbox.arch import compat
from recuse.sandbox.syscalls.handler import ANSWERED
from recuse.sandbox.tasks.memory import read_memory, write_memory
from recuse.sandbox.trap.call import Steps, TrappedCall
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree
from recuse.sandbox.vfs.found import NativeFile
from recuse.sandbox.vfs.native_files import check_access, open_again

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_FIRST: Final = 256
"""How much of a file the kernel looks at (BINPRM_BUF_SIZE)."""
_SPARE: Final = 1024
"""Bytes below the stack pointer that are left alone: more than the 128 that leaf functions use."""
_MOST_ROOM: Final = 64 << 10
"""Most bytes that are put there."""
_MOST_ARGUMENTS: Final = 4096
_MOST_SCRIPTS: Final = 5
"""How many interpreters may be scripts themselves."""


_BY_DESCRIPTOR: Final = b"/dev/fd/"
_MOST_BYTES: Final = 256 << 20
"""The largest program."""


def execute(  # noqa: PLR0917 - all that there is
    call: TrappedCall,
    machine: Machine,
    filesystem: FilesystemTree,
    location: Location,
    path: bytes,
    depth: int,
) -> Steps[int]:
    """Execute a file of a filesystem.

    Args:
        call: execve or execveat.
        machine: the sandbox's.
        filesystem: the file's.
        location: the file's.
        path: what the kernel would call it.
        depth: how many scripts have led to it.

    Raises:
        OSError: EACCES if it may not be executed, or the thread cannot be made to repeat its call;
            ENOEXEC if it is no program and no script; ELOOP; E2BIG; ENFILE; ENOMEM.
    """
    with keeping():
        program = os.memfd_create("recuse")
    try:
        check_room(program)
        yield from filesystem.read_program(call, location.dentry, _into(program))
        first = os.pread(program, _FIRST, 0)
        if first.startswith(b"#!"):
            _run_script(call, machine, path, first, depth)
        elif first.startswith(b"\x7fELF"):
            _repeat(call, program)
        else:
            raise os_error(errno.ENOEXEC)
    finally:
        os.close(program)
    return ANSWERED


def execute_native(
    call: TrappedCall, machine: Machine, file: NativeFile, path: bytes, depth: int
) -> int:
    """Execute a native file to which links on a filesystem lead.

    The kernel says whether it may be executed, and is a program. A script is told the path by
    which it was called, ``path``. Arguments are those of `execute`.

    Raises:
        OSError: EACCES if the thread cannot be made to repeat its call; ELOOP; E2BIG.
    """
    first = b""
    acting = call.task.acting
    if stat.S_ISREG(file.status.st_mode):
        with contextlib.suppress(PermissionError):  # some may be executed, but not read
            check_access(acting, file.descriptor, os.X_OK)
            machine.tasks.check_confinement(call.tid)
            opened = open_again(acting, file.descriptor, os.O_RDONLY, 0, 0)
            try:
                first = os.pread(opened, _FIRST, 0)
            finally:
                os.close(opened)
    if first.startswith(b"#!"):
        _run_script(call, machine, path, first, depth)
    else:
        native = file.path_for(call.tid) + b"\0"
        _change(call, lambda thread: {_PATH: _put(call, thread, native)})
    return ANSWERED


def _run_script(call: TrappedCall, machine: Machine, path: bytes, first: bytes, depth: int) -> None:
    if depth >= _MOST_SCRIPTS:
        raise os_error(errno.ELOOP)
    if path.startswith(_BY_DESCRIPTOR) and _closes(call, path):
        raise os_error(errno.ENOENT)  # BINPRM_FLAGS_PATH_INACCESSIBLE
    _interpret(call, path, first)
    machine.scripts[call.tid] = depth + 1


def _closes(call: TrappedCall, path: bytes) -> bool:
    """Whether the descriptor by which a file is named is closed when the thread executes it."""
    number = path.removeprefix(_BY_DESCRIPTOR).partition(b"/")[0].decode()
    with open(f"/proc/{call.tid}/fdinfo/{number}", encoding="ascii") as info:
        flags = next(line for line in info if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)


def _into(program: int) -> Callable[[bytes], None]:
    """What puts a program's content into a memfd."""

    def take(data: bytes) -> None:
        if os.lseek(program, 0, os.SEEK_CUR) + len(data) > _MOST_BYTES:
            raise os_error(errno.ENOMEM)
        while data:
            try:
                data = data[os.write(program, data) :]
            except OSError:
                raise os_error(errno.ENOMEM) from None

    return take


def _repeat(call: TrappedCall, program: int) -> None:
    """Have the thread execute a memfd."""

    def change(thread: Injection) -> dict[int, int]:
        number = thread.give(program)
        path = b"/proc/self/fd/%d\0" % number
        return {_PATH: _put(call, thread, path)}

    _change(call, change)


def _interpret(call: TrappedCall, path: bytes, first: bytes) -> None:
    """Have the thread execute a script's interpreter."""
    interpreter, argument = _parse(first)
    word = struct.Struct("=I" if call.arch == compat.AUDIT_ARCH else "=Q")
    given = _pointers(call, word)
    strings = [interpreter, *([argument] if argument else []), path]

    def change(thread: Injection) -> dict[int, int]:
        data = b"".join(string + b"\0" for string in strings)
        data += bytes(-len(data) % word.size)
        size = len(data) + (len(strings) + len(given) + 1) * word.size
        start = _room(thread, size, given)
        pointers, at = [], start
        for string in strings:
            pointers.append(at)
            at += len(string) + 1
        data += b"".join(word.pack(pointer) for pointer in (*pointers, *given[1:], 0))
        array = start + len(data) - (len(pointers) + len(given[1:]) + 1) * word.size
        _store(call, start, data)
        return {_PATH: start, _ARGUMENTS: array}

    _change(call, change)


def _parse(first: bytes) -> tuple[bytes, bytes]:
    """The interpreter of a script and its argument, if any. OSError: ENOEXEC."""
    line, end, _ = first[2:].partition(b"\n")
    interpreter, space, argument = line.replace(b"\t", b" ").strip(b" ").partition(b" ")
    cut = not end and len(first) == _FIRST
    if not interpreter or (cut and not space):
        # Without the end of the line, the kernel tries to execute the working directory.
        raise os_error(errno.ENOEXEC if end or cut else errno.EACCES)
    return interpreter.partition(b"\0")[0], argument.strip(b" ").partition(b"\0")[0]


def _pointers(call: TrappedCall, word: struct.Struct) -> list[int]:
    """The pointers of the call's argv; one at least. OSError: E2BIG, EFAULT."""
    address = call.a1 if call.name == "execve" else call.a2
    found: list[int] = []
    while address and len(found) <= _MOST_ARGUMENTS:
        (pointer,) = word.unpack(read_memory(call.tid, address, word.size).ljust(word.size, b"\0"))
        if not pointer:
            break
        found.append(pointer)
        address += word.size
    if len(found) > _MOST_ARGUMENTS:
        raise os_error(errno.E2BIG)
    return found or [0]


_PATH: Final = 0
_ARGUMENTS: Final = 1
"""Arguments of execve. Those of execveat come one later."""


def _change(call: TrappedCall, change: Callable[[Injection], dict[int, int]]) -> None:
    """Have the thread make its call again, with other arguments."""
    later = 0 if call.name == "execve" else 1
    try:
        with Injection(call) as thread:
            try:
                arguments = {index + later: value for index, value in change(thread).items()}
                if later:
                    arguments[4] = 0  # the flags concerned the path
                thread.restart(arguments)
            except OSError as error:
                thread.result = -(error.errno or errno.EIO)
    except GoneError:
        pass
    except OSError:
        raise os_error(errno.EACCES) from None


def _room(thread: Injection, size: int, used: Sequence[int] = ()) -> int:
    """Where so many bytes can be put, below what another script's arguments have used there.

    Raises:
        OSError: E2BIG.
    """
    stack = thread.stack
    top = min([stack - _SPARE, *(at for at in used if stack - _MOST_ROOM <= at < stack)])
    if stack - top + size > _MOST_ROOM:
        raise os_error(errno.E2BIG)
    return (top - size) & ~15


def _put(call: TrappedCall, thread: Injection, data: bytes) -> int:
    address = _room(thread, len(data))
    _store(call, address, data)
    return address


def _store(call: TrappedCall, address: int, data: bytes) -> None:
    stored = 0
    with contextlib.suppress(OSError):
        stored = write_memory(call.tid, address, data)
    if stored < len(data):
        raise os_error(errno.E2BIG)
