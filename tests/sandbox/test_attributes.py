"""What programs see and change of a device's node."""

import contextlib
import errno
import os
import re
import stat
import time

import pytest

from recuse import File, OpenRequest
from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell, Shells


def kernel() -> tuple[int, ...]:
    """The running kernel's version."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


STATS = """
STATX = struct.Struct('=IIQIIIHxxQQQQ' + 'qIxxxx' * 4 + 'IIIIQ104x')
def raw(number, *args):
    buffer = ctypes.create_string_buffer(256)
    result = call(number, *[buffer if arg is Ellipsis else arg for arg in args])
    return buffer.raw if result == 0 else result
def statx(*args):
    data = raw(332, *args, ...)
    if isinstance(data, str): return data
    fields = STATX.unpack(data)
    return fields[3:7] + fields[7:9] + (os.makedev(*fields[19:21]), os.makedev(*fields[21:23]))
def plain(number, *args):
    data = raw(number, *args)
    if isinstance(data, str): return data
    device, inode, links, mode, uid, gid, rdev, size = struct.unpack_from('=QQQIII4xQq', data)
    return links, uid, gid, mode, inode, size, rdev, device
node = os.fsencode(args[0])
fd = os.open(node, os.O_RDWR)
path = os.open(node, 0o10000000)
directory = os.open(os.path.dirname(node), os.O_RDONLY)
name = os.path.basename(node)
all_of_them = {
    'stat': plain(4, node, ...), 'fstat': plain(5, fd, ...), 'lstat': plain(6, node, ...),
    'newfstatat': plain(262, -100, node, ..., 0),
    'newfstatat fd': plain(262, fd, b'', ..., 0x1000),
    'newfstatat dir': plain(262, directory, name, ..., 0x100),
    'fstat O_PATH': plain(5, path, ...),
    'statx': statx(-100, node, 0, 0xfff), 'statx fd': statx(fd, b'', 0x1000, 0xfff),
    'statx dir': statx(directory, name, 0x100, 0x7ff), 'statx O_PATH': statx(path, b'', 0x1000, 1),
}
"""


def test_all_the_stats_say_the_same(make_echo: type[Fifo], clients: Clients) -> None:
    device = make_echo(mode=0o640, uid=12, gid=34, major=77, minor=999)
    script = "values = set(all_of_them.values())\nprint(len(values), *values)"
    with Sandbox(device) as sandbox:
        output = clients(sandbox)(STATS + script, "/dev/echo")
    count, _, values = output.partition(" ")
    assert count == "1", output
    links, uid, gid, mode, inode, size, rdev, filesystem = map(int, values.strip("()\n").split(","))
    assert (links, uid, gid, size) == (1, 12, 34, 0)
    assert mode == stat.S_IFCHR | 0o640
    assert rdev == os.makedev(77, 999)
    assert inode not in {entry.inode() for entry in os.scandir("/dev")}
    assert filesystem == os.stat("/dev").st_dev


def test_a_node_is_by_default_for_everybody(sandbox: Sandbox, shell: Shell) -> None:
    line = shell("ls -ln /dev/echo; stat -c '%F %a %s %b %o %h' /dev/echo")
    first, second = line.splitlines()
    assert first.startswith("crw-rw-rw- 1 ")
    assert first.split()[2:4] == [str(os.geteuid()), str(os.getegid())]
    assert sandbox._machine is not None
    device = sandbox._machine.table.by_name("echo")
    assert device is not None
    assert first.split()[4:6] == [f"{device.major},", "0"]
    assert second == "character special file 666 0 0 4096 1"


def test_the_times_are_those_of_the_beginning(make_echo: type[Fifo], clients: Clients) -> None:
    before = time.time() - 1
    with Sandbox(make_echo()) as sandbox:
        output = clients(sandbox)("s = os.stat('/dev/echo'); print(s.st_mtime, s.st_ctime)")
    assert all(before < float(moment) < time.time() + 1 for moment in output.split())


def test_two_devices_are_two_files(make_echo: type[Fifo], clients: Clients) -> None:
    with Sandbox(make_echo(), make_echo(name="other")) as sandbox:
        assert (
            clients(sandbox)(
                "a, b = os.stat('/dev/echo'), os.stat('/dev/other')\n"
                "print(a.st_ino != b.st_ino, a.st_rdev != b.st_rdev, a.st_dev == b.st_dev)"
            )
            == "True True True\n"
        )


BAD_STATS = """
def plain(*args, plain=plain):
    found = plain(*args)
    return found if isinstance(found, str) else found[:4]
