"""The mappings of a device's files that programs have made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from recuse.runtime.room import keeping
from recuse.server.areas import Area
from recuse.server.device import File
from recuse.server.errors import Misuse, brief
from recuse.server.mapping import Mapping, MmapRequest
from recuse.server.pending_reply import PendingReply
from recuse.server.runner import Runner
from recuse.wire.cuse import (
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MMAP_DONT_COPY,
    RECUSE_MMAP_DONT_EXPAND,
    recuse_mmap_commit_in,
    recuse_mmap_in,
    recuse_mmap_out,
    recuse_munmap_in,
)
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor
from recuse.wire.fuse import fuse_in_header

_HEADER_SIZE = fuse_in_header.SIZE


class Mappings:
    """The mappings of one session, by the number of the RECUSE_MMAP for each."""

    def __init__(self, runner: Runner) -> None:
        """Create it empty."""
        self._runner = runner
        self._mappings: dict[int, tuple[File, Mapping]] = {}

    # Each of these answers the request, or lets the runner answer it.

    def mmap(self, pending: PendingReply, file: File) -> None:
        """Serve RECUSE_MMAP."""
        request = MmapRequest(pending)
        self._runner.run(pending, file.mmap, self._answer, (pending, file), request)

    def _answer(self, returned: Any, context: tuple[PendingReply, File]) -> bytes:
        pending, file = context
        if not isinstance(returned, Area):
            raise Misuse(f"returned {brief(returned)}, not an Area")
        try:
            with keeping():
                descriptor = OwnedDescriptor(os.dup(returned.fileno()))
        except ValueError:
            raise Misuse(f"returned {returned!r}") from None
        call = recuse_mmap_in.unpack(pending.message, _HEADER_SIZE)
        mapping = Mapping(
            returned, call.addr, call.len, call.offset, call.prot, call.flags, pending.unique
        )
        self._mappings[pending.unique] = file, mapping
        flags = RECUSE_MMAP_DONT_COPY if returned.dont_copy else 0
        flags |= RECUSE_MMAP_DONT_EXPAND if returned.dont_expand else 0
        return BytesWithDescriptor(recuse_mmap_out(returned.number, flags).pack(), descriptor)

    def commit(self, pending: PendingReply) -> None:
        """Serve RECUSE_MMAP_COMMIT."""
        call = recuse_mmap_commit_in.unpack(pending.message, _HEADER_SIZE)
        known = self._mappings.get(call.mmap_unique)
        if known is None:
            pending.fail(errno.EINVAL)
            return
        file, mapping = known
        if call.area < 0:
            del self._mappings[call.mmap_unique]
            self._runner.run(pending, file.unmapped, _nothing, None, mapping)
            return
        mapping = Mapping(
            mapping.area,
            call.addr,
            mapping.length,
            mapping.offset,
            mapping.protection,
            mapping.flags,
            mapping.unique,
        )
        self._mappings[call.mmap_unique] = file, mapping
        self._runner.run(pending, file.mapped, _nothing, None, mapping)

    def munmap(self, pending: PendingReply) -> None:
        """Serve RECUSE_MUNMAP."""
        call = recuse_munmap_in.unpack(pending.message, _HEADER_SIZE)
        known = self._mappings.pop(call.mmap_unique, None)
        if known is None:
            pending.fail(errno.EINVAL)
            return
        file, mapping = known
        self._runner.run(pending, file.unmapped, _nothing, None, mapping)

    # Failures.

    def undelivered(self, pending: PendingReply) -> None:
        """Undo a success that the kernel half did not accept: it will not mention it again."""
        if pending.opcode == RECUSE_MMAP:
            self._drop(pending.unique)

    def failed(self, pending: PendingReply) -> None:
        """Undo a mapping that `File.mapped` refused."""
        if pending.opcode == RECUSE_MMAP_COMMIT:
            self._drop(recuse_mmap_commit_in.unpack(pending.message, _HEADER_SIZE).mmap_unique)

    def _drop(self, unique: int) -> None:
        known = self._mappings.pop(unique, None)
        if known is not None:
            file, mapping = known
            self._runner.quietly_later(file.unmapped, mapping)

    def end(self) -> Iterator[tuple[File, Mapping]]:
        """Give up the remaining ones, one by one: the caller must call their files' `unmapped`."""
        for unique in list(self._mappings):
            known = self._mappings.pop(unique, None)
            if known is not None:
                yield known


def _nothing(_: Any, __: None) -> bytes:
    """Return the payload of an answer that has none."""
    return b""
