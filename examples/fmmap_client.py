"""A program for examples/fmmap.py: reads a mapping byte by byte, and clears the bytes that are set.

    fmmap_client.py FILE OFFSET SIZE [STEPS]

It maps SIZE pages of FILE, starting at page OFFSET, and reads one byte each millisecond, STEPS
times or for ever. It shows what it finds: each column is a part with ones, zeros or both (?). In
the current part, ^ stands for a zero and # for a one, which it clears.

It knows nothing about recuse.
"""

import mmap
import os
import sys
import time

COLUMNS = 78
DELAY_S = 0.001


def main(arguments: list[str]) -> int:
    """Run the program; return its exit status."""
    if len(arguments) not in (3, 4):
        print("usage: fmmap_client.py FILE OFFSET SIZE [STEPS]", file=sys.stderr)
        return 2
    path = arguments[0]
    offset, size, *rest = (int(argument, 0) for argument in arguments[1:])
    steps = rest[0] if rest else -1
    descriptor = os.open(path, os.O_RDWR)
    memory = mmap.mmap(descriptor, size * mmap.PAGESIZE, offset=offset * mmap.PAGESIZE)
    os.close(descriptor)
    status = [" "] * COLUMNS
    found = {0: 0, 1: 0}
    position = 0
    while steps:
        steps -= 1
        column = position * COLUMNS // len(memory)
        is_set = memory[position] != 0
        found[is_set] += 1
        status[column] = "#" if is_set else "^"
        memory[position] = 0
        position = (position + 1) % len(memory)
        if position * COLUMNS // len(memory) != column:
            status[column] = "?" if found[0] and found[1] else "1" if found[1] else "0"
            found = {0: 0, 1: 0}
        print("\r" + "".join(status), end="", flush=True)
        time.sleep(DELAY_S)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