print([v for v in all_of_them.values() if isinstance(v, str)])
print(plain(4, node, None), plain(5, fd, None), plain(5, fd, 0xdeadbeef000), plain(5, 99, ...))
print(plain(262, -100, b'', ..., 0), plain(262, fd, None, ..., 0), plain(262, 99, node, ..., 0))
print(plain(262, -100, node, ..., 0x40000), plain(262, fd, b'x', ..., 0), end=' ')
print(plain(262, fd, b'', ..., 0))
print(plain(4, node + b'/', ...), plain(4, node + b'/.', ...), plain(6, node + b'/', ...))
print(raw(332, -100, node, 0, 0x80000000, ...), raw(332, -100, node, 0x40000, 0, ...))
print(raw(332, -100, node, 0x6000, 0, ...), raw(332, -100, node, 0, 0, None))
print(raw(332, fd, b'', 0, 0, ...), isinstance(raw(332, -100, node, 0x2000, 0, ...), bytes))
"""


def test_odd_stats_do_what_they_do_natively(as_native: Shell) -> None:
    as_native(STATS + BAD_STATS)


SMALL = """
for name in (os.fsencode(args[0]),):
    print([attempt(os.access, name, mode) for mode in range(8)], call('access', name, 8))
    print(call('access', name, -1), call('faccessat', -100, name, 4, 0x200))
    print(call(439, -100, name, 4, 0x40000), call(439, -100, name, 6, 0x1300), end=' ')
    print(call(269, -100, name, 9))
    print(call('access', name + b'/', 0), call('access', name + b'/..', 0), call('access', None, 0))
    print(attempt(os.readlink, name), call('readlink', name, None, 0), end=' ')
    print(attempt(os.readlink, name + b'/'))
    print(attempt(os.truncate, name, 0), attempt(os.truncate, name, 9), call('truncate', name, -1))
    print(call('truncate', name + b'/', 0))
    print(attempt(os.getxattr, name, 'user.x'), attempt(os.getxattr, name, 'trusted.x'))
    print(attempt(os.scandir, name), call('chdir', name))
    fd = os.open(name, os.O_RDWR)
    print(call('fsync', fd), call('fdatasync', fd), call('ftruncate', fd, 0), call('fchdir', fd))
    print(call(285, fd, 0, 0, 4096), call('flock', fd, 2), call('readahead', fd, 0, 10))
    print(call('lseek', fd, 0, 7), attempt(os.isatty, fd), attempt(os.ttyname, fd))
    print(attempt(os.listdir, fd), attempt(os.getxattr, fd, 'user.x'))
    print(call('sync_file_range', fd, 0, 0, 0), call('posix_fadvise', fd, 0, 0, 2), end=' ')
    print(call('syncfs', fd))
    print(call('bind', fd, bytes(16), 16), call('listen', fd, 5), call('accept', fd, None, None))
    print(call('getsockname', fd, bytes(16), struct.pack('I', 16)))
    print(call('getpeername', fd, bytes(16), struct.pack('I', 16)))
    print(call('getsockopt', fd, 1, 3, bytes(4), struct.pack('I', 4)))
    print(call('setsockopt', fd, 1, 9, bytes(4), 4), call('shutdown', fd, 2))
    print(call('send', fd, b'x', 1, 0), call('recv', fd, bytes(4), 4, 0x40))
    print(call('connect', fd, bytes(16), 16), call('timerfd_gettime', fd, bytes(64)))
    print(call('inotify_add_watch', fd, b'/', 1), call('epoll_wait', fd, bytes(99), 1, 0))
    print(attempt(os.write, fd, b'still there'))
