"""The memory example on the real kernel: the same tests as in the sandbox, but for positions.

Linux's CUSE says 0 for the position of each read and write, so there is no end of the file.
"""

from collections.abc import Callable
from pathlib import Path

from ..examples.test_memory import (  # noqa: F401
    client,
    drive,
    test_a_write_behind_the_end_makes_it_grow_with_zeros,
    test_a_write_inside_leaves_the_size,
    test_it_begins_empty,
    test_it_begins_with_the_size_that_it_is_given,
    test_it_grows_up_to_a_limit,
    test_more_than_linux_moves_in_one_ioctl_is_refused,
    test_no_byte_is_before_the_first,
    test_other_ioctls_are_unknown,
    test_pointers_to_nowhere,
    test_reads_end_at_the_end,
    test_what_the_comments_of_libfuses_client_show,
    test_without_positions_every_read_and_write_is_at_the_beginning,
)

Shell = Callable[..., bytes]


def test_the_size_can_be_set(drive: Callable[[str, str], str]) -> None:  # noqa: F811
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
