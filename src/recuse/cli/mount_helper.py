"""`recuse SPEC DIR -o OPTIONS`: a mount for mount(8), of the type fuse.recuse.

mount(8) has mount.fuse3 mount what has a type of FUSE, and that runs the command that the type
names in this way (util/mount.fuse.c of libfuse). There is hardly any environment, not even a PATH.
"""

from __future__ import annotations

from typing import Final

from recuse.channel.mount_options import parse_options, split_options
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
_OF_A_MOUNT: Final = ("user_id=", "group_id=", "blksize=")
"""What mount(8) has found in /proc/self/mountinfo when it mounts something anew."""


def mount_for_mount8(spec: str, directory: str, options: str) -> int:
    """Mount in the background, without a word; returns mount(8)'s exit status.

    Raises:
        Failure: with a message for the user, and such a status.
    """
    given = split_options(options)
    try:
        if "remount" in given:
            return _remount(directory, given)
        words = _ours(spec, given)
        status = start_in_background(spec, directory, words, ready=lambda _: None)
    except Failure as failure:
        raise Failure(str(failure), _status(failure.status)) from failure
    return _status(status)


def _remount(directory: str, given: list[str]) -> int:
    """Change the flags of a mount; its server is not asked, and its other options stay."""
    from recuse.channel.mounting import MountError, remount
    from recuse.channel.unmounting import resolve

    words = [word for word in _kept(given) if not word.startswith(("remount", *_OF_A_MOUNT))]
    try:
        flags = parse_options(",".join(words)).flags
        remount(resolve(directory), flags)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    except MountError as error:
        raise Failure(str(error), NOT_MOUNTED) from error
    except OSError as error:
        raise Failure(f"{directory}: {error.strerror}", NOT_MOUNTED) from error
    return 0


def _kept(given: list[str]) -> list[str]:
    return [word for word in given if word not in _FOR_MOUNT8 and not word.startswith(_FOR_OTHERS)]


def _ours(spec: str, given: list[str]) -> list[str]:
    kept = _kept(given)
    names = [word.partition("=")[0] for word in kept]
    if "subtype" not in names:
        kept.append(f"subtype={_SUBTYPE}")
    if "fsname" not in names:
        # `mount -a` compares it with fstab, to see what is mounted already.
        kept.append("fsname=" + spec.replace(",", "\\,"))
    return kept


def _status(status: int) -> int:
    return {0: 0, USAGE: WRONG_CALL}.get(status, NOT_MOUNTED)
