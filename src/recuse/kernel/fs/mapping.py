"""Regular files that are mapped into memory (fs/fuse/file.c, fuse_file_mmap; mm/filemap.c).

A mapping shows the pages that read(2) and write(2) use too. What is stored in a shared one is dirty
until it is written back: by msync(2), by the end of the mapping, and by what else does that.

A host maps memory of its own into programs (`map_file`), or it has none, and asks for each page
that is touched (`map_pages`).
"""

import contextlib
import errno
import os
import threading
from typing import Final, Protocol, TypeVar

from recuse.kernel.char.mmap import PROT_WRITE, Mapping, MmapCall, check
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.backing import BackingFile
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.memory import Memory, PagesInMemory
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import drop_pages, modified, write_inode_now
from recuse.wire.descriptor import OwnedDescriptor
from recuse.wire.fuse import FUSE_DIRECT_IO_ALLOW_MMAP

T = TypeVar("T")

_MOST_ATTEMPTS: Final = 10
"""As often a page is asked for that is invalid again when it arrives."""


class _Mapped(PagesInMemory):
    """The pages of a file that is mapped.

    users
        For each mapping, the file that was mapped, and who mapped it.
    """

    def __init__(self, memory: Memory, lock: threading.Lock) -> None:
        super().__init__(memory, lock)
        self.users: list[tuple[RegularFile, FileCaller]] = []


def _mapped(inode: Inode) -> _Mapped | None:
    there = inode.pages.memory
    assert there is None or isinstance(there, _Mapped)
    return there


class FileMapper(Protocol):
    """Maps memory into the caller's, while the caller waits."""

    def memory(self) -> Memory:
        """Make memory for a file's pages. Raises OSError(ENFILE)."""

    def map(self, memory: OwnedDescriptor, call: MmapCall, flags: int) -> int:
        """See `recuse.kernel.char.mmap.Mapper`."""

    def map_backing(self, file: BackingFile, call: MmapCall) -> int:
        """Map a file of the machine's; return the address. Nobody is told when that ends."""


def _begin(file: RegularFile, shared: bool, writable: bool) -> Operation[None]:
    """Do what mmap(2) does before anything is mapped (mm/mmap.c, do_mmap; fuse_file_mmap)."""
    inode, superblock = file.inode, file.superblock
    if not file.readable or (shared and writable and not file.writable):
        raise os_error(errno.EACCES)
    inode.check()
    if file.backing is not None:
        return
    if inode.io_mode is not None and inode.io_mode.backing is not None:
        raise os_error(errno.ENODEV)
    if file.is_direct:
        if shared and not superblock.has(FUSE_DIRECT_IO_ALLOW_MMAP):
            raise os_error(errno.ENODEV)
        yield from drop_pages(superblock, inode)
        if shared:
            file.use_cache()
    if shared and file.writable:
        file.can_write_back()


def _end(file: RegularFile) -> Operation[None]:
    """Write back what is dirty; who has the file open hears of errors (fuse_vma_close)."""
    try:
        yield from write_inode_now(file.superblock, file.inode)
    except OSError as error:
        file.inode.errors.add(error.errno or errno.EIO)


def sync_mapping(file: RegularFile, caller: FileCaller) -> Operation[None]:
    """Do msync(2) with MS_SYNC. Raises OSError: as `FilesystemFile.sync`."""
    return _held(file, file.sync_held(caller, data_only=True))


def _held(file: RegularFile, operation: Operation[T]) -> Operation[T]:
    """Run an operation; the file may be closed by now, but it is not released yet."""
    file.hold()
    return file.running(operation, mapped=True)


# With memory of the host's


def map_file(
    file: RegularFile, caller: FileCaller, mapper: FileMapper, call: MmapCall
) -> Operation[Mapping | None]:
    """Map a file; `unmap_file` ends that. None if its backing file was mapped.

    All pages that are mapped are read now. If one cannot be, nothing is mapped: Linux reads a page
    when it is touched, and a program then gets SIGBUS.

    Raises OSError like `recuse.kernel.char.mmap.check`; ENODEV if the file is not read through the
    page cache, or others have it open with a backing file; what the server answers to a READ;
    ENOMEM, ENFILE, EINTR; or the error of the mapping.
    """
    return file.running(_map(file, caller, mapper, call))


