"""`deny.py NUMBER... -- PROGRAM ...`: run a program whose system calls NUMBER fail with EPERM.

As a container's seccomp profile does it.
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2


def deny(*numbers: int) -> None:
    """Let this process's system calls of these numbers (up to 255) fail with EPERM from now on."""
    jumps = [(0x15, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program = [(0x20, 0, 0, 0), *jumps, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50000 | 1)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("=H6xQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program) == 0


if __name__ == "__main__":
    end = sys.argv.index("--")
    deny(*map(int, sys.argv[1:end]))
    os.execv(sys.argv[end + 1], sys.argv[end + 1 :])
