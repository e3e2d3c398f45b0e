"""A filesystem that a server at a socket serves, for two sandboxes at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from recuse import Filesystem, RegularFile
from recuse.channel.listen_mount import FilesystemServer
from recuse.channel.socket_mount import RemoteFilesystem
from recuse.sandbox import Sandbox

from ..conftest import Shell, client_in, shell_in


@pytest.fixture
def remote(files: Filesystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of a socket at which that is served."""
    path = str(tmp_path_factory.mktemp("server") / "socket")
    with closing(FilesystemServer(files, path)):
        yield path


@pytest.fixture
def sandbox(here: Path, remote: str) -> Iterator[Sandbox]:
    """A sandbox that has joined."""
    with Sandbox(mounts={here / "mnt": RemoteFilesystem(remote)}) as sandbox:
        yield sandbox


@pytest.fixture
def other(here: Path, remote: str) -> Iterator[Shell]:
    """Runs a shell's command in another one."""
    with Sandbox(mounts={here / "mnt": RemoteFilesystem(remote)}) as sandbox:
        yield functools.partial(shell_in(sandbox), cwd=here)


WORK = """
mkdir -p mnt/deep/er; seq 50000 >mnt/deep/numbers; ln -s deep/numbers mnt/link; ln mnt/link mnt/hard
cksum <mnt/link; mv mnt/deep/numbers mnt/deep/er/; cat mnt/link; find mnt | sort
sed -i s/^1/one/ mnt/deep/er/numbers; grep -c one mnt/deep/er/numbers; rm -r mnt/deep mnt/link
mkdir mnt/repo; cd mnt/repo; git init -q; git config user.name n; git config user.email e
echo text >file; git add file; git commit -qm first; git status --short; git fsck; cd ../..
tar cf - mnt/repo/file | tar tf -; ls mnt
"""


def test_programs_do_what_they_do_natively(shell: Shell, natively: Shell) -> None:
    assert shell(WORK) == natively(WORK)


def test_one_sees_what_the_other_makes(shell: Shell, other: Shell) -> None:
    assert shell("echo one >mnt/a; cat mnt/a") == "one\n"
    assert other("cat mnt/a; echo two >>mnt/a; mkdir mnt/d") == "one\n"
    assert shell("rmdir mnt/d; ls mnt") == "a\n"


def test_both_are_told_what_has_changed(shell: Shell, other: Shell, files: Filesystem) -> None:
    file = RegularFile(b"before\n")
    file.cache_s = 3600
    files.root.children["file"] = file
    assert shell("cat mnt/file") == other("cat mnt/file") == "before\n"
    file.content = b"changed\n"
    file.changed()
    for one in (shell, other):
        assert one("until grep changed mnt/file; do :; done") == "changed\n"


def test_files_are_mapped(sandbox: Sandbox, here: Path) -> None:
    output = client_in(sandbox)(
        "import mmap\n"
        "with open('mnt/a', 'w+b') as file:\n"
        "    file.write(b'0' * 9000); file.flush()\n"
        "    with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as seen:\n"
        "        print(len(seen), seen[8999:])\n",
        cwd=here,
    )
    assert output == "9000 b'0'\n"
