"""What the kernel asks of links and of files that somebody else may have put somewhere."""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse.sandbox.vfs import native_files

FOR_ALL = stat.S_IFDIR | 0o1777


def status(uid: int, mode: int = stat.S_IFREG | 0o644) -> os.stat_result:
    """What stat(2) says of a file of that user's."""
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How much the machine protects: by fs.protected_regular and fs.protected_symlinks."""
    found = {"protected_regular": 1, "protected_symlinks": 1}
    monkeypatch.setattr(native_files, "_level", found.__getitem__)
    return found


def allowed(check: Callable[..., None], *args: object) -> bool:
    """Whether a check raises nothing, rather than EACCES."""
    try:
        check(*args)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("owner", "mode", "level", "follows"),
    [
        (1, FOR_ALL, 1, False),
        (1, FOR_ALL, 0, True),
        (7, FOR_ALL, 1, True),  # one's own
        (0, FOR_ALL, 1, True),  # the directory's owner's
        (1, stat.S_IFDIR | 0o777, 1, True),
        (1, stat.S_IFDIR | 0o1775, 1, True),
    ],
)
def test_links_in_directories_for_all(  # noqa: PLR0917 - one case
    levels: dict[str, int], tmp_path: Path, owner: int, mode: int, level: int, follows: bool
) -> None:
    levels["protected_symlinks"] = level
    os.symlink("x", tmp_path / "link")
    link = native_files.look(os.fsencode(tmp_path / "link"), follow=False)
    try:
        linked = status(owner, stat.S_IFLNK | 0o777)
        args = (link, linked, status(0, mode), 7)
        assert allowed(native_files.check_follow, *args) is follows
    finally:
        os.close(link)


@pytest.mark.parametrize(
    ("owner", "mode", "level", "opens"),
    [
        (1, FOR_ALL, 1, False),
        (1, FOR_ALL, 0, True),
        (7, FOR_ALL, 2, True),
        (0, FOR_ALL, 2, True),
        (1, stat.S_IFDIR | 0o777, 2, True),
        (1, stat.S_IFDIR | 0o1775, 1, True),
        (1, stat.S_IFDIR | 0o1775, 2, False),
        (1, stat.S_IFDIR | 0o1755, 2, True),
    ],
)
def test_files_in_directories_for_all(
    levels: dict[str, int], owner: int, mode: int, level: int, opens: bool
) -> None:
    levels["protected_regular"] = level
    args = (status(owner), status(0, mode), 7)
    assert allowed(native_files.check_create, *args) is opens


def test_the_level_where_it_cannot_be_read() -> None:
    assert native_files._level("no such thing") == 1
    assert native_files._level("protected_regular") in (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "depends"), [("/proc/self/status", True), ("/etc", False), ("/dev/null", False)]
)
def test_what_depends_on_who_opens_it(name: str, depends: bool) -> None:
    file = native_files.look(name.encode())
    try:
        assert native_files.depends_on_opener(file) is depends
        assert native_files.is_proc(file) is depends
    finally:
        os.close(file)


def test_directories_of_this_process_in_proc() -> None:
    mine, others = f"/proc/{os.getpid()}", f"/proc/{os.getppid()}"
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, args=(60,))
    thread.start()
    number = thread.native_id
    names = [
        *((f"{mine}{name}", True) for name in ("", "/fd", "/ns", "/task", f"/task/{number}/fd")),
        (f"/proc/{number}/fd", True),  # which is not listed
        *((f"{others}{name}", False) for name in ("", "/fd", "/ns", f"/task/{os.getppid()}/fd")),
        *((name, False) for name in ("/proc", "/proc/sys/fs", "/proc/tty/driver", "/etc", "/")),
    ]
    try:
        for name, own in names:
            with contextlib.suppress(FileNotFoundError):
                file = native_files.look(name.encode())
                try:
                    assert native_files.is_supervisors(file) is own, name
                finally:
                    os.close(file)
    finally:
        leave.set()
        thread.join()


def test_whether_a_name_is_a_links(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("gone")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        found = [
            native_files.is_link_in(name, directory)
            for name in (b"file", b"link", b"dangling", b"gone")
        ]
    finally:
        os.close(directory)
    assert found == [False, True, True, False]
