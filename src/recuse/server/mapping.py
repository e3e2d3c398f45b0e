"""What an author learns of the memory that programs map."""

from __future__ import annotations

from recuse.runtime.records import NamedTuple
from recuse.server.areas import Area
from recuse.server.pending_reply import PendingReply
from recuse.server.request import Request
from recuse.wire.cuse import recuse_mmap_in
from recuse.wire.fuse import fuse_in_header

_HEADER_SIZE = fuse_in_header.SIZE
_MAP_TYPE = 0xF  # asm-generic/mman-common.h, as the next
_MAP_PRIVATE = 0x2


class MmapRequest(Request):
    """The request that `File.mmap` answers: the arguments of mmap(2)."""

    __slots__ = ("_arguments",)

    def __init__(self, pending: PendingReply, arguments: recuse_mmap_in | None = None) -> None:
        super().__init__(pending)
        self._arguments = arguments
        """If the request is not one of mmap(2)."""

    @property
    def at_open(self) -> bool:
        """Whether the file is just being opened, and the area is for all that programs will map.

        This happens on a FUSE mount (`recuse serve --mount`), where Linux does not say what
        programs map.
        """
        return self._arguments is not None

    @property
    def address(self) -> int:
        """The address that the program would like, 0 for any."""
        return self._call().addr

    @property
    def length(self) -> int:
        """The length in bytes: whole pages."""
        return self._call().len

    @property
    def offset(self) -> int:
        """Where in the area the mapping begins, in bytes: a multiple of the page size."""
        return self._call().offset

    @property
    def size(self) -> int:
        """The size that an area needs for that: offset + length."""
        call = self._call()
        return call.offset + call.len

    @property
    def protection(self) -> int:
        """PROT_READ and PROT_WRITE, as `mmap.PROT_READ` and `mmap.PROT_WRITE`.

        This is not a limit: mprotect(2) can add what the file's access mode allows.
        """
        return self._call().prot

    @property
    def flags(self) -> int:
        """MAP_SHARED or MAP_PRIVATE, and all other flags of mmap(2)."""
        return self._call().flags

    @property
    def private(self) -> bool:
        """Whether it is MAP_PRIVATE: the device never sees what the program writes."""
        return self.flags & _MAP_TYPE == _MAP_PRIVATE

    def _call(self) -> recuse_mmap_in:
        if self._arguments is not None:
            return self._arguments
        return recuse_mmap_in.unpack(self._pending.message, _HEADER_SIZE)


class Mapping(NamedTuple):
    """A mapping of an area in a program, from `File.mapped` to `File.unmapped`.

    Copies that children inherit, and parts that remain, belong to the same mapping.
    """

    area: Area
    address: int
    """Where it is in the program's memory."""
    length: int
    """In bytes: whole pages."""
    offset: int
    """Where in the area it begins."""
    protection: int
    """PROT_READ and PROT_WRITE, as given to mmap(2)."""
    flags: int
    """MAP_SHARED or MAP_PRIVATE, and other flags of mmap(2)."""
    unique: int
    """A number that is unique among the mappings of the device over one connection."""
