"""What is remembered of names, attributes and nodes, for how long, and when it is given up."""

import contextlib
import errno
import os
import stat
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.fs.attributes import written
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import STATX_SIZE
from recuse.wire.filesystem import fuse_attr_out, fuse_entry_out
from recuse.wire.fuse import (
    FUSE_EXPIRE_ONLY,
    FUSE_GETATTR,
    FUSE_LOOKUP,
    FUSE_MAX_PAGES,
    FUSE_MKDIR,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INC_EPOCH,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    FUSE_READLINK,
    FUSE_ROOT_ID,
    FUSE_SETATTR,
    FUSE_UNLINK,
)
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_prune_out,
    fuse_notify_retrieve_out,
    fuse_notify_store_out,
)

from .support import FLAGS, Answer, Scripted, always, attr, entry

S = 10**9


def test_the_root_is_asked_for_when_it_is_needed() -> None:
    mount = Scripted()
    assert mount.sent == ["INIT"]
    mount.names["a"] = entry(2)
    mount.stat("a")
    assert mount.sent == ["INIT", "GETATTR", "LOOKUP"]
    assert [asked.header.nodeid for asked in mount.asked] == [0, 1, 1]
    assert mount.asked[2].payload == b"a\0"


def test_names_and_attributes_are_believed_as_long_as_the_server_says() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=3)
    mount.stat("a")
    mount.clear()
    mount.now += 3 * S
    mount.stat("a")
    assert mount.sent == ["GETATTR"]  # of the root, whose attributes are valid for one second
    mount.now += 1
    mount.clear()
    mount.stat("a")
    assert mount.sent == ["LOOKUP"]
    assert mount.lookups == {2: 2}
    mount.drop_caches()
    assert mount.lookups == {}


def test_what_is_valid_for_no_time_is_asked_for_each_time() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=0)
    mount.attrs[2] = attr(2, size=5)
    for _ in range(3):
        mount.clear()
        assert mount.stat("a").st_size == 5
        assert mount.sent[-2:] == ["LOOKUP", "GETATTR"]
    mount.drop_caches()
    assert mount.lookups == {}


def test_that_a_name_does_not_exist_is_believed_if_the_server_says_for_how_long() -> None:
    mount = Scripted()
    answers: list[tuple[Answer, int]] = [(-errno.ENOENT, 2), (fuse_entry_out(entry_valid=5), 1)]
    for answer, again in answers:
        mount.answers[FUSE_LOOKUP] = always(answer)
        mount.clear()
        assert not mount.exists("nothing")
        assert not mount.exists("nothing")
        assert mount.sent.count("LOOKUP") == again
    mount.now += 6 * S
    mount.names["nothing"] = entry(2)
    del mount.answers[FUSE_LOOKUP]
    assert mount.exists("nothing")


def test_a_name_that_leads_to_another_node_is_looked_up_anew() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    assert mount.stat("a").st_ino == 2
    mount.now += 2 * S
    mount.names["a"] = entry(3)
    assert mount.stat("a").st_ino == 3
    mount.drop_caches()
    assert mount.lookups == {}


def test_a_node_that_is_another_kind_of_file_now_is_bad() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    with mount.open("a", os.O_RDONLY) as file:
        mount.now += 2 * S
        mount.names["a"] = entry(2, stat.S_IFDIR)
        assert stat.S_ISDIR(mount.stat("a").st_mode)
        with pytest.raises(OSError, match="Input/output"):
            file.stat()
        with pytest.raises(OSError, match="Input/output"):
            file.flush()
        file.closed = True  # it cannot be flushed


def test_another_generation_is_another_file() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, generation=1)
    before = mount.open("a")
    mount.now += 2 * S
    mount.names["a"] = entry(2, generation=2)
    with mount.open("a") as after:
        with pytest.raises(OSError, match="Input/output"):
            before.stat()
        assert after.stat().st_ino == 2
    before.closed = True


def test_attributes_of_the_wrong_kind_make_it_bad() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=0)
    mount.attrs[2] = attr(2, stat.S_IFLNK)
    with pytest.raises(OSError, match="Input/output"):
        mount.stat("a")


def test_a_reply_that_was_overtaken_does_not_count() -> None:
    """The attributes were changed after the server had answered, before the answer came."""
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=1, size=1)
    mount.stat("a")
    mount.answers[FUSE_SETATTR] = lambda asked: fuse_attr_out(
        attr_valid=9, attr=attr(2, size=asked.body.size)
    )

    def late(_: object) -> fuse_attr_out:
        mount.truncate("a", 100)
        return fuse_attr_out(attr_valid=9, attr=attr(2, size=1))

    mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=2))
    mount.answers[FUSE_GETATTR] = late
    mount.superblock.options = mount.superblock.options._replace(default_permissions=False)
    mount.stat("a")
    mount.attrs[2] = attr(2, size=100)
    del mount.answers[FUSE_GETATTR]
    assert mount.stat("a").st_size == 100


