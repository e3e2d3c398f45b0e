"""Files whose pages are in a host's memory, which programs have mapped."""

from __future__ import annotations

import errno
import mmap
import os

from recuse.kernel.char.mmap import MmapCall
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.backing import BackingFile
from recuse.kernel.fs.mapping import extend, map_file, refresh, sync_mapping, unmap_file
from recuse.kernel.fs.regular import RegularFile
from recuse.wire.descriptor import OwnedDescriptor
from recuse.wire.fuse import (
    FUSE_AUTO_INVAL_DATA,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_STORE,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_WRITE,
    FUSE_WRITE_CACHE,
    FUSE_WRITEBACK_CACHE,
    fuse_open_out,
)
from recuse.wire.notify import fuse_notify_inval_inode_out, fuse_notify_store_out

from .support import Answer, Asked, always, entry
from .test_mapped import error_of
from .test_writeback import Holding


def test_a_page_that_was_given_up_takes_what_is_written() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.mmap()
    inode = host.file._file.inode
    inode.pages.drop()
    mount.content[4:6] = b"##"
    inode.pages.write(2, b"ww")
    assert host.data[:7] == b"ooww" + b"ooo"  # before it is read again
    host.refresh()
    assert host.data[:7] == b"ooo" + b"o##o"
    inode.pages.drop()
    inode.pages.truncate(3)
    assert host.data[:5] == b"ooo\0\0"
    inode.pages.truncate(5000)
    host.munmap()
    host.file.close()


class Host:
    """Maps memory of its own, in which a test stores something as a program would."""

    def __init__(self, mount: Holding, flags: int = os.O_RDWR) -> None:
        self.mount = mount
        self.file = mount.open("a", flags)
        self.data = bytearray()
        self.room = 1 << 30
        self.writes: list[tuple[int, int]] = []
        """Where it was written, and how much."""
        self.closed: list[None] = []
        self.fails = 0
        """What mmap fails with."""

        regular = self.file._file
        assert isinstance(regular, RegularFile)
        self._regular = regular
        self._caller = self.file._caller
        self._driver = self.file._driver

    def _run(self, operation: Operation[object]) -> None:
        self._driver.run(operation, "a")

    def mmap(self, size: int = 5000, *, offset: int = 0, private: bool = False) -> None:
        how = mmap.PROT_READ | (mmap.PROT_WRITE if private or self._regular.writable else 0)
        kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        call = MmapCall(0, size, how, kind, offset)
        self._run(map_file(self._regular, self._caller, self, call))

    def msync(self) -> None:
        self._run(sync_mapping(self._regular, self._caller))

    def munmap(self) -> None:
        self._run(unmap_file(self._regular))

    def mremap(self, pages: int) -> None:
        self._run(extend(self._regular, self._caller, range(pages)))

    def refresh(self) -> None:
        """Do what a host does after each operation."""
        self._run(refresh(self.mount.superblock))

    # What the kernel half needs

    def memory(self) -> Host:
        return self

    def map(self, memory: OwnedDescriptor, call: MmapCall, flags: int) -> int:
        del memory, flags
        if self.fails:
            raise os_error(self.fails)
        return call.offset + 4096

    def map_backing(self, file: BackingFile, call: MmapCall) -> int:
        raise AssertionError

    def descriptor(self) -> OwnedDescriptor:
        return OwnedDescriptor(-1)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > self.room:
            raise os_error(errno.ENOMEM)
        self.writes.append((offset, len(data)))
        self.data.extend(bytes(max(-(-end // PAGE_SIZE) * PAGE_SIZE - len(self.data), 0)))
        self.data[offset:end] = data

    def shorten(self, size: int) -> None:
        del self.data[size:]

    def close(self) -> None:
        self.closed.append(None)


def writes(mount: Holding) -> list[tuple[int, int, int]]:
    return [
        (asked.body.offset, asked.body.size, asked.body.write_flags)
        for asked in mount.all_of("WRITE")
    ]


def test_all_pages_are_there_and_stores_are_found() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.mmap(20000)
    assert [(one.body.offset, one.body.size) for one in mount.all_of("READ")] == [(0, 8192)]
    assert host.data == b"o" * 5000 + bytes(3192)
    host.data[4094:4098] = b"wxyz"
    assert host.file.pread(6, 4093) == b"owxyzo"
    assert host.file.pwrite(b"!!", 4095) == 2
    assert host.data[4093:4099] == b"ow!!zo"
    mount.clear()
    host.msync()
    assert sorted(mount.sent) == ["FSYNC", "WRITE"]
    assert writes(mount) == [(0, 5000, FUSE_WRITE_CACHE)]
    assert mount.all_of("FSYNC")[0].body.fsync_flags == 1
    mount.clear()
    host.msync()
    assert mount.sent == ["FSYNC"]
    host.data[0:1] = b"1"
    host.file.flush()
    assert writes(mount) == [(0, 4096, FUSE_WRITE_CACHE)]
    host.munmap()
    assert len(host.closed) == 1
    assert bytes(mount.content[:2]) == b"1o"
    host.file.close()


def test_the_last_unmapping_writes_back_and_releases_the_file() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.mmap(4096)
    host.mmap(4096, offset=4096)
    host.file.close()
    host.data[4096:4099] = b"new"
    mount.clear()
    host.munmap()
    assert mount.sent == ["WRITE"]
    assert not host.closed
    host.data[:3] = b"old"
    host.munmap()
    assert mount.sent == ["WRITE", "WRITE", "RELEASE"]
    assert len(host.closed) == 1
    assert bytes(mount.content[:4] + mount.content[4096:4100]) == b"oldonewo"


def test_a_file_becomes_shorter_and_longer() -> None:
    mount = Holding(0)
    host = Host(mount)
    with host.file as file:
        host.mmap(20000)
        host.data[5000:5003] = b"end"  # nobody may see this later
        file.truncate(6000)
        host.refresh()
        assert host.data == b"o" * 5000 + bytes(3192)
        assert not any(mount.content[5000:])
        file.truncate(10)
        assert host.data == b"o" * 10 + bytes(4086)
        file.pwrite(b"far", 12288)
        host.refresh()
        assert host.data == b"o" * 10 + bytes(12278) + b"far" + bytes(4093)
        host.munmap()


def test_what_is_given_up_is_read_anew_and_stores_win() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.mmap()
    mount.content[0:2] = b"nn"
    host.data[1] = 33
    host.writes.clear()
    mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=5, off=0, len=0))
    assert mount.content[:3] == b"o!o"  # as Linux writes the whole page back before
    mount.content[4098] = 34
    mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=5, off=0, len=0))
    assert host.data[4097:4100] == b'o"o'
    assert host.writes == [(4098, 1)]
    mount.notify(FUSE_NOTIFY_STORE, fuse_notify_store_out(nodeid=5, offset=4096, size=2), b"st")
    assert host.data[4096:4100] == b'st"o'
    assert host.writes[1:] == [(4096, 2)]
    host.munmap()
    host.file.close()


