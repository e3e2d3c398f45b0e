"""An archive as a filesystem: a zip, or a tar that may be compressed (gz, bz2, xz, zstd).

Try it on an empty directory, here `files`::

    $ tar -C /usr/include -czf headers.tar.gz linux

    $ recuse mount --private examples/archive.py,path=headers.tar.gz files -- bash
    $ grep -rl FUSE_SUPER_MAGIC files
    files/linux/magic.h
    $ cmp files/linux/fuse.h /usr/include/linux/fuse.h

Nothing is unpacked before a program reads it, and a file need not fit into memory.
"""

import errno
import logging
import os
import stat
import struct
import tarfile
import time
import zipfile
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from functools import partial
from typing import IO, Any, cast

from unpack import BLOCK, COMPRESSIONS, KEPT, Source, Stored, Unpacker

import recuse
from recuse import Directory, Node, OpenRequest

SPECIAL = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
ENCRYPTED, UTF_8 = 1, 0x800
UNIX = 3
DOS_DIRECTORY = 0x10
UNIX_TIME = 0x5455
LOCAL_HEADER = struct.Struct("<26xHH")
"""The lengths of a name and of extra fields, after which the content of a zip's member begins."""
NAME_MAX, PATH_MAX = 255, 4095
OWNERS, MAJORS, MINORS = range((1 << 32) - 1), range(1 << 12), range(1 << 20)
"""What Linux can have.  An archive may have more."""

log = logging.getLogger(__name__)


class Member(recuse.RegularFile):
    """A file in the archive."""

    size: int

    def __init__(self, name: str, size: int, source: Callable[[], Source]) -> None:
        self.name = name
        self.size = size
        self.source = source
        self.pieces = [(0, size, 0)]
        """All but the holes: offset, size, and offset in the source."""
        self.logged = False

    def open(self, request: OpenRequest) -> "MemberFile":
        with self.damage_is_eio():
            return MemberFile(self, self.source())

    @contextmanager
    def damage_is_eio(self) -> Iterator[None]:
        """Answer EIO whatever the standard library raises because of what it has to unpack."""
        try:
            yield
        except Exception as error:
            # EINVAL is an offset that cannot be.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            unknown = isinstance(error, NotImplementedError)
            if not self.logged:  # the kernel tries a read more than once
                self.logged = True
                what = "cannot be unpacked" if unknown else "is damaged"
                log.warning("%r %s: %s", self.name, what, error)
            raise OSError(errno.EOPNOTSUPP if unknown else errno.EIO, str(error)) from error


class MemberFile(recuse.OpenFile):
    """One open of it."""

    keep_cache = True

    def __init__(self, member: Member, source: Source) -> None:
        self.member = member
        self.source = source

    def read(self, size: int, offset: int) -> bytes:
        pieces = self.member.pieces
        end = min(offset + size, self.member.size)
        content = bytearray(max(0, end - offset))
        first, last = bisect(pieces, (offset,)), bisect(pieces, (end,))
        for start, length, place in pieces[max(0, first - 1) : last]:
            low, high = max(offset, start), min(end, start + length)
            if low < high:
                with self.member.damage_is_eio():
                    data = self.source.read(high - low, place + low - start)
                    if len(data) < high - low:
                        raise EOFError("it ends too early")
                content[low - offset : high - offset] = data
        return bytes(content)

    def seek(self, offset: int, whence: int) -> int:
        pieces, size = self.member.pieces, self.member.size
        end = offset
        if offset < size:
            for start, length, _ in pieces[max(0, bisect(pieces, (offset,)) - 1) :]:
                if end < start + length:
                    if whence == os.SEEK_DATA:
                        return max(offset, start)
                    if end < start:
                        break
                    end = start + length
            if whence == os.SEEK_HOLE:
                return end
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


class ZipSymlink(recuse.Symlink):
    """A symbolic link in a zip: its target is the member's content."""

    size: int

    def __init__(self, member: Member) -> None:
        self.member = member
        self.size = member.size

    def readlink(self) -> str:
        with self.member.damage_is_eio():
            return os.fsdecode(self.member.source().read(self.size, 0))


