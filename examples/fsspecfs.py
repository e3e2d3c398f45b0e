"""Any filesystem that fsspec knows, by its URL: memory, zip, http, S3 and many more.

Try it on an empty directory, here `files`::

    $ recuse mount --private examples/fsspecfs.py,url=memory:// files -- bash
    $ mkdir files/d; echo hello >files/d/file; mv files/d/file files/other
    $ cat files/other
    hello

What a program writes is kept in a temporary file, and goes there when the program closes the file.
So a program may write here and there, and gets an error from close if that cannot be stored.
"""

import errno
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any
from urllib.parse import quote, unquote
from weakref import WeakValueDictionary

import recuse
from recuse import Changes, Entry, Node, OpenFile, OpenRequest

try:
    from fsspec import AbstractFileSystem
    from fsspec.archive import AbstractArchiveFileSystem
    from fsspec.core import url_to_fs
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"{missing.name} is needed: pip install fsspec") from missing

TIMES = ("mtime", "modified", "LastModified", "last_modified", "updated", "created")
TOUCH_NS = 2 * 10**9
STATUS = {401: errno.EACCES, 403: errno.EACCES}

log = logging.getLogger(__name__)


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class RemoteNode(Node):
    """A file or directory.  It knows its directory, not its path, which may be renamed."""

    def __init__(self, volume: "Volume", directory: "RemoteDirectory | None", name: str) -> None:
        self.volume = volume
        self.directory = directory
        self.name = name
        self.gone = False
        self.told_until = 0.0
        self.logged = ""

    @property
    def path(self) -> str:
        return self.name if self.directory is None else self.directory.path_of(self.name)

    @contextmanager
    def errors(self, otherwise: int = errno.EIO) -> Iterator[None]:
        """Give programs an errno for whatever fsspec raises: ``otherwise`` if it cannot do that."""
        try:
            yield
        except NotImplementedError as cause:
            raise error(otherwise) from cause
        except TimeoutError as cause:
            raise error(cause.errno or errno.ETIMEDOUT) from cause
        except OSError as cause:
            if type(cause) is OSError and cause.errno is None:
                raise error(otherwise) from cause
            raise
        except Exception as cause:
            text = f"{type(cause).__name__}: {cause}"
            if text != self.logged:  # the kernel tries a read more than once
                self.logged = text
                log.warning("%r: %s", self.path, text)
            raise error(STATUS.get(getattr(cause, "status", 0), errno.EIO)) from cause

    def tell(self, info: dict[str, Any]) -> None:
        """Take over what fsspec says."""
        self.told_until = time.monotonic() + self.volume.cache_s
        self.mode = info.get("mode", type(self).mode)
        self.uid, self.gid = info.get("uid", self.uid), info.get("gid", self.gid)
        for changed in filter(None, map(info.get, TIMES)):
            seconds = changed.timestamp() if isinstance(changed, datetime) else changed
            if isinstance(seconds, int | float):
                self.mtime_ns = self.ctime_ns = int(seconds * 10**9)
                break

    def attributes(self) -> "RemoteNode":
        if not self.gone and time.monotonic() > self.told_until:
            with self.errors():
                self.tell(self.volume.fs.info(self.path))
        return self

    def change(self, changes: Changes) -> None:
        """Change the size.  fsspec has nothing for the rest, except for setting times to now."""
        for times_ns in (changes.mtime_ns, changes.atime_ns):
            if times_ns is not None and abs(times_ns - time.time_ns()) > TOUCH_NS:
                raise error(errno.EPERM)
        if changes.uid not in (None, self.uid) or changes.gid not in (None, self.gid):
            raise error(errno.EPERM)
        if changes.mode not in (None, stat.S_IMODE(self.mode)):
            raise error(errno.EPERM)
        if changes.size is not None and isinstance(self, RemoteFile):
            self.truncate(changes.size)
        elif changes.mtime_ns is not None and isinstance(self, RemoteFile):
            self.touch()


