"""The memory example on the real kernel: the same tests as in the sandbox, but for positions.

Linux's CUSE says 0 for the position of each read and write, so there is no end of the file.
"""

from collections.abc import Callable
from pathlib import Path

from ..examples.test_memory import *  # noqa: F403

Shell = Callable[..., bytes]


def test_the_size_can_be_set(drive: Callable[[str, str], str]) -> None:
    script = "printf abcdef >/dev/memory; c s 3; c s; c s 5; c s; head -c 7 /dev/memory | od -An -c"
    assert drive("", script) == "3\n5\n   a   b   c  \\0  \\0   a   b\n"


def test_dd_skips_and_seeks(shell: Shell) -> None:
    """Without effect, though the device would like to have positions."""
    script = """
        printf 0123456789 >/dev/memory
        printf AB | dd of=/dev/memory bs=1 seek=4 status=none
        dd if=/dev/memory bs=5 skip=1 count=2 status=none; echo
    """
    assert shell("memory.py", script) == b"B1234B1234\n"


def test_it_holds_large_files(shell: Shell, tmp_path: Path) -> None:
    """As much as one request brings: then the next begins at 0 again."""
    content = bytes(range(251)) * 500
    (tmp_path / "before").write_bytes(content)
    script = """
        dd if=before of=/dev/memory bs=128K status=none
        dd if=/dev/memory of=after bs=128K count=1 status=none
    """
    shell("memory.py", script, cwd=tmp_path)
    assert (tmp_path / "after").read_bytes() == content


def test_dd_fills_it_up(shell: Shell) -> None:
    """It never does: all that is written goes to the beginning."""
    assert shell("memory.py", "dd if=/dev/zero of=/dev/memory bs=1M count=20 status=none") == b""


def test_it_may_have_another_name(shell: Shell) -> None:
    script = "head -c 3 /dev/ram | wc -c; ls /dev/memory || true"
    assert shell("memory.py,name=ram,size=3", script) == (
        b"3\nls: cannot access '/dev/memory': No such file or directory\n"
    )
