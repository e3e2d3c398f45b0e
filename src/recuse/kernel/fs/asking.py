"""Requests about nodes, and the parts of their replies that several operations share."""

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.kernel.fs.inodes import Inode, is_invalid
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.declare import Structure
from recuse.wire.filesystem import fuse_entry_out
from recuse.wire.fuse import FUSE_ROOT_ID


def ask(  # noqa: PLR0917 - the parts of a request
    caller: Caller, opcode: int, nodeid: int, body: bytes, size: int = 0, least: int | None = None
) -> Operation[bytes | memoryview]:
    """Send a request and return the payload of its reply.

    The payload has ``size`` bytes, or ``least`` to ``size``. Raises the server's OSError.
    """
    reply = yield Request(
        opcode,
        body,
        size if least is None else least,
        size,
        caller.pid,
        caller.uid,
        caller.gid,
        nodeid,
    )
    if reply.error:
        raise os_error(-reply.error)
    return reply.payload


def ask_for_entry(
    caller: Caller, opcode: int, nodeid: int, body: bytes
) -> Operation[fuse_entry_out]:
    """The same, for a request that is answered with ``struct fuse_entry_out``."""
    payload = yield from ask(caller, opcode, nodeid, body, fuse_entry_out.SIZE)
    return fuse_entry_out.unpack(payload)


def named(name: bytes, body: Structure | None = None) -> bytes:
    """The body of a request: a structure, if any, and a name."""
    return (b"" if body is None else body.pack()) + name + b"\0"


def is_invalid_entry(entry: fuse_entry_out) -> bool:
    """Whether no new node can be like that (invalid_nodeid, fuse_invalid_attr)."""
    return entry.nodeid in (0, FUSE_ROOT_ID) or is_invalid(entry.attr)


def inode_of(superblock: Superblock, entry: fuse_entry_out, version: int) -> Inode:
    """The inode that an entry is about, which counts as a lookup; see `Inode.update`."""
    valid = superblock.until(entry.attr_valid, entry.attr_valid_nsec)
    return superblock.inodes.get(entry.nodeid, entry.generation, entry.attr, valid, version)
