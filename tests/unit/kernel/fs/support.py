"""A server that answers as a test says, behind the kernel half of a filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Any, TypeAlias

from recuse.channel.inprocess_mount import InProcessMount
from recuse.kernel.fs.credentials import ALL_CAPABILITIES, FileCaller
from recuse.kernel.fs.notifications import notified
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.superblock import Superblock
from recuse.testing.driver import Driver
from recuse.testing.paths import PathCalls
from recuse.wire.declare import Structure
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_attr_out,
    fuse_batch_forget_in,
    fuse_entry_out,
    fuse_forget_one,
)
from recuse.wire.fuse import (
    FUSE_ABORT_ERROR,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_BATCH_FORGET,
    FUSE_BIG_WRITES,
    FUSE_DO_READDIRPLUS,
    FUSE_FORGET,
    FUSE_GETATTR,
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_LOOKUP,
    FUSE_OPEN,
    FUSE_OPENDIR,
    FUSE_PARALLEL_DIROPS,
    FUSE_READDIRPLUS_AUTO,
    FUSE_RELEASE,
    FUSE_RELEASEDIR,
    FUSE_ROOT_ID,
    FUSE_SETXATTR_EXT,
    fuse_init_out,
    fuse_open_out,
    fuse_out_header,
)
from recuse.wire.message import decode_request
from recuse.wire.optable import OPERATIONS

Answer: TypeAlias = Structure | bytes | int | None
"""A structure or bytes: the payload; an int: a negative errno; None: no answer yet."""
FLAGS = (
    FUSE_ATOMIC_O_TRUNC
    | FUSE_BIG_WRITES
    | FUSE_DO_READDIRPLUS
    | FUSE_READDIRPLUS_AUTO
    | FUSE_PARALLEL_DIROPS
    | FUSE_ABORT_ERROR
)


class Asked:
    """A request as the server reads it."""

    def __init__(self, raw: bytes, flags: int = 0) -> None:
        self.header, body, payload = decode_request(raw, flags=flags)
        self.body: Any = body
        self.payload = bytes(payload)

    @property
    def opcode(self) -> int:
        return self.header.opcode

    @property
    def name(self) -> str:
        return OPERATIONS[self.opcode].name.removeprefix("FUSE_")

    @property
    def text(self) -> str:
        """The first name in it."""
        return os.fsdecode(self.payload.partition(b"\0")[0])


def attr(nodeid: int, kind: int = stat.S_IFREG, mode: int = 0o777, **fields: int) -> fuse_attr:
    return fuse_attr(ino=nodeid, mode=kind | mode, nlink=1, **fields)


def entry(
    nodeid: int,
    kind: int = stat.S_IFREG,
    *,
    valid_s: int = 1,
    generation: int = 0,
    mode: int = 0o777,
    **fields: int,
) -> fuse_entry_out:
    """What LOOKUP says about a node."""
    return fuse_entry_out(
        nodeid=nodeid,
        generation=generation,
        entry_valid=valid_s,
        attr_valid=valid_s,
        attr=attr(nodeid, kind, mode, **fields),
    )


class Scripted(PathCalls):
    """The calls of root's, and a server which gives the answers in ``answers``, by opcode.

    Without one it answers LOOKUP from ``names``, and what opens and closes with success.
    """

    def __init__(
        self,
        flags: int = FLAGS,
        *,
        uid: int = 0,
        capabilities: int = ALL_CAPABILITIES,
        options: MountOptions = MountOptions(),  # noqa: B008 - it does not change
        init: bytes | None = None,
    ) -> None:
        self.now = 10**9
        self._flags = flags & FUSE_SETXATTR_EXT
        self.answers: dict[int, Callable[[Asked], Answer]] = {}
        self.names: dict[str, fuse_entry_out] = {}
        self.attrs: dict[int, fuse_attr] = {FUSE_ROOT_ID: attr(FUSE_ROOT_ID, stat.S_IFDIR)}
        self.asked: list[Asked] = []
        self.lookups: dict[int, int] = {}
        """How often the kernel half knows each node, by what it was told and has forgotten."""
        self.counts = True
        if init is not None:
            self._init = init
        else:
            out = fuse_init_out(7, 45, max_write=131072, max_pages=256)
            out.flags, out.flags2 = flags & 0xFFFFFFFF, flags >> 32
            self._init = out.pack()
        self.superblock = Superblock(options, notified, lambda: self.now)
        InProcessMount(self.superblock, self)
        caller = FileCaller(1, uid, uid, capabilities=capabilities, owner=99)
        super().__init__(Driver(self.superblock, 10), caller, 1)

    @property
    def sent(self) -> list[str]:
        """The names of the requests, since the last `clear`, without those that forget."""
        return [asked.name for asked in self.asked if "FORGET" not in asked.name]

    @property
    def root_attributes(self) -> fuse_attr_out:
        return fuse_attr_out(attr_valid=1, attr=self.attrs[FUSE_ROOT_ID])

    def clear(self) -> None:
        self.asked.clear()

    def notify(self, code: int, body: Structure | None = None, data: bytes = b"") -> None:
        packed = b"" if body is None else body.pack()
        header = fuse_out_header(len=16 + len(packed) + len(data), error=code).pack()
        self.superblock.connection.write(header + packed + data)

    def drop_caches(self) -> None:
        self.superblock.drop_caches()
        self.superblock.send_forgets()

    # What a session does

    def handle(self, message: bytes, reply: Callable[[bytes], object]) -> None:
        asked = Asked(message, self._flags)
        self.asked.append(asked)
        answer = self._answer(asked)
        if answer is None:
            return
        if isinstance(answer, fuse_entry_out) and answer.nodeid:
            self.lookups[answer.nodeid] = self.lookups.get(answer.nodeid, 0) + 1
        payload = b"" if isinstance(answer, int) else bytes_of(answer)
        error = answer if isinstance(answer, int) else 0
        header = fuse_out_header(len=16 + len(payload), error=error, unique=asked.header.unique)
        with contextlib.suppress(OSError):  # EINVAL: it is malformed
            reply(header.pack() + payload)

    def close(self) -> None:
        """The connection has ended."""

    def _answer(self, asked: Asked) -> Answer:
        opcode = asked.opcode
        if opcode == FUSE_INIT:
            return self._init
        if opcode == FUSE_FORGET:
            self._forget(asked.header.nodeid, asked.body.nlookup)
            return None
        if opcode == FUSE_BATCH_FORGET:
            assert asked.body.count * fuse_forget_one.SIZE == len(asked.payload)
            assert fuse_batch_forget_in.SIZE + len(asked.payload) <= 8192 - 40
            for nodeid, count in fuse_forget_one.CODEC.iter_unpack(asked.payload):
                self._forget(nodeid, count)
            return None
        if opcode == FUSE_INTERRUPT:
            return None
        if opcode in self.answers:
            return self.answers[opcode](asked)
        if opcode == FUSE_LOOKUP:
            return self.names.get(asked.text, -errno.ENOENT)
        if opcode == FUSE_GETATTR:
            known = self.attrs.get(asked.header.nodeid)
            return -errno.ENOENT if known is None else fuse_attr_out(attr_valid=1, attr=known)
        if opcode in (FUSE_OPEN, FUSE_OPENDIR):
            return fuse_open_out(fh=7)
        if opcode in (FUSE_RELEASE, FUSE_RELEASEDIR):
            return b""
        return -errno.ENOSYS

    def _forget(self, nodeid: int, count: int) -> None:
        if not self.counts:
            return
        left = self.lookups.get(nodeid, 0) - count
        assert left >= 0, f"node {nodeid} was forgotten more often than it was looked up"
        self.lookups[nodeid] = left
        if not left:
            del self.lookups[nodeid]


def always(answer: Answer) -> Callable[[Asked], Answer]:
    """Answers each request in the same way."""
    return lambda _: answer


def bytes_of(answer: Structure | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.pack()
