"""The memory of a program, by address.

Data are copied by ``process_vm_readv`` and ``process_vm_writev``, not through ``/proc/PID/mem``.
These calls respect the protection of pages, as the program's own system call would, and are quicker
for large blocks. Only paths are read through ``/proc/PID/mem``, which is quicker for small ones
(:mod:`recuse.sandbox.tasks.strings`).
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import os
from time import monotonic
from typing import Final, Protocol

from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import may_copy_memory
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.thread_ends import SAME_ID_S
from recuse.wire.declare import Buffer

PAGE: Final = 4096
"""The size of a page in bytes, or of a part of one on machines with larger pages."""
_ADDRESS_LIMIT: Final = arch.ADDRESS_LIMIT


class UnreadableError(Exception):
    """What a call refers to cannot be read from here. The kernel can read it for the caller.

    Either the process may not be looked into (prctl(PR_SET_DUMPABLE), or another user's process),
    or only the process itself can read this kind of memory.
    """


class HiddenError(UnreadableError):
    """The same, because the process may not be looked into."""


_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_writev = _libc.process_vm_writev
_readv.restype = _writev.restype = ctypes.c_ssize_t


class _BytesIovec(ctypes.Structure):
    """``struct iovec`` of bytes to take data from."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _AddressIovec(ctypes.Structure):
    """``struct iovec`` of an address."""

    _fields_ = (("base", ctypes.c_size_t), ("length", ctypes.c_size_t))


class _Transfer:
    """The arguments of one copy. They are reused, because making them takes as long as the call."""

    __slots__ = ("buffer", "remote", "remote_ref", "source", "source_ref", "target", "target_ref")

    def __init__(self) -> None:
        self.source, self.remote = _BytesIovec(), _AddressIovec()
        self.buffer = ctypes.create_string_buffer(PAGE)
        self.target = _AddressIovec(ctypes.addressof(self.buffer), PAGE)
        self.source_ref = ctypes.byref(self.source)
        self.remote_ref = ctypes.byref(self.remote)
        self.target_ref = ctypes.byref(self.target)


_transfers: list[_Transfer] = []  # not in use by any thread


def clip(address: int, size: int) -> int:
    """How much of an area lies in user space; EFAULT if none of it does."""
    if address >= _ADDRESS_LIMIT:
        raise os_error(errno.EFAULT)
    return min(size, _ADDRESS_LIMIT - address)


def read_memory(tid: int, address: int, size: int) -> bytes:
    """Read up to ``size`` bytes.

    Returns:
        The bytes from ``address`` to where readable memory ends: at least one if size > 0.

    Raises:
        OSError: EFAULT if the first byte cannot be read; ESRCH if the process is gone.
        UnreadableError: if the process may not be looked into.
    """
    if size == 0:
        return b""
    if address + size > _ADDRESS_LIMIT:
        size = clip(address, size)
    if size > PAGE:
        return _read_large(tid, address, size)
    try:
        transfer = _transfers.pop()
    except IndexError:
        transfer = _Transfer()
    remote = transfer.remote
    transfer.target.length = size
    remote.base, remote.length = address, size
    count = _readv(tid, transfer.target_ref, 1, transfer.remote_ref, 1, 0)
    if count <= 0:
        return _read_file(tid, address, size)
    data: bytes = transfer.buffer[:count]  # type: ignore[assignment]  # of characters: bytes
    _transfers.append(transfer)
    return data


def _read_large(tid: int, address: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    target, remote = _AddressIovec(ctypes.addressof(buffer), size), _AddressIovec(address, size)
    count = _readv(tid, ctypes.byref(target), 1, ctypes.byref(remote), 1, 0)
    if count <= 0:
        return _read_file(tid, address, size)
    return ctypes.string_at(buffer, count)


def write_memory(tid: int, address: int, data: Buffer) -> int:
    """Write ``data``.

    Returns:
        How many bytes were written, up to the end of writable memory: at least one.

    Raises:
        OSError, UnreadableError: as :func:`read_memory`.
    """
    if not data:
        return 0
    size = len(data)
    if type(data) is not bytes:
        if size > PAGE:
            return _write_in_place(tid, address, data)
        data = bytes(data)
    if address + size > _ADDRESS_LIMIT:
        size = clip(address, size)
    try:
        transfer = _transfers.pop()
    except IndexError:
        transfer = _Transfer()
    source, remote = transfer.source, transfer.remote
    source.base, source.length = data, size
    remote.base, remote.length = address, size
    count: int = _writev(tid, transfer.source_ref, 1, transfer.remote_ref, 1, 0)
    if count <= 0:
        return _write_file(tid, address, memoryview(data)[:size])
    source.base = None
    _transfers.append(transfer)
    return count


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``. Only its address is used."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None


def _write_in_place(tid: int, address: int, data: Buffer) -> int:
    """Write a large part of something larger, such as a reply's payload, without copying it."""
    size = clip(address, len(data))
    buffer = _PyBuffer()
    _get_buffer(data, ctypes.byref(buffer), 0)
    try:
        source, remote = _AddressIovec(buffer.buf, size), _AddressIovec(address, size)
        count: int = _writev(tid, ctypes.byref(source), 1, ctypes.byref(remote), 1, 0)
        code = ctypes.get_errno()
    finally:
        _release_buffer(ctypes.byref(buffer))
    if count <= 0:
        ctypes.set_errno(code)
        return _write_file(tid, address, memoryview(data)[:size])
    return count


def _read_file(tid: int, address: int, size: int) -> bytes:
    """Read memory through ``/proc/PID/mem`` if process_vm_readv failed because it is refused."""
    error = _error()
    if may_copy_memory():
        raise error
    size = _allowed(tid, address, size, "r")
    descriptor = _open_memory(tid, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, address)
    except OSError:
        raise os_error(errno.EFAULT) from None
    finally:
        os.close(descriptor)


def _write_file(tid: int, address: int, data: memoryview) -> int:
    """Write memory through ``/proc/PID/mem`` if process_vm_writev failed because it is refused."""
    error = _error()
    if may_copy_memory():
        raise error
    size = _allowed(tid, address, len(data), "w")
    descriptor = _open_memory(tid, os.O_WRONLY)
    try:
        return os.pwrite(descriptor, data[:size], address)
    except OSError:
        raise os_error(errno.EFAULT) from None
    finally:
        os.close(descriptor)


def _open_memory(tid: int, flags: int) -> int:
    try:
        return os.open(f"/proc/{tid}/mem", flags | os.O_CLOEXEC)
    except PermissionError:
        raise UnreadableError from None
    except FileNotFoundError:
        raise os_error(errno.ESRCH) from None


def _allowed(tid: int, address: int, size: int, permission: str) -> int:
    """How much from an address has a permission, which ``/proc/PID/mem`` does not check.

    Raises:
        OSError: EFAULT if nothing has it; ESRCH.
        UnreadableError: if the process may not be looked into.
    """
    end = address
    try:
        with open(f"/proc/{tid}/maps", encoding="ascii", errors="replace") as maps:
            for line in maps:
                extent, permissions, _ = line.split(" ", 2)
                start, stop = (int(part, 16) for part in extent.split("-"))
                if start <= end < stop and permission in permissions:
                    end = stop
                elif start > end:
                    break
    except PermissionError:
        raise UnreadableError from None
    except (FileNotFoundError, ProcessLookupError):
        raise os_error(errno.ESRCH) from None
    if end == address:
        raise os_error(errno.EFAULT)
    return min(size, end - address)


def _error() -> Exception:
    code = ctypes.get_errno() or errno.EFAULT
    if code == errno.EPERM:
        return HiddenError()
    return os_error(code)


class WritableMap:
    """Which parts of a process's memory can be written, from ``/proc/PID/maps``.

    The kernel's direct I/O pins the pages of a read's buffer before it asks the device, so a bad
    buffer costs no data. This map gives the same answer in advance. It is read if an address is not
    in the known parts. A part that was unmapped later is noticed only when writing to it fails.
    The same happens to a buffer that another thread unmaps during a read.
    """

    __slots__ = ("_ends", "_high", "_low", "_starts", "_tid")

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._low = self._high = 0  # the part that was last asked for

    def extent(self, address: int, size: int) -> int:
        """How many of the ``size`` bytes from ``address`` can be written, 0 to ``size``."""
        if self._low <= address and address + size <= self._high:
            return size
        found = self._find(address, size)
        if found < size:
            self._read()
            found = self._find(address, size)
        return found

    def _find(self, address: int, size: int) -> int:
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ends[index]:
            return 0
        self._low, self._high = self._starts[index], self._ends[index]
        return min(size, self._high - address)

    def _read(self) -> None:
        starts: list[int] = []
        ends: list[int] = []
        with open(f"/proc/{self._tid}/maps", "rb") as maps:
            for line in maps:
                extent, permissions, _ = line.split(b" ", 2)
                if permissions[1] != ord("w"):
                    continue
                start, end = (int(part, 16) for part in extent.split(b"-"))
                if ends and ends[-1] == start:
                    ends[-1] = end
                else:
                    starts.append(start)
                    ends.append(end)
        self._starts, self._ends = starts, ends
        self._low = self._high = 0


class Waiting(Protocol):
    """Knows whether calls still wait: the listener."""

    def alive(self, call_id: int) -> bool:
        """Whether the call still waits. If so, its thread's ID still means the same thread."""


class CallerMemory:
    """A caller's memory (:class:`recuse.kernel.caller.Memory`) while one trapped call waits.

    A write first checks that the call is still there: an answer may come long after the caller was
    killed, when its tid may be another thread's. For :data:`SAME_ID_S` no check is needed.
    """

    __slots__ = ("_call_id", "_listener", "_map", "_same_until", "_tid")

    def __init__(self, listener: Waiting, call_id: int, tid: int, writable: WritableMap) -> None:
        self._listener = listener
        self._call_id = call_id
        self._tid = tid
        self._same_until = monotonic() + SAME_ID_S
        self._map = writable

    def read(self, address: int, size: int) -> bytes:
        """See :func:`read_memory`; EFAULT also when the caller may not be looked into."""
        try:
            return read_memory(self._tid, address, size)
        except UnreadableError:
            raise os_error(errno.EFAULT) from None

    def write(self, address: int, data: Buffer) -> int:
        """See :func:`write_memory`; EFAULT also when the caller is gone or may not be changed."""
        try:
            if monotonic() < self._same_until or self._listener.alive(self._call_id):
                return write_memory(self._tid, address, data)
        except UnreadableError:
            pass
        raise os_error(errno.EFAULT)

    def writable(self, address: int, size: int) -> int:
        """See :meth:`WritableMap.extent`."""
        return self._map.extent(address, size)
