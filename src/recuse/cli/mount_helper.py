"""`recuse SPEC DIR -o OPTIONS`: a mount for mount(8), of the type fuse.recuse.

mount(8) has mount.fuse3 mount what has a type of FUSE, and that runs the command that the type
names in this way (util/mount.fuse.c of libfuse). There is hardly any environment, not even a PATH.
"""

from __future__ import annotations

from typing import Final

from recuse.channel.mount_options import split_options
from recuse.cli.background import start_in_background
from recuse.cli.failure import USAGE, Failure

WRONG_CALL: Final = 1
NOT_MOUNTED: Final = 32
"""Exit statuses of mount(8)."""

_SUBTYPE: Final = "recuse"
"""Of the type fuse.recuse: commands such as `umount -a -t fuse.recuse` look for it."""

_FOR_MOUNT8: Final = {
    *("auto", "noauto", "nofail", "_netdev", "silent", "loud"),
    *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
}
"""Who may mount, and when: mount(8) has seen to it. It does not keep all of them from us."""
_FOR_OTHERS: Final = ("x-", "X-", "comment=", "user=")


def mount_for_mount8(spec: str, directory: str, options: str) -> int:
    """Mount in the background, without a word; returns mount(8)'s exit status.

    Raises:
        Failure: with a message for the user, and such a status.
    """
    try:
        words = _ours(spec, directory, split_options(options))
        status = start_in_background(spec, directory, words, ready=lambda _: None)
    except Failure as failure:
        raise Failure(str(failure), _status(failure.status)) from failure
    return _status(status)


def _ours(spec: str, directory: str, words: list[str]) -> list[str]:
    if directory.startswith("/dev/fd/"):
        raise Failure(f"{spec}: drop_privileges: is no option; setuid=USER is one", USAGE)
    if "remount" in words:
        raise Failure(f"{directory}: remount: only with -i: mount -i -o remount,ro DIR", USAGE)
    kept = [word for word in words if word not in _FOR_MOUNT8 and not word.startswith(_FOR_OTHERS)]
    names = [word.partition("=")[0] for word in kept]
    if "subtype" not in names:
        kept.append(f"subtype={_SUBTYPE}")
    if "fsname" not in names:
        # `mount -a` compares it with fstab, to see what is mounted already.
        kept.append("fsname=" + spec.replace(",", "\\,"))
    return kept


def _status(status: int) -> int:
    return {0: 0, USAGE: WRONG_CALL}.get(status, NOT_MOUNTED)
