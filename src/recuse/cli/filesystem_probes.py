"""Experiments with filesystems in a sandbox: the second part of `recuse.cli.probes`."""

import errno
import logging
import os
import socket
import sys

import recuse
from recuse.cli.probes import child

_DIRECTORY = os.path.dirname(os.path.realpath(recuse.__file__))
"""Any one that surely exists; the sandbox's programs do not need it."""

_PATIENCE_S = 30

_READ = """
import sys
with open(sys.argv[1] + "/file", "rb") as file:
    sys.stdout.buffer.write(file.read())
"""

# Answers INIT and GETATTR.
_SERVE = """
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fuse = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
if libc.mount(b"recuse", os.fsencode(sys.argv[1]), b"fuse", 0, data.encode()):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
server = os.fork()
while not server:
    opcode, unique = struct.unpack_from("=4xIQ", os.read(fuse, 1 << 17))
    body = b""
    if opcode == 26:
        body = struct.pack("=4I2HI40x", 7, 31, 0, 0, 12, 9, 1 << 16)
    elif opcode == 3:
        body = struct.pack("=16x6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 5, 0, 0, 0, 4096, 0)
    os.write(fuse, struct.pack("=IiQ", 16 + len(body), 0 if body else -38, unique) + body)
try:
    os.write(1, b"seen" if os.stat(sys.argv[1]).st_nlink == 5 else b"")
finally:
    os.kill(server, signal.SIGKILL)
"""


def show_filesystem() -> None:
    """Have a program in a sandbox read a file of a filesystem in Python."""
    _run(_READ, True)


def serve_filesystem() -> None:
    """Have a program in a sandbox mount what it serves at /dev/fuse."""
    _run(_SERVE, False)


def _run(script: str, has_file: bool) -> None:
    def run(theirs: socket.socket) -> None:
        theirs.send(os.fsencode(_outcome(script, has_file)))

    # In a child, which is left by all threads of the sandbox when it ends.
    with child(run) as (_, ours):
        ours.settimeout(_PATIENCE_S)
        try:
            said = os.fsdecode(ours.recv(1 << 12))
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    if said != "seen":
        raise OSError(0, said or "the sandbox has died")


def _outcome(script: str, has_file: bool) -> str:
    """What a program prints: "seen", or else what went wrong."""
    from recuse.sandbox import Sandbox, SandboxError

    logging.disable()  # the other checks say what is missing
    files = recuse.Filesystem(recuse.Directory({"file": recuse.RegularFile(b"seen")}))
    try:
        with Sandbox(mounts={_DIRECTORY: files} if has_file else {}) as sandbox:
            argv = [sys.executable, "-I", "-S", "-c", script, _DIRECTORY]
            done = sandbox.run(argv, capture_output=True, text=True)
    except OSError as error:
        return error.strerror or str(error)
    except SandboxError as error:
        return str(error)
    lines = done.stderr.strip().splitlines() or [f"a program ended with status {done.returncode}"]
    return done.stdout or str(lines[-1])
