"""Links on a filesystem to what is outside it, and links in /proc to what is on it."""

from __future__ import annotations

import pytest

from ..conftest import Shell


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("ln -s /dev/stdout mnt/out; (echo x >mnt/out) | cat", "x\n"),
        ("ln -s /dev/stdin mnt/in; echo y | cat mnt/in", "y\n"),
        ("ln -s /dev/stdin mnt/in; echo y | (chmod 600 mnt/in && stat -Lc %a mnt/in)", "600\n"),
        ("ln -s /dev/null mnt/null; echo z >mnt/null && cat mnt/null", ""),
        ("ln -s /proc/self/comm mnt/comm; cat mnt/comm", "cat\n"),
        (
            "ln -s /dev/stdin mnt/in; echo long >f; (rm f; truncate -s 3 mnt/in; cat) <f; ls",
            "lonbeside\nmnt\n",
        ),
        (
            "ln -s /dev/stdin mnt/in; echo my >f; echo your >'f (deleted)';"
            "(rm f; truncate -s 1 mnt/in) <f; cat 'f (deleted)'",
            "your\n",
        ),
        ("ln -s /dev/stdin mnt/in; cp /bin/echo f; (rm f; mnt/in executed) <f", "executed\n"),
    ],
)
def test_links_to_what_the_program_has(
    shell: Shell, natively: Shell, script: str, printed: str
) -> None:
    assert natively(script) == printed
    assert shell(script) == printed


HARD_LINKS = """
fd = os.open("mnt/f", os.O_CREAT | os.O_RDWR); link = f"/proc/self/fd/{fd}"
print(call("link", link.encode(), b"mnt/two"), call("link", link.encode(), b"two"))
print(attempt(os.link, link, "mnt/two", follow_symlinks=False))
print(call("linkat", -100, link.encode(), -100, b"mnt/two", 0x400), sorted(os.listdir("mnt")))
"""


def test_a_link_in_proc_is_followed_only_if_told(client: Shell) -> None:
    assert client(HARD_LINKS) == "EXDEV EXDEV\nEXDEV\n0 ['f', 'two']\n"