"""


def test_other_calls_on_a_node_and_its_file_do_what_they_do_natively(as_native: Shell) -> None:
    as_native(SMALL)


XATTRS = """
node = os.fsencode(args[0])
fd = os.open(node, os.O_RDWR)
room = ctypes.create_string_buffer(99)
def at(name, *args):
    args = [struct.pack('=QII', ctypes.addressof(room), *a) if isinstance(a, tuple) else
            ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return call(SYS[name], *args)
names = b'user.x', b'trusted.x', b'security.x', b'foo.x', b'foo', b'user.', b'', b'x' * 256
for name in names:
    print([call(get, node, name, room, 99) for get in ('getxattr', 'lgetxattr')], end=' ')
    print(call('fgetxattr', fd, name, room, 99), call('fsetxattr', fd, b'user.' + name, b'y', 1, 0))
for name in (b'user.x', b'foo.x', b'foo', b'', b'x' * 256):
    print([call(set, node, name, b'y', 1, 0) for set in ('setxattr', 'lsetxattr')], end=' ')
    print(call('removexattr', node, name), call('lremovexattr', node, name))
for size, flags in ((1, 9), (65537, 0)):
    print(call('setxattr', node, b'user.x', b'y', size, flags))
print(call('setxattr', node, None, b'y', 1, 0), call('removexattr', node + b'x', b'user.x'))
"""

AT_XATTRS = """
print(call('listxattr', node, room, 99), call('flistxattr', fd, room, 99), end=' ')
print(at('listxattrat', fd, b'', 0x1000, room, 99), at('listxattrat', -100, node, 0, room, 99))
for name in names:
    print(at('getxattrat', fd, b'', 0x1000, name, (9, 0), 16), end=' ')
    print(at('getxattrat', -100, node, 0, name, (9, 0), 16), end=' ')
    print(at('setxattrat', -100, node, 0x100, b'user.' + name, (1, 0), 16), end=' ')
    print(at('removexattrat', -100, node, 0, b'user.' + name))
    print(at('removexattrat', fd, b'', 0x1000, b'user.' + name))
print(at('getxattrat', -100, node, 0x4000, b'user.x', (9, 0), 16), end=' ')
print(at('getxattrat', -100, node, 0, b'user.x', (9, 1), 16), end=' ')
print(at('getxattrat', -100, node, 0, b'user.x', (9, 0), 15), end=' ')
print(at('setxattrat', -100, node, 0, b'user.x', (9, 8), 16), end=' ')
print(at('setxattrat', -100, node, 0, b'user.x', (9, 0), 15))
path = os.open(node, 0o10000000)
print(at('getxattrat', path, b'', 0x1000, b'user.x', (9, 0), 16))
print(at('listxattrat', path, b'', 0x1000, room, 99))
"""


def test_extended_attributes_are_as_natively(as_native: Shell) -> None:
    as_native(XATTRS)


@pytest.mark.skipif(kernel() < (6, 13), reason="there are no such calls")
def test_extended_attributes_from_a_directory_are_as_natively(as_native: Shell) -> None:
    as_native(XATTRS + AT_XATTRS)


@pytest.mark.skipif(kernel() < (6, 17), reason="there are no such calls")
def test_a_filesystem_s_attributes_are_as_natively(as_native: Shell) -> None:
    as_native("""
node, room = os.fsencode(args[0]), bytearray(24)
fd = os.open(node, os.O_RDWR)
for name in 'file_getattr', 'file_setattr':
    for arguments in ((-100, node), (fd, b'')):
        room = ctypes.create_string_buffer(24)
        for size, flags in ((24, 0x1000), (24, 0x4000), (23, 0)):
            print(call(SYS[name], *arguments, room, size, flags))
""")


def test_a_node_has_no_handle(client: Shell) -> None:
    # Linux's /dev would give one, other filesystems none: programs go on without.
    output = client("""
handle = ctypes.create_string_buffer(struct.pack('=Ii', 128, 0) + bytes(128))
mount = ctypes.c_int()
fd = os.open('/dev/echo', os.O_RDWR)
for args in ((-100, b'/dev/echo', 0), (-100, b'/dev/echo', 0x400), (fd, b'', 0x1000)):
    print(call('name_to_handle_at', *args[:2], handle, ctypes.byref(mount), args[2]))
print(call('name_to_handle_at', -100, b'/dev/echos', handle, ctypes.byref(mount), 0))
""")
    assert output.split() == ["ENOTSUP", "ENOTSUP", "ENOTSUP", "ENOENT"]


def test_nothing_is_moved_by_a_descriptor_of_a_path(as_native: Shell) -> None:
    as_native("""
path = os.open(args[0], 0o10000000)
reading, writing = os.pipe()
other = os.memfd_create('other')
for pair in ((path, other), (other, path)):
    print(call(SYS['sendfile'], *pair, None, 1), end=' ')
    print(call(SYS['copy_file_range'], pair[0], None, pair[1], None, 1, 0))
print(call(SYS['splice'], path, None, writing, None, 1, 0), call(SYS['tee'], path, writing, 1, 0))
print(call(SYS['splice'], reading, None, path, None, 1, 2), call(SYS['tee'], reading, path, 1, 2))
""")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make anything in /dev")
def test_names_that_are_devices_are_taken(make_echo: type[Fifo], clients: Clients) -> None:
    script = """
node = '/dev/recuse-taken'
print(attempt(os.mkdir, node), attempt(os.mkfifo, node), attempt(os.symlink, 'x', node))
print(attempt(os.link, '/dev/null', node), attempt(os.mkdir, node + '/x'))
print(stat.S_ISCHR(os.lstat(node).st_mode))
"""
    try:
        with Sandbox(make_echo(name="recuse-taken")) as sandbox:
            output = clients(sandbox)(script)
        assert not os.path.lexists("/dev/recuse-taken")
        assert output == "EEXIST EEXIST EEXIST\nEEXIST ENOTDIR\nTrue\n"
    finally:
        # Whatever was made in the real /dev.
        with contextlib.suppress(FileNotFoundError):
            os.rmdir("/dev/recuse-taken")
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/dev/recuse-taken")


CHANGES = """
node = os.fsencode(args[0])
fd, path = os.open(node, os.O_RDWR), os.open(node, 0o10000000)
link = args[1] + '/link'
os.symlink(node, link)
def show(*results):
    s = os.stat(node)
    print(oct(s.st_mode), s.st_uid, s.st_gid, *results)
show(attempt(os.chmod, node, 0o600))
show(attempt(os.fchmod, fd, 0o7777), attempt(os.fchmod, path, 0o1))
show(call(268, -100, node, 0o100640), attempt(os.chmod, link, 0o604))
show(call(452, -100, node, 0o600, 0x100), call(452, fd, b'', 0o660, 0x1000))
show(call(452, -100, node, 0, 1))
show(call(268, fd, b'', 0o600), call(90, None, 0o600))
show(call(91, 99, 0o600), call(90, node + b'/', 0))
show(attempt(os.chown, node, 5, 6), attempt(os.chown, node, -1, -1))
show(attempt(os.fchown, fd, 7, -1), attempt(os.fchown, path, 8, 8))
show(attempt(os.lchown, node, -1, 9), attempt(os.chown, link, 10, 11))
show(call(260, -100, node, 1, 2, 0x100), call(260, fd, b'', 3, 4, 0x1000))
show(call(260, fd, b'', 3, 4, 0))
show(call(260, -100, node, 1, 2, 1), call(93, 99, 1, 2))
show(attempt(os.chmod, node, 0o6777), attempt(os.chown, node, 0, 0))
def times(*results):
    s = os.stat(node)
    print(s.st_atime_ns, s.st_mtime_ns, *results)
os.utime(node, ns=(1, 2))
times(attempt(os.utime, fd, ns=(3000000004, 5)), attempt(os.utime, path, ns=(7, 7)))
times(attempt(os.utime, link, ns=(1000000000, 20)), attempt(os.utime, node, ns=(-1, -2000000000)))
def spec(*words): return struct.pack('4q', *words)
times(call(280, -100, node, spec(5, 0x3ffffffe, 6, 7), 0))
times(call(280, -100, node, spec(5, 1, 6, 0x3ffffffe), 0x100))
times(call(280, -100, node, spec(5, 0x3ffffffe, 6, 0x3ffffffe), 0))
times(call(280, -100, node, spec(5, 1000000000, 6, 7), 0))
times(call(280, -100, node, spec(5, -1, 6, 7), 0))
times(call(280, fd, None, spec(9, 8, 7, 6), 0), call(280, fd, b'', spec(1, 1, 1, 1), 0x1000))
times(call(280, -100, None, spec(9, 8, 7, 6), 0), call(280, -100, node, 0xdead0000000, 0))
times(call(280, -100, node, spec(1, 1, 1, 1), 1), call(280, fd, None, spec(1, 1, 1, 1), 0x100))
times(call(132, node, struct.pack('2q', 11, 12)), call(235, node, spec(1, 2, 3, 4)))
times(call(235, node, spec(1, 1000000, 3, 4)), call(261, -100, node, spec(5, 6, 7, 8)))
times(call(261, fd, None, spec(5, 6, 7, 9)))
before = time.time() - 5
os.utime(node)
s = os.stat(node)
print(s.st_atime > before, s.st_mtime > before, s.st_ctime > before)
print(call(280, -100, node, spec(0, 0x3fffffff, 0, 0x3fffffff), 0), os.stat(node).st_mtime > before)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_attributes_change_as_they_do_natively(
    as_native: Shell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Each of the two runs needs a directory of its own for its link.
    script = CHANGES.replace(
        "link = args[1]", "import tempfile\nlink = tempfile.mkdtemp(dir=args[1])"
    )
    as_native(script, tmp_path_factory.mktemp("links"))


def test_changes_are_seen_by_everybody_and_do_not_last(
    make_echo: type[Fifo], shells: Shells
) -> None:
    device = make_echo()
    with Sandbox(device) as sandbox:
        shell = shells(sandbox)
        shell("chmod 600 /dev/echo; touch -d 2001-02-03 /dev/echo")
        assert shell("stat -c '%a %y' /dev/echo").startswith("600 2001-02-03 ")
        assert shell("chmod u+x,o=w /dev/echo; stat -c %A /dev/echo") == "crwx----w-\n"
        assert shell("test -c /dev/echo -a -r /dev/echo -a -w /dev/echo -a -O /dev/echo") == ""
        assert shell("test -f /dev/echo -o -d /dev/echo -o -L /dev/echo -o -s /dev/echo") == (
            "[status 1]"
        )
    assert not os.path.exists("/dev/echo")
    with Sandbox(make_echo()) as sandbox:
        assert shells(sandbox)("stat -c %a /dev/echo") == "666\n"


FLAGS = """
node = args[0]
for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC,
              3, os.O_RDWR | os.O_CREAT | os.O_NOCTTY | os.O_TRUNC | os.O_SYNC,
              os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME, 0o10000000, 0o10000000 | os.O_NOFOLLOW):
    fd = libc.open(node.encode(), flags)
    print(oct(fcntl.fcntl(fd, fcntl.F_GETFL)), fcntl.fcntl(fd, fcntl.F_GETFD), end=' ')
    for new in (os.O_NONBLOCK, os.O_APPEND | os.O_ASYNC, os.O_RDWR | os.O_CREAT | os.O_SYNC, 0):
        print(attempt(fcntl.fcntl, fd, fcntl.F_SETFL, new), end=' ')
        print(oct(fcntl.fcntl(fd, fcntl.F_GETFL)), end=' ')
    print(call('fcntl', fd, 4, os.O_DIRECT))
    print(call('fcntl', fd, 0, -1), call('fcntl', fd, 0, 1 << 30), call('fcntl', 99, 0, 5))
    os.close(fd)
"""


def test_fcntl_flags_are_as_natively(as_native: Shell) -> None:
    # Without O_ASYNC and O_DIRECT, on which drivers differ.
    as_native(FLAGS.replace(" | os.O_ASYNC", "").replace("call('fcntl', fd, 4, os.O_DIRECT)", ""))


IOCTLS = """
fd = os.open(args[0], os.O_RDWR)
for command in 0x5421, 0x5452, 0x5460, 0x5450, 0x5451, 2:
    print(hex(command), attempt(fcntl.ioctl, fd, command, struct.pack('i', 1)))
print(oct(fcntl.fcntl(fd, fcntl.F_GETFL)), fcntl.fcntl(fd, fcntl.F_GETFD))
print(call('ioctl', fd, 0x5421, None), call('ioctl', fd, 2, None), call('ioctl', 99, 0x5421, None))
path = os.open(args[0], 0o10000000)
print(call('ioctl', path, 0x5421, bytes(4)), call('ioctl', path, 0x5451, None))
"""


def test_ioctls_that_the_kernel_answers(as_native: Shell) -> None:
    # FIONBIO, FIOASYNC, FIOQSIZE, FIONCLEX, FIOCLEX, FIGETBSZ: so it is with CUSE on Linux 6.1.
    as_native(IOCTLS)


def test_o_direct_cannot_be_set(client: Shell) -> None:
    script = "fd = os.open('/dev/echo', 0); print(call('fcntl', fd, 4, os.O_DIRECT))"
    assert client(script) == "EINVAL\n"


def test_setfl_is_told_to_the_device_and_shared_by_copies(echo: Fifo, client: Shell) -> None:
    flags = []
    open_echo = echo.open

    def open_file(request: OpenRequest) -> File:
        file = open_echo(request)

        def read(size: int, offset: int) -> bytes:
            flags.append((file.nonblocking, file.flags))
            return b""

        file.read = read  # type: ignore[method-assign]  # of this file only
        return file

    echo.open = open_file  # type: ignore[method-assign]  # of this device only
    output = client(
        "fd = os.open('/dev/echo', os.O_RDWR); other = os.dup(fd)\n"
        "os.read(fd, 1); os.set_blocking(fd, False); os.read(other, 1)\n"
        "print(os.get_blocking(other))\n"
        "fcntl.ioctl(other, 0x5421, struct.pack('i', 0))\n"
        "print(os.get_blocking(fd)); os.read(fd, 1)\n"
        "fcntl.ioctl(other, 0x5421, struct.pack('i', 5))\n"
        "print(os.get_blocking(fd)); os.read(fd, 1)\n"
        "fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND); os.read(fd, 1)\n"
    )
    assert output == "False\nTrue\nFalse\n"
    assert [nonblocking for nonblocking, _ in flags] == [False, True, False, True, False]
    assert flags[-1][1] & os.O_APPEND


def test_a_mode_that_forbids(make_echo: type[Fifo], clients: Clients) -> None:
    device = make_echo(mode=0o400)
    script = "print(attempt(os.open, '/dev/echo', os.O_WRONLY), attempt(os.open, '/dev/echo', 0))"
    with Sandbox(device) as sandbox:
        # Without the capability to override permissions, as its owner.
        prefix = "libc.prctl(24, 1); libc.capset(struct.pack('Ii', 0x20080522, 0), bytes(24))\n"
        assert clients(sandbox)(prefix + script) == "EACCES 3\n"
    assert errno.errorcode[errno.EACCES] == "EACCES"
