"""The mappings that programs have made of a device's files."""

import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from recuse.server.areas import Area
from recuse.server.errors import Misuse, brief
from recuse.server.file import File
from recuse.server.pending_reply import Exchange
from recuse.server.request import Request
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
_MAP_TYPE = 0xF  # asm-generic/mman-common.h, as the next two
_MAP_PRIVATE = 0x2
_PROT_WRITE = 0x2


class MmapRequest(Request):
    """The request that `File.mmap` answers: the arguments of mmap(2)."""

    __slots__ = ("at_open",)

    def __init__(self, exchange: Exchange, at_open: bool) -> None:
        super().__init__(exchange)
        self.at_open = at_open
        """Whether it is asked when the file is opened, for all that programs will map of it.

        So it is on a FUSE mount (`recuse serve --mount`), where Linux does not tell what that is.
        """

    @property
    def address(self) -> int:
        """Where the program would like to have it, 0 if it does not care."""
        return self._call().addr

    @property
    def length(self) -> int:
        """How many bytes it maps: whole pages."""
        return self._call().len

    @property
    def offset(self) -> int:
        """Where in the area it begins, in bytes: at a page."""
        return self._call().offset

    @property
    def size(self) -> int:
        """How large an area has to be for that: offset + length."""
        call = self._call()
        return call.offset + call.len

    @property
    def protection(self) -> int:
        """PROT_READ and PROT_WRITE, as `mmap.PROT_READ` and `mmap.PROT_WRITE`.

        It is no limit: mprotect(2) adds what the file's access mode allows.
        """
        return self._call().prot

    @property
    def flags(self) -> int:
        """MAP_SHARED or MAP_PRIVATE, and all other flags of mmap(2)."""
        return self._call().flags

    @property
    def private(self) -> bool:
        """Whether the device never sees what the program writes (MAP_PRIVATE)."""
        return self.flags & _MAP_TYPE == _MAP_PRIVATE

    def _call(self) -> recuse_mmap_in:
        return recuse_mmap_in.unpack(self._exchange.message, _HEADER_SIZE)


class Mapping(NamedTuple):
    """A mapping of an area in a program, from `File.mapped` to `File.unmapped`.

    Copies that children inherit, and parts that are left, belong to the same one.
    """

    area: Area
    address: int
    """Where in the program's memory it was made."""
    length: int
    """In bytes: whole pages."""
    offset: int
    """Where in the area it begins."""
    protection: int
    """PROT_READ and PROT_WRITE, as mmap(2) was given."""
    flags: int
    """MAP_SHARED or MAP_PRIVATE, and other flags of mmap(2)."""
    unique: int
    """Different for each mapping that the device has at one time, over one connection."""


class Mappings:
    """Those of one session, by the number of the MMAP that each was made for."""

    def __init__(self, runner: Runner, at_open: bool) -> None:
        """Make it empty; ``at_open`` is what each `MmapRequest` is to tell."""
        self._runner = runner
        self._at_open = at_open
        self._mappings: dict[int, tuple[File, Mapping]] = {}

    # Each of these answers the exchange, or has it answered.

    def mmap(self, exchange: Exchange, file: File) -> None:
        """Serve RECUSE_MMAP."""
        request = MmapRequest(exchange, self._at_open)
        self._runner.run(exchange, file.mmap, self._answer, (exchange, file), request)

    def _answer(self, returned: Any, context: tuple[Exchange, File]) -> bytes:
        exchange, file = context
        if not isinstance(returned, Area):
            raise Misuse(f"returned {brief(returned)}, not an Area")
        try:
            descriptor = OwnedDescriptor(os.dup(returned.fileno()))
        except ValueError:
            raise Misuse(f"returned {returned!r}") from None
        call = recuse_mmap_in.unpack(exchange.message, _HEADER_SIZE)
        mapping = Mapping(
            returned, call.addr, call.len, call.offset, call.prot, call.flags, exchange.unique
        )
        self._mappings[exchange.unique] = file, mapping
        flags = RECUSE_MMAP_DONT_COPY if returned.dont_copy else 0
        flags |= RECUSE_MMAP_DONT_EXPAND if returned.dont_expand else 0
        return BytesWithDescriptor(recuse_mmap_out(returned.number, flags).pack(), descriptor)

    def commit(self, exchange: Exchange) -> None:
        """Serve RECUSE_MMAP_COMMIT."""
        call = recuse_mmap_commit_in.unpack(exchange.message, _HEADER_SIZE)
        known = self._mappings.get(call.mmap_unique)
        if known is None:
            exchange.fail(errno.EINVAL)
            return
        file, mapping = known
        if call.area < 0:
            del self._mappings[call.mmap_unique]
            self._runner.run(exchange, file.unmapped, _nothing, None, mapping)
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
        self._runner.run(exchange, file.mapped, _nothing, None, mapping)

    def munmap(self, exchange: Exchange) -> None:
        """Serve RECUSE_MUNMAP."""
        call = recuse_munmap_in.unpack(exchange.message, _HEADER_SIZE)
        known = self._mappings.pop(call.mmap_unique, None)
        if known is None:
            exchange.fail(errno.EINVAL)
            return
        file, mapping = known
        self._runner.run(exchange, file.unmapped, _nothing, None, mapping)

    # What comes to nothing.

    def undelivered(self, exchange: Exchange) -> None:
        """Undo a success that the kernel half did not take: it will say nothing of it again."""
        if exchange.opcode == RECUSE_MMAP:
            self._drop(exchange.unique)

    def failed(self, exchange: Exchange) -> None:
        """Undo a mapping that `File.mapped` refused."""
        if exchange.opcode == RECUSE_MMAP_COMMIT:
            self._drop(recuse_mmap_commit_in.unpack(exchange.message, _HEADER_SIZE).mmap_unique)

    def _drop(self, unique: int) -> None:
        known = self._mappings.pop(unique, None)
        if known is not None:
            file, mapping = known
            self._runner.quietly_later(file.unmapped, mapping)

    def end(self) -> Iterator[tuple[File, Mapping]]:
        """Give up those that are left, one after the other: their files' `unmapped` is due."""
        for unique in list(self._mappings):
            known = self._mappings.pop(unique, None)
            if known is not None:
                yield known


def _nothing(_: Any, __: None) -> bytes:
    """Return the payload of an answer that has none."""
    return b""