def test_the_server_has_other_attributes() -> None:
    mount = Holding(FUSE_AUTO_INVAL_DATA)
    host = Host(mount)
    host.mmap(20000)
    host.data[0] = 33
    mount.content[1] = 34
    mount.content += b"more" * 2000
    mount.names["a"] = entry(5, size=13000, mtime=7)
    mount.now += 200 * 10**9
    mount.stat("a")
    host.refresh()
    assert bytes(host.data[:3]) == b"!oo"  # of a page with stores, all
    assert bytes(host.data[4096:13000]) == bytes(mount.content[4096:])
    host.munmap()
    host.file.close()


def test_an_open_without_the_cache_writes_back_and_reads_anew() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.mmap()
    host.data[0] = 33
    mount.answers[FUSE_OPEN] = always(fuse_open_out(fh=8))
    mount.clear()
    host.writes.clear()
    mount.open("a").close()
    host.refresh()
    assert mount.sent[:4] == ["OPEN", "WRITE", "FLUSH", "RELEASE"]
    assert mount.sent[4:] == ["READ"]
    assert host.writes == []  # a program may store something at any time
    host.munmap()
    host.file.close()


def test_writeback_keeps_times_here() -> None:
    mount = Holding(FUSE_WRITEBACK_CACHE)
    host = Host(mount)
    host.mmap(8192)
    host.data[9:11] = b"ab"
    assert host.file.pwrite(b"c", 10) == 1
    assert bytes(host.data[8:12]) == b"oaco"
    assert host.file.pwrite(b"d", 8192) == 1
    host.refresh()
    host.msync()
    assert mount.sent[-4:] == ["WRITE", "WRITE", "SETATTR", "FSYNC"]
    host.munmap()
    host.file.close()
    assert bytes(mount.content[8:12]) == b"oaco"


def test_private_and_read_only_mappings_are_not_compared() -> None:
    mount = Holding(0)
    host = Host(mount, os.O_RDONLY)
    host.mmap()
    host.mmap(private=True)
    host.data[0] = 33
    assert host.file.pread(1, 0) == b"o"
    host.munmap()
    host.munmap()
    host.file.close()
    assert "WRITE" not in mount.sent


def test_what_fails() -> None:
    mount = Holding(0)
    host = Host(mount)
    host.fails = errno.EPERM
    assert error_of(host.mmap) == "EPERM"
    assert len(host.closed) == 1
    host.fails, host.room = 0, 4096
    assert error_of(host.mmap) == "ENOMEM"
    assert len(host.closed) == 2
    host.room = 1 << 30
    read = mount.answers.pop(FUSE_READ)
    mount.drop_caches()
    mount.answers[FUSE_READ] = always(-errno.EREMOTEIO)
    assert error_of(host.mmap) == "EREMOTEIO"
    mount.answers[FUSE_READ] = read
    host.mmap(4096)
    host.mremap(2)
    assert len(host.data) == 8192
    host.data[0] = 1
    mount.answers[FUSE_WRITE] = always(-errno.ENOSPC)
    assert error_of(host.msync) == "ENOSPC"
    assert error_of(host.msync) == ""
    host.data[0] = 2
    host.munmap()
    assert error_of(host.file.fsync) == "ENOSPC"
    host.file.close()


def test_what_is_read_while_it_changes_is_read_again() -> None:
    mount = Holding(0)
    host = Host(mount)
    read, changes = mount.answers[FUSE_READ], [b"1", b"2"]

    def changing(asked: Asked) -> Answer:
        answer = read(asked)
        if changes:
            mount.content[0:1] = changes.pop()
            mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=5, off=0, len=0))
        return answer

    mount.answers[FUSE_READ] = changing
    host.mmap()
    assert host.data[:2] == b"1o"
    host.munmap()
    host.file.close()
