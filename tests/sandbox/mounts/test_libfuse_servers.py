"""Libfuse's examples, unchanged, serving filesystems in the sandbox."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Needs

from ..conftest import Shell
from ..rights import root_only
from .conftest import UNMOUNTED

EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")

Example = Callable[[str], str]


@pytest.fixture
def shell(bare_shell: Shell) -> Shell:
    """Runs a shell's command beside an empty directory ``mnt``; returns what it prints."""
    return bare_shell


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


@root_only
def test_one_that_is_killed_unmounts_by_itself(shell: Shell, example: Example) -> None:
    """fusermount3 waits for that, and then looks for it in mounts of its own."""
    output = shell(
        "unshare -m true 2>/dev/null || { echo no rights; exit; }\n"
        f"{example('hello')} -f -o auto_unmount mnt 2>/dev/null &\n"
        "until cat mnt/hello 2>/dev/null; do :; done; kill -9 $!; wait $! 2>/dev/null\n"
        'while grep -q " $PWD/mnt fuse" /proc/mounts; do :; done; ls mnt'
    )
    if output == "no rights\n":
        pytest.skip("this user may have no mounts of its own")
    assert [line for line in output.splitlines() if "Killed" not in line] == ["Hello World!"]


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


def test_names_that_the_server_takes_back(shell: Shell, example: Example) -> None:
    """Its only file's name is the time. The program may use a name for 1000 s if not told."""
    output = shell(
        f"{example('notify_inval_entry')} --update-interval=1 --timeout=1000 mnt\n"
        "old=$(ls mnt); while test -e mnt/$old; do :; done\n"
        f"new=$(ls mnt); test $old != $new && test -e mnt/$new && {UNMOUNTED}"
    )
    assert output == ""


@pytest.mark.parametrize("name", ["notify_inval_inode", "notify_store_retrieve"])
def test_content_that_the_server_changes(shell: Shell, example: Example, name: str) -> None:
    """Its only file has the time. The kernel keeps that until it is told, or given the new one."""
    output = shell(
        f"{example(name)} --update-interval=1 mnt && old=$(cat mnt/*)\n"
        f'while new=$(cat mnt/*); test "$old" = "$new"; do :; done; echo ${{new% *}}; {UNMOUNTED}'
    )
    assert output == "The current time is\n"


def test_content_is_kept_until_there_is_a_notice(shell: Shell, example: Example) -> None:
    """So the test above would see the old time for ever, if notices did nothing."""
    output = shell(
        f"{example('notify_inval_inode')} --update-interval=1 --no-notify mnt && old=$(cat mnt/*)\n"
        "begun=$(date +%s); until test $(date +%s) -gt $((begun + 2)); do :; done\n"
        f'test "$old" = "$(cat mnt/*)" && {UNMOUNTED}'
    )
    assert output == ""


def test_paths_that_the_server_invalidates(shell: Shell, example: Example) -> None:
    output = shell(
        f"{example('invalidate_path')} --update-interval=1 mnt 2>/dev/null &\n"
        "until old=$(cat mnt/current_time 2>/dev/null); do :; done\n"
        "size=$(stat -c %s mnt/growing)\n"
        'while test "$(cat mnt/current_time)" = "$old"; do :; done\n'
        "while test $(stat -c %s mnt/growing) = $size; do :; done\n"
        f"{UNMOUNTED}; wait $!; echo $?"
    )
    assert output == "0\n"


def test_null(shell: Shell, example: Example) -> None:
    """It is mounted on a file. What is written there is not kept."""
    output = shell(
        f"{example('null')} beside && stat -c '%F %s' beside && echo new >beside &&\n"
        'head -c 3 beside | od -A n -t x1 && grep -c "$PWD/beside fuse.null" /proc/mounts\n'
        "rm beside; mv beside other; fusermount3 -u beside && cat beside"
    )
    assert output.splitlines() == [
        "regular file 4294967296",
        " 00 00 00",
        "1",
        "rm: cannot remove 'beside': Device or resource busy",
        "mv: cannot move 'beside' to 'other': Device or resource busy",
        "native",
    ]