class RemoteFile(RemoteNode, recuse.RegularFile):
    """A file.  While it is open for writing, its content is in a temporary file.

    For reading too, if a server on the web gives out files only as a whole.
    """

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self.lock = threading.RLock()
        self.spool: IO[bytes] | None = None
        self.users = 0
        self.written = False
        self.whole = False

    def tell(self, info: dict[str, Any]) -> None:
        super().tell(info)
        self.size = info["size"]
        self.whole = self.volume.web and not info.get("partial")

    def attributes(self) -> RemoteNode:
        with self.lock:
            if self.spool is None or not self.written:
                return super().attributes()
            found = os.fstat(self.spool.fileno())
            self.size, self.mtime_ns = found.st_size, found.st_mtime_ns
            return self

    def open(self, request: OpenRequest) -> OpenFile:
        with self.lock:
            if self.spool or self.whole or request.flags & os.O_ACCMODE != os.O_RDONLY:
                return Spooled(self, self.borrow())
            with self.errors():
                return Reader(self, self.volume.fs.open(self.path, "rb"))

    def borrow(self) -> int:
        """Return a descriptor of the temporary file, which is there until `give_back`."""
        with self.lock:
            if self.spool is None:
                spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see `give_back`
                try:
                    with self.errors():
                        self.volume.fs.get_file(self.path, spool)
                except BaseException:
                    spool.close()
                    raise
                self.spool = spool
            self.users += 1
            return self.spool.fileno()

    def give_back(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.spool is not None:
                try:
                    self.upload()
                finally:
                    self.spool.close()
                    self.spool, self.written = None, False

    def upload(self) -> None:
        """Send what programs have written."""
        with self.lock:
            if self.written and not self.gone and self.spool is not None:
                # Before that: what is written meanwhile may come too late to be sent.
                self.written, self.told_until = False, 0.0
                self.spool.seek(0)
                try:
                    with self.errors(errno.EROFS), self.volume.fs.open(self.path, "wb") as file:
                        shutil.copyfileobj(self.spool, file)
                except BaseException:
                    self.written = True
                    raise

    def truncate(self, size: int) -> None:
        with self.lock:
            if size == 0 and self.spool is None:
                with self.errors(errno.EROFS):
                    self.volume.fs.touch(self.path, truncate=True)
                self.told_until = 0.0
                return
            descriptor = self.borrow()
            try:
                os.ftruncate(descriptor, size)
                self.written = True
            finally:
                self.give_back()

    def touch(self) -> None:
        with self.lock:
            if self.spool is not None:
                os.utime(self.spool.fileno())
                self.written = True
            else:
                with self.errors(errno.EPERM):
                    self.volume.fs.touch(self.path, truncate=False)
                self.told_until = 0.0


class Reader(OpenFile):
    """One open of a file that is read where it is."""

    def __init__(self, node: RemoteFile, file: IO[bytes]) -> None:
        self.node = node
        self.file = file

    def read(self, size: int, offset: int) -> bytes:
        # Two opens may have one position: those of memory:// do.
        with self.node.lock, self.node.errors():
            if self.file.tell() != offset:
                self.file.seek(offset)
            return self.file.read(size)

    def release(self) -> None:
        self.file.close()


class Spooled(OpenFile):
    """One open of a file that is in a temporary file."""

    def __init__(self, node: RemoteFile, descriptor: int) -> None:
        self.node = node
        self.backing: int = descriptor

    def write(self, data: bytes, offset: int) -> int:
        count = os.pwrite(self.backing, data, offset)
        self.node.written = True
        return count

    def flush(self) -> None:
        self.node.upload()

    def sync(self, data_only: bool) -> None:
        self.node.upload()

    def release(self) -> None:
        self.node.give_back()


class RemoteDirectory(RemoteNode, recuse.Directory):
    """A directory."""

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self.lock = threading.Lock()
        self.known: WeakValueDictionary[str, RemoteNode] = WeakValueDictionary()
        self.listed: dict[str, str] | None = None

    def path_of(self, name: str) -> str:
        name = quote(name) if self.volume.web else name
        return f"{self.path.rstrip('/')}/{name}" if self.path else name

    def node(self, name: str, info: dict[str, Any]) -> Node:
        kind = KINDS.get(info["type"])
        if kind is None:
            return recuse.Special(info["mode"])
        with self.lock:
            node = self.known.get(name)
            if type(node) is not kind:
                node = self.known[name] = kind(self.volume, self, name)
        node.tell(info)
        return node

    def lookup(self, name: str) -> Node | None:
        if self.volume.web:
            # Of one URL nobody can tell whether it is a directory.
            if self.listed is None:
                list(self.entries())
            if self.listed and self.listed.get(name) == "directory":
                return self.node(name, {"type": "directory"})
        try:
            with self.errors():
                return self.node(name, self.volume.fs.info(self.path_of(name)))
        except FileNotFoundError:
            return None

    def entries(self) -> Iterator[Entry | tuple[str, Node]]:
        top = f"{self.path.strip('/')}/".lstrip("/")
        with self.errors():
            infos = self.volume.fs.ls(self.path, detail=True)
        self.listed = {}
        for info in infos:
            # A page on the web has all kinds of links; elsewhere a directory may list itself.
            path = info["name"].strip("/")
            name = path.removeprefix(top)
            if (top and name == path) or "/" in name or (self.volume.web and "?" in name):
                continue
            name = unquote(name) if self.volume.web else name
            self.listed[name] = info["type"]
            if info["type"] == "other" or info["size"] is None:
                yield Entry(name, 0)
            else:
                yield name, self.node(name, info)

    def create(self, name: str, mode: int) -> Node:
        path = self.path_of(name)
        with self.errors(errno.EROFS):
            self.volume.fs.touch(path)
            return self.node(name, self.volume.fs.info(path))

    def mkdir(self, name: str, mode: int) -> Node:
        path = self.path_of(name)
        with self.errors(errno.EROFS):
            self.volume.fs.mkdir(path, create_parents=False)
            if not self.volume.fs.isdir(path):  # some do nothing
                raise error(errno.EROFS)
            return self.node(name, self.volume.fs.info(path))

    def unlink(self, name: str) -> None:
        with self.errors(errno.EROFS):
            self.volume.fs.rm_file(self.path_of(name))
        self.forget(name)

    def rmdir(self, name: str) -> None:
        path = self.path_of(name)
        with self.errors(errno.EROFS):
            if self.volume.fs.ls(path):
                raise error(errno.ENOTEMPTY)
            self.volume.fs.rmdir(path)
        self.forget(name)

    def forget(self, name: str) -> None:
        node = self.known.pop(name, None)
        if node is not None:
            node.gone = True

    def rename(self, name: str, directory: recuse.Directory, new_name: str, flags: int) -> None:
        assert isinstance(directory, RemoteDirectory)
        if flags:
            raise error(errno.EINVAL)
        fs, old, new = self.volume.fs, self.path_of(name), directory.path_of(new_name)
        # The base class copies what matches the name as a pattern, and then removes that.
        copies = type(fs).mv is AbstractFileSystem.mv
        with self.errors(errno.EXDEV):
            if copies and fs.isdir(old):
                raise error(errno.EXDEV)
            if fs.isdir(new):
                directory.rmdir(new_name)
            if copies:
                fs.cp_file(old, new)
                fs.rm_file(old)
            else:
                fs.mv(old, new)
        directory.forget(new_name)
        node = self.known.pop(name, None)
        if node is not None:
            node.directory, node.name = directory, new_name
            directory.known[new_name] = node


KINDS: dict[str, type[RemoteNode]] = {"file": RemoteFile, "directory": RemoteDirectory}


class Volume(recuse.Filesystem):
    """The filesystem."""

    name = "fsspec"

    def __init__(self, url: str, cache_s: float = 1.0) -> None:
        self.cache_s = cache_s
        try:
            self.fs, path = url_to_fs(url)
            self.web = path.startswith(("http://", "https://"))
            if self.web:
                self.fs.ls(path)
            elif self.fs.info(path)["type"] != "directory":
                raise NotADirectoryError(os.strerror(errno.ENOTDIR))
        except FileNotFoundError as cause:
            raise recuse.ArgumentError(f"{url}: {os.strerror(errno.ENOENT)}") from cause
        except Exception as cause:
            raise recuse.ArgumentError(f"{url}: {cause}") from cause
        self.read_only = self.web or isinstance(self.fs, AbstractArchiveFileSystem)
        super().__init__(RemoteDirectory(self, None, path))