def test_no_reply_hides_a_change_that_comes_at_the_same_time() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, size=1)
    file = mount.open("a")
    inode, superblock = file._file.inode, mount.superblock
    ended = threading.Event()
    at_server = [1]

    def reply() -> None:
        while not ended.is_set():
            inode.pages.keep(0, bytes(4096))  # to be given up
            version = superblock.attr_version
            inode.update(attr(2, size=at_server[-1]), superblock.clock() + S, version)

    replying = threading.Thread(target=reply)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    replying.start()
    try:
        for size in range(2, 2000):
            at_server.append(size)
            written(inode, size)
            time.sleep(0)
            assert inode.attr.size >= size or inode.needs(STATX_SIZE)
    finally:
        ended.set()
        replying.join()
        sys.setswitchinterval(interval)
    file.close()


def test_a_directory_that_was_changed_is_asked_for() -> None:
    mount = Scripted()
    mount.answers[FUSE_MKDIR] = lambda _: entry(2, stat.S_IFDIR)
    mount.stat(".")
    mount.mkdir("d")
    mount.clear()
    mount.stat("d")
    mount.stat(".")
    assert mount.sent == ["GETATTR"]


def test_what_was_removed_is_forgotten_when_nobody_has_it() -> None:
    mount = Scripted()
    mount.answers[FUSE_UNLINK] = lambda _: b""
    mount.names["a"] = entry(2)
    with mount.open("a") as file:
        mount.unlink("a")
        del mount.names["a"]
        assert mount.lookups == {2: 1}
        mount.attrs[2] = attr(2)
        file.stat()
    assert mount.lookups == {}
    assert not mount.exists("a")


def test_forgetting_is_batched() -> None:
    mount = Scripted()
    mount.answers[FUSE_LOOKUP] = lambda asked: entry(2 + int(asked.text))
    for number in range(1200):
        mount.stat(str(number))
    assert len(mount.lookups) == 1200
    mount.clear()
    mount.drop_caches()
    assert mount.lookups == {}
    assert [asked.name for asked in mount.asked] == ["BATCH_FORGET"] * 3


def test_symbolic_links_are_remembered_if_the_server_wants_that() -> None:
    for flags, times in [(0, 2), (1 << 23, 1)]:
        mount = Scripted(flags)
        mount.names |= {"link": entry(2, stat.S_IFLNK), "a": entry(3)}
        mount.answers[FUSE_READLINK] = lambda _: b"a"
        mount.stat("link")
        mount.stat("link")
        assert mount.sent.count("READLINK") == times


# What the server says without being asked


def tell(mount: Scripted, code: int, name: str, flags: int = 0, parent: int = 1) -> None:
    body = fuse_notify_inval_entry_out(parent=parent, namelen=len(name), flags=flags)
    mount.notify(code, body, name.encode() + b"\0")


def test_a_name_is_invalidated_or_expired() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=100)
    mount.stat("a")
    tell(mount, FUSE_NOTIFY_INVAL_ENTRY, "a", FUSE_EXPIRE_ONLY)
    mount.clear()
    mount.stat("a")
    assert mount.sent == ["GETATTR", "LOOKUP"]
    assert mount.lookups == {2: 2}
    tell(mount, FUSE_NOTIFY_INVAL_ENTRY, "a")
    mount.superblock.send_forgets()
    assert mount.lookups == {}
    mount.stat("a")
    for name, parent, error in [("b", 1, "ENOENT"), ("b", 9, "ENOENT"), ("b", 2, "ENOTDIR")]:
        with pytest.raises(OSError, match=os.strerror(getattr(errno, error))):
            tell(mount, FUSE_NOTIFY_INVAL_ENTRY, name, parent=parent)


def test_a_node_is_invalidated() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=100)
    mount.attrs[2] = attr(2, size=7)
    mount.stat("a")
    mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=2, off=-1))
    assert mount.stat("a").st_size == 7
    with pytest.raises(OSError, match="No such file"):
        mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=9))


