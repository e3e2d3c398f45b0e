"""The table of operations."""

import pytest

from recuse.wire import cuse, fuse
from recuse.wire.optable import OPERATIONS, Operation, Payload

# What the protocol's description says of each: number, name, request -> answer. "*" is any bytes,
# "[size]" that many, "s" a string with its NUL; "!" stands for no answer.
DESCRIBED = """
1 FUSE_LOOKUP s -> fuse_entry_out
2 FUSE_FORGET fuse_forget_in -> !
3 FUSE_GETATTR fuse_getattr_in -> fuse_attr_out
4 FUSE_SETATTR fuse_setattr_in -> fuse_attr_out
5 FUSE_READLINK -> *
6 FUSE_SYMLINK s s -> fuse_entry_out
8 FUSE_MKNOD fuse_mknod_in s -> fuse_entry_out
9 FUSE_MKDIR fuse_mkdir_in s -> fuse_entry_out
10 FUSE_UNLINK s ->
11 FUSE_RMDIR s ->
12 FUSE_RENAME fuse_rename_in s s ->
13 FUSE_LINK fuse_link_in s -> fuse_entry_out
14 FUSE_OPEN fuse_open_in -> fuse_open_out
15 FUSE_READ fuse_read_in -> *
16 FUSE_WRITE fuse_write_in [size] -> fuse_write_out
17 FUSE_STATFS -> fuse_statfs_out
18 FUSE_RELEASE fuse_release_in ->
20 FUSE_FSYNC fuse_fsync_in ->
21 FUSE_SETXATTR fuse_setxattr_in s [size] ->
22 FUSE_GETXATTR fuse_getxattr_in s -> *
23 FUSE_LISTXATTR fuse_getxattr_in -> *
24 FUSE_REMOVEXATTR s ->
25 FUSE_FLUSH fuse_flush_in ->
26 FUSE_INIT fuse_init_in * -> fuse_init_out
27 FUSE_OPENDIR fuse_open_in -> fuse_open_out
28 FUSE_READDIR fuse_read_in -> *
29 FUSE_RELEASEDIR fuse_release_in ->
30 FUSE_FSYNCDIR fuse_fsync_in ->
31 FUSE_GETLK fuse_lk_in -> fuse_lk_out
32 FUSE_SETLK fuse_lk_in ->
33 FUSE_SETLKW fuse_lk_in ->
34 FUSE_ACCESS fuse_access_in ->
35 FUSE_CREATE fuse_create_in s -> create_out
36 FUSE_INTERRUPT fuse_interrupt_in -> !
37 FUSE_BMAP fuse_bmap_in -> fuse_bmap_out
38 FUSE_DESTROY ->
39 FUSE_IOCTL fuse_ioctl_in [in_size] -> fuse_ioctl_out *
40 FUSE_POLL fuse_poll_in -> fuse_poll_out
41 FUSE_NOTIFY_REPLY fuse_notify_retrieve_in [size] -> !
42 FUSE_BATCH_FORGET fuse_batch_forget_in fuse_forget_one[count] -> !
43 FUSE_FALLOCATE fuse_fallocate_in ->
44 FUSE_READDIRPLUS fuse_read_in -> *
45 FUSE_RENAME2 fuse_rename2_in s s ->
46 FUSE_LSEEK fuse_lseek_in -> fuse_lseek_out
47 FUSE_COPY_FILE_RANGE fuse_copy_file_range_in -> fuse_write_out
48 FUSE_SETUPMAPPING fuse_setupmapping_in ->
49 FUSE_REMOVEMAPPING fuse_removemapping_in fuse_removemapping_one[count] ->
50 FUSE_SYNCFS fuse_syncfs_in ->
51 FUSE_TMPFILE fuse_create_in s -> create_out
52 FUSE_STATX fuse_statx_in -> fuse_statx_out
53 FUSE_COPY_FILE_RANGE_64 fuse_copy_file_range_in -> fuse_copy_file_range_out
4096 CUSE_INIT cuse_init_in * -> cuse_init_out *
4352 RECUSE_MMAP recuse_mmap_in -> recuse_mmap_out
4353 RECUSE_MMAP_COMMIT recuse_mmap_commit_in ->
4354 RECUSE_MUNMAP recuse_munmap_in ->
4356 RECUSE_SHOW s -> *
4357 RECUSE_DESCRIBE -> recuse_describe_out *
1048576 CUSE_INIT_BSWAP_RESERVED * -> *
436207616 FUSE_INIT_BSWAP_RESERVED * -> *
"""

WRITTEN = {
    Payload.NONE: "",
    Payload.BYTES: "*",
    Payload.SIZE: "[size]",
    Payload.IN_SIZE: "[in_size]",
    Payload.NAME: "s",
    Payload.NAMES: "s s",
    Payload.NAME_VALUE: "s [size]",
}

every_operation = pytest.mark.parametrize(
    "operation", OPERATIONS.values(), ids=lambda operation: operation.name
)


def described(operation: Operation) -> str:
    request = operation.request.__name__ if operation.request else ""
    if operation.request_payload is Payload.RECORDS:
        assert operation.record is not None
        follows = f"{operation.record.__name__}[count]"
    else:
        follows = WRITTEN[operation.request_payload]
    reply = operation.reply.__name__ if operation.reply else ""
    answer = f"{reply} {WRITTEN[operation.reply_payload]}" if operation.has_reply else "!"
    line = f"{operation.opcode} {operation.name} {request} {follows} -> {answer}"
    return " ".join(line.split())


def test_every_operation_of_the_protocol_is_there() -> None:
    assert [described(row) for row in OPERATIONS.values()] == DESCRIBED.strip().splitlines()


@every_operation
def test_names_are_those_of_the_constants(operation: Operation) -> None:
    module = cuse if operation.name.startswith(("CUSE", "RECUSE")) else fuse
    assert getattr(module, operation.name) == operation.opcode
    assert OPERATIONS[operation.opcode] is operation


def test_minors_are_those_of_the_changelog() -> None:
    newer = {row.opcode: row.minor for row in OPERATIONS.values() if row.minor > 11}
    assert newer == {
        fuse.FUSE_NOTIFY_REPLY: 15,
        fuse.FUSE_BATCH_FORGET: 16,
        fuse.FUSE_FALLOCATE: 19,
        fuse.FUSE_READDIRPLUS: 21,
        fuse.FUSE_RENAME2: 23,
        fuse.FUSE_LSEEK: 24,
        fuse.FUSE_COPY_FILE_RANGE: 28,
        fuse.FUSE_SETUPMAPPING: 31,
        fuse.FUSE_REMOVEMAPPING: 31,
        fuse.FUSE_SYNCFS: 34,
        fuse.FUSE_TMPFILE: 37,
        fuse.FUSE_STATX: 39,
        fuse.FUSE_COPY_FILE_RANGE_64: 45,
    }