def _map(
    file: RegularFile, caller: FileCaller, mapper: FileMapper, call: MmapCall
) -> Operation[Mapping | None]:
    check(call, file.flags & os.O_ACCMODE, True, executable=True)
    yield from _begin(file, not call.private, bool(call.protection & PROT_WRITE))
    if file.backing is not None:
        mapper.map_backing(file.backing, call)
        return None
    inode, superblock = file.inode, file.superblock
    first = call.offset // PAGE_SIZE
    pages = range(first, first + call.pages // PAGE_SIZE)
    yield from _read_before(file, caller, pages)
    yield from superblock.lock(inode)
    try:
        there = _attach(file, caller, mapper)
        there.writable = there.writable or (not call.private and file.writable)
        try:
            yield from _fill(file, caller, there, pages)
        except BaseException:
            _detach(file, there)
            raise
    finally:
        superblock.unlock(inode)
    try:
        address = mapper.map(there.memory.descriptor(), call, 0)
    except Exception:
        yield from _leave(file)
        raise
    file.hold()
    return Mapping(0, address, call.pages, 0)


def unmap_file(file: RegularFile) -> Operation[None]:
    """Note that nothing is left of a mapping. Call it once for each from `map_file`."""
    return file.running(_unmap(file), mapped=True)


def _unmap(file: RegularFile) -> Operation[None]:
    yield from _end(file)
    yield from _leave(file)


def _attach(file: RegularFile, caller: FileCaller, mapper: FileMapper) -> _Mapped:
    inode, superblock = file.inode, file.superblock
    there = _mapped(inode)
    if there is None:
        there = inode.pages.memory = _Mapped(mapper.memory(), inode.pages.lock)
        superblock.mapped.add(inode)
    there.users.append((file, FileCaller(caller.pid, caller.uid, caller.gid)))
    return there


def _leave(file: RegularFile) -> Operation[None]:
    inode, superblock = file.inode, file.superblock
    yield from superblock.lock(inode)
    try:
        there = _mapped(inode)
        assert there is not None
        _detach(file, there)
    finally:
        superblock.unlock(inode)


def _detach(file: RegularFile, there: _Mapped) -> None:
    there.users.remove(next(user for user in there.users if user[0] is file))
    if not there.users:
        with there.lock:
            file.inode.pages.memory = None
            there.memory.close()
        file.superblock.mapped.discard(file.inode)


def _read_before(file: RegularFile, caller: FileCaller, pages: range) -> Operation[None]:
    """Read pages that will be mapped: whoever writes to the file meanwhile need not wait for that.

    In Linux nobody has the inode's lock while a page is read that is touched. Raises the server's
    OSError.
    """
    inode = file.inode
    number = pages.start
    while number < (after := min(pages.stop, -(-inode.attr.size // PAGE_SIZE))):
        if inode.pages.get(number) is not None:
            number += 1
            continue
        data = yield from file.ask_pages(caller, number, after - number)
        number += len(data) // PAGE_SIZE


def _fill(
    file: RegularFile, caller: FileCaller, there: _Mapped, pages: range = range(0)
) -> Operation[None]:
    """Put all pages there that are mapped, and these, unless that fails. The inode's lock is held.

    From the beginning on others take them to be there: they must not wait for the server as well.
    """
    inode = file.inode
    size = inode.attr.size
    if size < there.complete:
        with there.lock:
            there.truncate(size)
    there.stale, there.complete = False, size
    added = there.map(pages) if pages else False
    try:
        yield from _ask_lacking(file, caller, there)
    except BaseException:
        if added:
            there.unmap(pages)
        raise


def _ask_lacking(file: RegularFile, caller: FileCaller, there: _Mapped) -> Operation[None]:
    inode = file.inode
    for number, most in there.lacking(inode.attr.size):
        attempts = 0
        while number not in there and number * PAGE_SIZE < inode.attr.size:
            if inode.pages.show(number):
                break
            if attempts == _MOST_ATTEMPTS:
                raise os_error(errno.EIO)
            attempts += 1
            yield from file.ask_pages(caller, number, most)


def extend(file: RegularFile, caller: FileCaller, pages: range) -> Operation[None]:
    """Show further pages in the memory of a file that is mapped, as mremap(2) is about to."""
    return _held(file, _extend(file, caller, pages))


def _extend(file: RegularFile, caller: FileCaller, pages: range) -> Operation[None]:
    inode, superblock = file.inode, file.superblock
    yield from _read_before(file, caller, pages)
    yield from superblock.lock(inode)
    try:
        there = _mapped(inode)
        if there is not None:
            yield from _fill(file, caller, there, pages)
    finally:
        superblock.unlock(inode)


def refresh(superblock: Superblock) -> Operation[None]:
    """Have mappings show what has changed: pages that were given up, and a file's new size.

    A host runs it after operations: nobody tells it when a program touches a page. What cannot be
    read stays as it was until it is read by somebody, or programs get SIGBUS there.
    """
    for inode in list(superblock.mapped):
        there = _mapped(inode)
        if there is not None and there.is_outdated(inode.attr.size):
            with contextlib.suppress(IndexError):  # it has just been unmapped
                file, caller = there.users[-1]
                yield from _held(file, _refresh(file, caller, there))


def _refresh(file: RegularFile, caller: FileCaller, there: _Mapped) -> Operation[None]:
    inode, superblock = file.inode, file.superblock
    yield from superblock.lock(inode)
    try:
        if there is _mapped(inode) and there.is_outdated(inode.attr.size):
            with contextlib.suppress(OSError):
                yield from _fill(file, caller, there)
    finally:
        superblock.unlock(inode)


# Without


def map_pages(file: RegularFile, *, shared: bool, writable: bool) -> Operation["MappedPages"]:
    """Map a file; `MappedPages.close` ends that.

    Raises OSError: EACCES if it is not open for this; ENODEV if it is not read through the page
    cache, or others have it open with a backing file.
    """
    return file.running(_map_pages(file, shared, writable))


def _map_pages(file: RegularFile, shared: bool, writable: bool) -> Operation["MappedPages"]:
    yield from _begin(file, shared, writable)
    file.hold()
    return MappedPages(file, shared, writable)


class MappedPages:
    """A mapping of a whole file; offsets are in bytes from the file's beginning.

    If the file has a ``backing`` file, that one is read and written.
    """

    def __init__(self, file: RegularFile, shared: bool, writable: bool) -> None:
        self.file = file
        self.shared = shared
        self.writable = writable
        self._copies: dict[int, bytes] = {}
        """A private mapping's own pages."""

    @property
    def backing(self) -> BackingFile | None:
        """What is mapped instead of the page cache."""
        return self.file.backing

    def read(self, caller: FileCaller, offset: int, size: int) -> Operation[bytes]:
        """Return what a program sees there.

        Raises OSError: EFAULT behind the page with the file's end, where a program gets SIGBUS;
        EIO, or what the server answers.
        """
        return _held(self.file, self._read(caller, offset, size))

    def _read(self, caller: FileCaller, offset: int, size: int) -> Operation[bytes]:
        parts = []
        first = offset // PAGE_SIZE
        for number in range(first, -(-(offset + size) // PAGE_SIZE)):
            parts.append((yield from self._page(caller, number)))
        skipped = offset - first * PAGE_SIZE
        return b"".join(parts)[skipped : skipped + size]

    def _page(self, caller: FileCaller, number: int) -> Operation[bytes]:
        copy = self._copies.get(number)
        if copy is not None:
            return copy
        backing = self.backing
        if backing is not None:
            page = backing.read(PAGE_SIZE, number * PAGE_SIZE)
            if not page:
                raise os_error(errno.EFAULT)
            return page.ljust(PAGE_SIZE, b"\0")
        return (yield from self.file.fault(caller, number))

    def write(self, caller: FileCaller, offset: int, data: bytes) -> Operation[None]:
        """Change what a program sees there. Raises OSError: as `read`; EACCES."""
        return _held(self.file, self._write(caller, offset, data))

    def _write(self, caller: FileCaller, offset: int, data: bytes) -> Operation[None]:
        if not self.writable:
            raise os_error(errno.EACCES)
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, PAGE_SIZE)
            part = data[done : done + PAGE_SIZE - inside]
            page = yield from self._page(caller, number)
            if not self.shared:
                self._copies[number] = page[:inside] + part + page[inside + len(part) :]
            elif self.backing is not None:
                self.backing.write(part, offset + done, 0)
            elif not self._dirty(offset + done, part):
                continue  # the page was given up, and is touched again
            done += len(part)

    def _dirty(self, offset: int, part: bytes) -> bool:
        # fuse_page_mkwrite
        inode, superblock = self.file.inode, self.file.superblock
        modified(superblock, inode)
        superblock.dirty.add(inode)
        return inode.pages.dirtied(offset, part)

    def sync(self, caller: FileCaller) -> Operation[None]:
        """Do msync(2) with MS_SYNC. Raises OSError: as `FilesystemFile.sync`."""
        return sync_mapping(self.file, caller)

    def close(self) -> Operation[None]:
        """End it: write back what is dirty (fuse_vma_close). Call it once."""
        return self.file.running(_nothing() if self.backing else _end(self.file), mapped=True)


def _nothing() -> Operation[None]:
    return
    yield