@pytest.mark.parametrize(("flags", "longest"), [(FLAGS, 1024), (FLAGS | FUSE_MAX_PAGES, 4095)])
def test_names_are_longer_if_requests_may_be(flags: int, longest: int) -> None:
    mount = Scripted(flags)
    with pytest.raises(FileNotFoundError):
        mount.stat("n" * longest)
    mount.clear()
    with pytest.raises(OSError, match="name too long"):
        mount.stat("n" * (longest + 1))
    assert not mount.sent
    body = fuse_notify_inval_entry_out(parent=1, namelen=longest)
    mount.notify(FUSE_NOTIFY_INVAL_ENTRY, body, b"n" * longest + b"\0")
    body.namelen += 1
    with pytest.raises(OSError, match="name too long"):
        mount.notify(FUSE_NOTIFY_INVAL_ENTRY, body, b"n" * (longest + 1) + b"\0")


def test_a_name_is_deleted() -> None:
    mount = Scripted()
    mount.names |= {"a": entry(2, valid_s=100), "d": entry(3, stat.S_IFDIR, valid_s=100)}

    def delete(name: str, child: int) -> None:
        body = fuse_notify_delete_out(parent=1, child=child, namelen=1)
        mount.notify(FUSE_NOTIFY_DELETE, body, name.encode() + b"\0")

    with mount.open_directory("d") as directory:
        mount.stat("a")
        mount.names["a"] = entry(4)
        delete("a", 2)
        assert mount.stat("a").st_ino == 4
        mount.names["x"] = entry(5, valid_s=100)
        with mount.open("d/x"), pytest.raises(OSError, match="not empty"):
            delete("d", 3)
        delete("d", 3)
        with pytest.raises(FileNotFoundError):
            directory.read_entries()
    with pytest.raises(FileNotFoundError):
        delete("a", 9)


def test_all_names_are_invalidated_at_once() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=100)
    mount.stat("a")
    mount.notify(FUSE_NOTIFY_INC_EPOCH)
    mount.names["a"] = entry(3)
    assert mount.stat("a").st_ino == 3


def test_unused_nodes_are_pruned() -> None:
    mount = Scripted()
    mount.names |= {"a": entry(2, valid_s=9), "b": entry(3, valid_s=9), "c": entry(4, valid_s=9)}
    for name in "abc":
        mount.stat(name)
    with mount.open("b"):
        data = b"".join(number.to_bytes(8, "little") for number in (2, 3, 77))
        mount.notify(FUSE_NOTIFY_PRUNE, fuse_notify_prune_out(count=3), data)
        mount.superblock.send_forgets()
        assert mount.lookups == {3: 1, 4: 1}


def test_stored_content_makes_a_file_longer_and_none_is_retrieved() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=9, size=3)
    mount.stat("a")
    mount.notify(FUSE_NOTIFY_STORE, fuse_notify_store_out(nodeid=2, offset=2, size=4), b"data")
    assert mount.stat("a").st_size == 6
    mount.clear()
    mount.notify(
        FUSE_NOTIFY_RETRIEVE, fuse_notify_retrieve_out(notify_unique=77, nodeid=2, size=10)
    )
    (asked,) = mount.asked
    assert (asked.name, asked.header.unique, asked.header.nodeid) == ("NOTIFY_REPLY", 77, 2)
    mount.stat("a")


@given(st.integers(-3, 12), st.binary(max_size=80))
def test_no_notification_harms_anybody(code: int, data: bytes) -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    mount.stat("a")
    with contextlib.suppress(OSError):
        mount.notify(code, None, data)
    mount.now += 2 * S
    assert mount.stat("a").st_ino == 2


def test_a_directory_has_one_name() -> None:
    mount = Scripted()
    mount.names |= {"d": entry(2, stat.S_IFDIR), "e": entry(2, stat.S_IFDIR), "x": entry(3)}
    mount.stat("d/x")
    first = mount.superblock.root.children[b"d"]
    mount.stat("e")
    assert mount.superblock.root.children == {b"e": first}
    assert isinstance(first, Dentry)
    # A directory cannot be in itself, nor be the root.
    mount.names["e/inside"] = entry(2, stat.S_IFDIR)
    mount.names["inside"] = entry(2, stat.S_IFDIR)
    with pytest.raises(OSError, match="symbolic links"):
        mount.stat("e/inside")
    mount.names["root"] = entry(FUSE_ROOT_ID, stat.S_IFDIR)
    with pytest.raises(OSError, match="Input/output"):
        mount.stat("root")


def test_names_are_dropped_however_deep_they_are() -> None:
    root = here = Dentry(b"", None)
    for number in range(3000):
        here = here.put(b"%d" % (number % 7), None)
    root.shrink()
    above: Dentry | None = here
    for _ in range(3000):
        assert above is not None
        assert above.is_attached
        above = above.parent
    assert above is root  # whoever uses the last name, uses all
    del here
    root.shrink()
    assert not root.children
