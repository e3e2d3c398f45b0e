"""Mounts examples/memoryfs.py and writes down each request: `recording_server.py DIR FILE`.

It ends when its standard input does.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from recuse import Mount
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.message import decode_request
from recuse.wire.optable import OPERATIONS

_ALL_FLAGS = (1 << 64) - 1
_OF_THE_CALLER = {"lock_owner", "owner", "fh"}
_TIMES = {"atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec"}
_FILE_FLAGS = 0o100000 | 0o4000
"""O_LARGEFILE and O_NONBLOCK: what kind of program asked."""


def described(message: bytes) -> tuple[str, int, dict[str, Any], bytes]:
    """A request, without what differs between any two runs."""
    header, body, payload = decode_request(message, 45, _ALL_FLAGS)
    name = OPERATIONS[header.opcode].name.removeprefix("FUSE_")
    fields: dict[str, Any] = {}
    if body is not None and name != "INIT":
        fields = {field.name: getattr(body, field.name) for field in body.FIELDS}
    if "flags" in fields and name not in ("RENAME2", "SETXATTR"):
        fields["flags"] &= ~_FILE_FLAGS
    left_out = _OF_THE_CALLER | (_TIMES if name == "SETATTR" else set())
    fields = {name: value for name, value in fields.items() if value and name not in left_out}
    return name, header.nodeid, fields, bytes(payload)


def record(put: Callable[[tuple[Any, ...]], object]) -> None:
    """Have all sessions of this process show their requests, except for those that forget."""
    handle = FilesystemSession.handle

    def recording(self: FilesystemSession, message: bytes, reply: Any, gather: Any = None) -> None:
        request = described(message)
        if "FORGET" not in request[0]:
            put(request)
        handle(self, message, reply, gather)

    FilesystemSession.handle = recording  # type: ignore[method-assign]


def main(directory: str, record_to: str) -> None:
    """Mount it, until standard input ends."""
    with Path(record_to).open("wb", buffering=0) as output:
        record(lambda request: output.write(repr(request).encode() + b"\n"))
        sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
        with Mount(import_module("memoryfs").MemoryFilesystem(), directory):
            print("mounted", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
