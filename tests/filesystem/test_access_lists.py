"""Access control lists of the directory that is shown, and who owns what has no name yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .places import Place, same, same_python

pytestmark = [
    pytest.mark.usefixtures("root"),
    pytest.mark.parametrize(
        "served",
        [(kind, "no_io_uring") for kind in ("mirror", "loopback")],
        ids="-".join,
        indirect=True,
        scope="module",
    ),
]


def test_what_is_made_inherits_a_list(place: Place, needs: Callable[..., Path]) -> None:
    """With a default list, the umask means nothing."""
    needs("setfacl", "acl")
    same(
        place,
        """
umask 027
mkdir d; chmod 2755 d; setfacl -d -m u:1000:rwx,g::rx,o::r d
echo x >d/f; mkdir d/s; mkfifo d/p; ln -s f d/l; install -m 4711 d/f d/i
getfacl -n d d/f d/s d/p d/i; stat -c '%n %a' d/*
mkdir e; echo x >e/f; mkdir e/s; mkfifo e/p; stat -c '%n %a' e/*
""",
    )


def test_the_kernel_checks_lists(place: Place, needs: Callable[..., Path]) -> None:
    needs("setfacl", "acl")
    output = same(
        place,
        """
chmod 755 .; echo secret >f; chmod 600 f
as() { setpriv --reuid $1 --regid $1 --clear-groups cat f 2>&1 | sed 's/.*: //'; }
as 1000; setfacl -m u:1000:r f; as 1000; as 1001; getfacl -n f; stat -c %a f
chmod 600 f; as 1000; getfacl -n f; setfacl -b f; getfacl -n f; as 1000
owner() { setpriv --reuid 1000 --regid $1 --clear-groups setfacl -m u::rwx,g::rwx g; stat -c %a g; }
echo >g; chown 1000:1001 g; chmod 2755 g; owner 1001; owner 1000
""",
    )
    assert output.startswith("Permission denied\nsecret\nPermission denied\n")


def test_who_owns_what_has_no_name(place: Place) -> None:
    same_python(
        place,
        """
os.umask(0o022); os.chmod(".", 0o777)
if os.fork() == 0:
    os.setgroups([]); os.setgid(1000); os.setuid(1000)
    file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666)
    os.write(file, b"text")
    os.link(f"/proc/self/fd/{file}", "named", src_dir_fd=0)
    status = os.stat("named")
    print(oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, flush=True)
    print(open("named").read(), flush=True)
    os._exit(0)
os.wait()
""",
    )
