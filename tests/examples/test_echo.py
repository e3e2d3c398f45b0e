"""The echo example, with cat, dd and a shell's redirections."""

from collections.abc import Callable
from pathlib import Path

Shell = Callable[..., bytes]


def test_what_one_program_writes_another_reads(shell: Shell) -> None:
    assert shell("echo.py", "echo hi >/dev/echo; cat /dev/echo") == b"hi\n"


def test_at_first_there_is_nothing_to_read(shell: Shell) -> None:
    assert shell("echo.py", "cat /dev/echo; echo end") == b"end\n"


def test_what_was_read_is_gone(shell: Shell) -> None:
    assert shell("echo.py", "echo hi >/dev/echo; cat /dev/echo; cat /dev/echo") == b"hi\n"


def test_pieces_are_read_in_the_order_of_writing(shell: Shell) -> None:
    script = """
        printf ab >/dev/echo; printf cde >/dev/echo
        dd if=/dev/echo bs=1 count=1 status=none; echo
        dd if=/dev/echo bs=3 count=1 status=none; echo
        printf f >/dev/echo; cat /dev/echo; echo
    """
    assert shell("echo.py", script) == b"a\nbcd\nef\n"


def test_one_open_writes_and_reads(shell: Shell) -> None:
    assert shell("echo.py", "exec 3<>/dev/echo; echo both >&3; cat <&3") == b"both\n"


def test_any_bytes_in_any_amount(shell: Shell, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2000
    (tmp_path / "before").write_bytes(content)
    shell("echo.py", "cat before >/dev/echo; cat /dev/echo >after", cwd=tmp_path)
    assert (tmp_path / "after").read_bytes() == content
