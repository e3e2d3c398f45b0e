"""Real servers, unchanged, in the sandbox: libfuse's examples and packaged filesystems."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..conftest import Shell, shell_in

EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")

Example = Callable[[str], str]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox with nothing in it."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def shell(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a shell's command beside an empty directory ``mnt``; returns what it prints."""
    (here / "source").mkdir()
    (here / "source" / "text").write_text("some text\n", encoding="utf-8")
    (here / "source" / "deep").mkdir()
    (here / "source" / "deep" / "large").write_bytes(os.urandom(300_000))
    return functools.partial(shell_in(sandbox), cwd=here)


@pytest.fixture(scope="module")
def example(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Compiles one of libfuse's examples as its package has it; returns its path."""
    gcc, pkg_config = needs("gcc", "gcc"), needs("pkg-config", "pkg-config")
    needs(f"{EXAMPLES}/hello.c", "libfuse3-dev")
    needs("fusermount3", "fuse3")
    directory = tmp_path_factory.mktemp("examples")
    find = [str(pkg_config), "--cflags", "--libs", "fuse3"]
    flags = subprocess.run(find, capture_output=True, text=True, check=True).stdout.split()
    (directory / "libfuse_config.h").touch()

    @functools.cache
    def compile_example(name: str) -> str:
        made = directory / name
        argv = [str(gcc), "-w", f"-I{EXAMPLES}", f"-I{directory}", f"{EXAMPLES}/{name}.c"]
        subprocess.run([*argv, "-o", str(made), *flags], check=True)
        return str(made)

    return compile_example


UNMOUNTED = "fusermount3 -u mnt && ls mnt"


@pytest.mark.parametrize("options", ["", "-s", "-o clone_fd", "-o max_threads=1"])
@pytest.mark.parametrize("name", ["hello", "hello_ll"])
def test_hello(shell: Shell, example: Example, name: str, options: str) -> None:
    output = shell(f"{example(name)} {options} mnt && ls mnt && cat mnt/hello && {UNMOUNTED}")
    assert output == "hello\nHello World!\n"


def test_in_the_foreground_until_it_is_unmounted(shell: Shell, example: Example) -> None:
    output = shell(
        f"{example('hello')} -f mnt 2>/dev/null & until cat mnt/hello 2>/dev/null; do :; done\n"
        'list() { grep -c "$PWD/mnt fuse.hello" /proc/mounts; }; list\n'
        "umount mnt; wait $!; echo $?; list"
    )
    assert output == "Hello World!\n1\n0\n0\n[status 1]"


def test_one_that_is_terminated_unmounts(shell: Shell, example: Example) -> None:
    output = shell(
        f"{example('hello')} -f mnt 2>/dev/null & until cat mnt/hello 2>/dev/null; do :; done\n"
        'kill $!; wait $!; ls mnt; grep "$PWD/mnt" /proc/mounts || echo none'
    )
    assert output == "Hello World!\nnone\n"


def test_one_that_is_killed_can_be_unmounted(shell: Shell, example: Example) -> None:
    output = shell(
        f"{example('hello')} -f mnt 2>/dev/null & until cat mnt/hello 2>/dev/null; do :; done\n"
        "exec 5<mnt/hello; kill -9 $!; wait $!; cat mnt/hello; ls mnt; exec 5<&-; " + UNMOUNTED
    )
    lines = [line for line in output.splitlines() if "Killed" not in line]
    assert lines == [
        "Hello World!",
        "cat: mnt/hello: Transport endpoint is not connected",
        "ls: cannot access 'mnt': Transport endpoint is not connected",
    ]


@pytest.mark.parametrize(
    "server",
    ["passthrough", "passthrough_fh", "passthrough_ll -o source=/", "passthrough_ll -o clone_fd"],
)
def test_trees_through_passthrough(shell: Shell, example: Example, server: str) -> None:
    name, *options = server.split(maxsplit=1)
    output = shell(
        f"{example(name)} {' '.join(options)} mnt && top=mnt$PWD && diff -r source $top/source &&\n"
        "cp -r source $top/copy && cmp source/deep/large copy/deep/large &&\n"
        "mv $top/copy/text $top/copy/moved && ln -s moved $top/copy/link && cat $top/copy/link &&\n"
        "chmod 600 $top/copy/moved && stat -c %a copy/moved && : >$top/copy/moved &&\n"
        "stat -c %s copy/moved && rm -r $top/copy && ls && " + UNMOUNTED
    )
    assert output == "some text\n600\n0\nbeside\nmnt\nsource\n"


def test_ioctl(shell: Shell, example: Example) -> None:
    output = shell(
        f"{example('ioctl')} mnt && {example('ioctl_client')} mnt/fioc 100 &&\n"
        f"{example('ioctl_client')} mnt/fioc && {UNMOUNTED}"
    )
    assert output == "100\n"


def test_poll(shell: Shell, example: Example) -> None:
    """Its server makes one file after the other readable; the client waits for one of 16."""
    output = shell(
        f"{example('poll')} -f mnt >/dev/null 2>&1 & until test -e mnt/0; do :; done\n"
        f"(cd mnt; stdbuf -oL {example('poll_client')} | head -n 4); {UNMOUNTED}; wait"
    )
    ready = [[word for word in line.split() if word != "_:"] for line in output.splitlines()]
    assert len(ready) == 4
    assert all(0 < len(words) < 16 for words in ready)


def test_squashfuse(shell: Shell, needs: Needs) -> None:
    needs("squashfuse", "squashfuse")
    needs("mksquashfs", "squashfs-tools")
    output = shell(
        "mksquashfs source image -quiet >/dev/null && squashfuse image mnt && ls mnt &&\n"
        "cat mnt/text; diff -r source mnt && (cd mnt/deep && ls); echo x >mnt/text; " + UNMOUNTED
    )
    assert output.splitlines() == [
        "deep",
        "text",
        "some text",
        "large",
        "sh: 2: cannot create mnt/text: Read-only file system",
    ]


def test_bindfs(shell: Shell, needs: Needs) -> None:
    needs("bindfs", "bindfs")
    output = shell(
        "bindfs --no-allow-other source mnt && diff -r source mnt && echo new >mnt/new &&\n"
        f"cat source/new && {UNMOUNTED} && bindfs --no-allow-other -p a-w source source &&\n"
        "cat source/text && stat -c %A source/text && fusermount3 -u source && ls source"
    )
    assert output == "new\nsome text\n-r--r--r--\ndeep\nnew\ntext\n"


def test_fuse_zip(shell: Shell, needs: Needs) -> None:
    needs("fuse-zip", "fuse-zip")
    needs("zip", "zip")
    output = shell(
        "(cd source && zip -qr ../archive.zip .) && fuse-zip -f archive.zip mnt &\n"
        "until diff -r source mnt >/dev/null; do :; done; echo new >mnt/new; rm mnt/text\n"
        f"{UNMOUNTED}; wait $!; echo $?; python3 -m zipfile -l archive.zip | grep -o '^[a-z/]*'"
    )
    assert sorted(output.splitlines()) == ["0", "deep/", "deep/large", "new"]


def test_archivemount(shell: Shell, needs: Needs) -> None:
    needs("archivemount", "archivemount")
    output = shell(
        "tar czf archive.tgz -C source . && archivemount -o readonly archive.tgz mnt &&\n"
        "diff -r source mnt && cat mnt/text && " + UNMOUNTED
    )
    assert output == "some text\n"


def test_sshfs(shell: Shell, needs: Needs, here: Path) -> None:
    needs("sshfs", "sshfs")
    server = needs("/usr/lib/openssh/sftp-server", "openssh-sftp-server")
    (here / "ssh").write_text(f"#!/bin/sh\nexec {server}\n", encoding="utf-8")
    (here / "ssh").chmod(0o755)
    output = shell(
        "sshfs -o ssh_command=$PWD/ssh host:$PWD/source mnt && diff -r source mnt &&\n"
        "cp source/deep/large mnt/copy && cmp source/copy source/deep/large && " + UNMOUNTED
    )
    assert output == ""


@pytest.mark.slow
def test_rclone(shell: Shell, needs: Needs) -> None:
    needs("rclone", "rclone")
    output = shell(
        "rclone mount --config /dev/null --daemon $PWD/source mnt && diff -r source mnt &&\n"
        "cat mnt/text && " + UNMOUNTED
    )
    assert output == "some text\n"


def test_an_archive_is_mounted_without_fusermount(shell: Shell, needs: Needs, here: Path) -> None:
    """It calls mount(2) itself, and fusermount3 only if that fails."""
    needs("squashfuse", "squashfuse")
    assert shutil.which("mksquashfs")
    output = shell(
        "mksquashfs source image -quiet >/dev/null; PATH=$PWD; cd ..; exec 2>&1\n"
        f"/usr/bin/squashfuse {here}/image {here}/mnt; /bin/cat {here}/mnt/text;\n"
        f"/bin/umount {here}/mnt"
    )
    assert output == "some text\n"
