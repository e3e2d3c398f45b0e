"""What FUSE over io_uring adds to the protocol (7.42): how a ring carries requests.

The same header and licence as `recuse.wire.fuse`.

An entry of a queue has two pieces of memory. The first has three parts: the request's header, or
the answer's; what the request's own structure is; and `fuse_uring_ent_in_out`. The other one is the
payload: what follows the structure in a request, or the header in an answer.
"""

from typing import Final

from recuse.wire.declare import Structure, structure, u8x6, u16, u32, u64

FUSE_IO_URING_CMD_REGISTER: Final = 1
"""Gives a queue an entry."""
FUSE_IO_URING_CMD_COMMIT_AND_FETCH: Final = 2
"""Answers an entry's request; the entry is for another one then."""

FUSE_URING_IN_OUT_HEADER_SZ: Final = 128
"""Where the request's own structure begins."""
FUSE_URING_OP_IN_OUT_SZ: Final = 128
"""The room it has; `fuse_uring_ent_in_out` follows."""


@structure
class fuse_uring_ent_in_out(Structure):
    """Says how long the payload is, and which request an answer is for."""

    flags: u64 = 0
    commit_id: u64 = 0
    payload_sz: u32 = 0
    padding: u32 = 0
    reserved: u64 = 0


@structure
class fuse_uring_cmd_req(Structure):
    """In the command area of a submission (128 bytes, IORING_SETUP_SQE128)."""

    flags: u64 = 0
    commit_id: u64 = 0
    qid: u16 = 0
    padding: u8x6 = (0,) * 6