class Header(tarfile.TarInfo):
    """A tar's header.  tarfile takes a damaged one for the end of the archive; it is not."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "Header":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not bytes(buf).strip(b"\0"):
                raise
            raise tarfile.ReadError(str(error)) from error


class Archive(recuse.Filesystem):
    """The filesystem."""

    name = "archive"
    read_only = True
    cache_s = 1e6
    """Nothing changes."""

    def __init__(self, path: str) -> None:
        super().__init__(Directory())
        self.lacks: dict[str, list[str]] = {}
        self.closing = ExitStack()
        try:
            descriptor = os.open(path, os.O_RDONLY)
            self.closing.callback(os.close, descriptor)
            self.stored = Stored(descriptor)
            # Each open of this has a position of its own, in the same file even if that is renamed.
            self.path = f"/proc/self/fd/{descriptor}"
            self.read_index()
        except Exception as error:
            self.close()
            why = getattr(error, "strerror", None) or error
            raise recuse.ArgumentError(f"{path}: {why}") from error
        for lack, names in self.lacks.items():
            log.warning("%s: %r: %s (1 of %d)", path, names[0], lack, len(names))

    def close(self) -> None:
        self.closing.close()

    def statistics(self) -> recuse.Statistics:
        used = os.fstat(self.stored.descriptor).st_blocks
        return recuse.Statistics(blocks=used, block_size=512)

    def lack(self, what: str, name: str) -> None:
        """Note what programs will miss."""
        self.lacks.setdefault(what, []).append(name)

    def read_index(self) -> None:
        begun = self.stored.read(8, 0)
        for magic, opener in COMPRESSIONS.items():
            if begun.startswith(magic):
                unpacker = Unpacker(partial(opener, self.path))
                self.closing.callback(unpacker.close)
                with opener(self.path) as file:
                    self.add_tar(file, unpacker)
                    while file.read(BLOCK):  # as far as the checksum
                        pass
                return
        # Not the other way round: the last file in a tar may be a zip.
        if tarfile.is_tarfile(self.path):
            with open(self.path, "rb") as file:
                self.add_tar(file, self.stored)
        elif not zipfile.is_zipfile(self.path):
            raise ValueError("is neither a zip nor a tar, or is damaged")
        else:
            file = open(self.path, "rb")  # noqa: SIM115 - members are read from it
            self.closing.callback(file.close)
            self.add_zip(zipfile.ZipFile(file))

    def add_tar(self, file: IO[bytes], source: Source) -> None:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
            for info in tar:
                if info.size < 0:
                    raise tarfile.ReadError(f"{info.name!r}: size {info.size}")
                if info.islnk():
                    self.put_link(info.name, info.linkname)
                    continue
                numbered = info.devmajor in MAJORS and info.devminor in MINORS
                if info.type in SPECIAL and not numbered:
                    self.lack("no such device number", info.name)
                    continue
                node = self.put(info.name, self.made(info, source))
                node.mode = info.mode
                if os.geteuid() == 0:  # as for tar, and all is yours otherwise
                    if info.uid in OWNERS and info.gid in OWNERS:
                        node.uid, node.gid = info.uid, info.gid
                    else:
                        self.lack("no such owner", info.name)
                try:
                    node.atime_ns = node.mtime_ns = node.ctime_ns = tar_time_ns(info)
                except ArithmeticError:
                    self.lack("no such time", info.name)

    def made(self, info: tarfile.TarInfo, source: Source) -> Node:
        """Return a node for a member of a tar."""
        if info.isdir():
            return Directory()
        if info.issym():
            return recuse.Symlink(info.linkname)
        if info.isfifo():
            return recuse.Special(stat.S_IFIFO)
        if info.type in SPECIAL:
            return recuse.Special(SPECIAL[info.type], os.makedev(info.devmajor, info.devminor))
        member = Member(info.name, info.size, lambda: source)
        place, member.pieces = info.offset_data, []
        sparse = cast("list[tuple[int, int]] | None", info.sparse)
        for start, size in [(0, info.size)] if sparse is None else sparse:
            if size:
                member.pieces.append((start, size, place))
            place += size
        member.blocks = -(-sum(size for _, size, _ in member.pieces) // 512)
        return member

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            name, mode = zip_name(info), info.external_attr >> 16
            if info.flag_bits & ENCRYPTED:
                self.lack("encrypted, so no program can read it", name)
            member = Member(name, info.file_size, partial(self.open_zipped, archive, info))
            node: Node = member
            if stat.S_ISLNK(mode):
                node = ZipSymlink(member)
            elif name.endswith("/") or info.external_attr & DOS_DIRECTORY:
                node = Directory()
            node = self.put(name, node)
            node.mode = mode or type(node).mode
            node.atime_ns = node.mtime_ns = node.ctime_ns = zip_time_ns(info)

    def open_zipped(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Source:
        if info.flag_bits & ENCRYPTED:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unpacker = Unpacker(partial(archive.open, info))
        if info.compress_type != zipfile.ZIP_STORED or info.file_size <= KEPT:
            return unpacker
        # Read it where it lies.  That leaves out its checksum, which is about all of it.
        unpacker.close()
        header = self.stored.read(LOCAL_HEADER.size, info.header_offset)
        start = info.header_offset + len(header) + sum(LOCAL_HEADER.unpack(header))
        return Stored(self.stored.descriptor, start)

    def put(self, path: str, node: Node) -> Node:
        """Put a node at a path instead of what is there, and return it.

        But a directory that is there stays, and is returned.
        """
        names = parts(path)
        if any(len(os.fsencode(name)) > NAME_MAX for name in names):
            self.lack("too long a name", path)
            return node
        if isinstance(node, Directory):
            return self.directory(names)
        if not names:
            self.lack("no name for a file", path)
            return node
        if isinstance(node, recuse.Symlink) and not 0 < (node.size or 0) <= PATH_MAX:
            self.lack("too long a target of a symbolic link, or none", path)
            return node
        children = self.directory(names[:-1]).children
        if names[-1] in children:
            children[names[-1]].nlink -= 1
        children[names[-1]] = node
        return node

    def put_link(self, path: str, target: str) -> None:
        """Give what is at a path another one."""
        node: Node | None = self.root
        for name in parts(target):
            node = node.children.get(name) if isinstance(node, Directory) else None
        if node is None or isinstance(node, Directory):
            self.lack("a hard link to nothing", path)
        else:
            self.put(path, node).nlink += 1

    def directory(self, names: list[str]) -> Directory:
        """Return the directory at a path.  Those that are not there are made."""
        directory = self.root
        for name in names:
            child = directory.children.get(name)
            if not isinstance(child, Directory):
                child = directory.children[name] = Directory()
            directory = child
        return directory


def parts(path: str) -> list[str]:
    """Return the names in a path.  What leads out of the archive is left out, as by unzip."""
    return [name for name in path.partition("\0")[0].split("/") if name not in ("", ".", "..")]


def tar_time_ns(info: tarfile.TarInfo) -> int:
    """Return when a member was changed.  Raises ArithmeticError for no time that Linux can have."""
    seconds = Decimal(info.pax_headers.get("mtime", info.mtime))
    if not abs(seconds) < 1 << 63:
        raise OverflowError
    return int(seconds * 10**9)


def zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's path.  Packers for Unix do not say that they use UTF-8."""
    if info.create_system == UNIX and not info.flag_bits & UTF_8:
        return os.fsdecode(info.orig_filename.encode("cp437"))
    return info.filename


def zip_time_ns(info: zipfile.ZipInfo) -> int:
    """Return when a member was changed: to the second if the packer was for Unix."""
    extra = info.extra
    while len(extra) >= 9:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == UNIX_TIME and extra[4] & 1:
            seconds: int = struct.unpack_from("<i", extra, 5)[0]
            return seconds * 10**9
        extra = extra[4 + size :]
    return int(time.mktime((*info.date_time, 0, 0, -1))) * 10**9
