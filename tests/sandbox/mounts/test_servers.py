"""Programs in the sandbox that serve filesystems at /dev/fuse, without a library."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.syscalls import mounting
from tests.conftest import Needs
from tests.syscalls import rows

from ..conftest import Shell, shell_in
from ..rights import root_only
from .conftest import served_in


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox with nothing in it."""
    with Sandbox() as sandbox:
        yield sandbox
        machine = sandbox._machine
        assert machine is not None
        machine.files.settle(20)
        assert not len(machine.files)


@pytest.fixture
def server(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a script after SERVER beside an empty directory ``mnt``; returns what it prints."""
    return served_in(sandbox, here)


@pytest.fixture
def shell(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a shell's command there; returns what it and its errors print."""
    return functools.partial(shell_in(sandbox), cwd=here)


def test_the_device_is_there(shell: Shell) -> None:
    output = shell("ls /dev | grep -x fuse; stat -c '%A %t:%T' /dev/fuse; cd /dev; stat -c %t fuse")
    assert output == "fuse\ncrw-rw-rw- a:e5\na\n"


def test_before_it_is_mounted_it_serves_nothing(server: Shell) -> None:
    output = server(
        "fuse = os.open('/dev/fuse', os.O_RDWR)\n"
        "print(attempt(os.read, fuse, 1 << 17), attempt(os.write, fuse, reply(2)))\n"
        "r, w = os.pipe(); os.write(w, reply(2))\n"
        "print(attempt(os.splice, fuse, w, 1 << 17), attempt(os.splice, r, fuse, 16))\n"
        "poll = select.poll(); poll.register(fuse)\n"
        "print(poll.poll(0) == [(fuse, select.POLLERR)])\n"
        "print(attempt(fcntl.ioctl, fuse, CLONE, struct.pack('=I', fuse)))\n"
        "print(attempt(fcntl.ioctl, fuse, CLONE, struct.pack('=I', 0)))\n"
        "print(attempt(fcntl.ioctl, fuse, 0x5401, bytes(64)))\n"
    )
    assert output == "EPERM EPERM\nEPERM EPERM\nTrue\nEINVAL\nEINVAL\nENOTTY\n"


def test_a_file_is_served(server: Shell, here: Path) -> None:
    output = server(
        "child = served('mnt')\n"
        "print(os.listdir('mnt'), text('mnt/file'), end='')\n"
        "print(attempt(open, 'mnt/other'), os.path.ismount('mnt'), os.listdir('.'))\n"
        "umount('mnt'); print(ended(child), os.path.ismount('mnt'), os.listdir('mnt'))\n"
    )
    assert output == "['file'] data\nENOENT True ['mnt', 'beside']\n0 False []\n".replace(
        "['mnt', 'beside']", str(os.listdir(here))
    )


def test_what_mount_refuses(server: Shell) -> None:
    output = server(
        "os.symlink('mnt', 'link'); os.mkdir('deep')\n"
        "fuse = os.open('/dev/fuse', os.O_RDWR); good = options(fuse)\n"
        "print(attempt(mount, 'nothing', good), attempt(mount, 'beside', good))\n"
        "print(attempt(mount, 'mnt', good.replace('40000', '100000')))\n"
        "print([attempt(mount, 'mnt', bad) for bad in ('', options(0), options(999),\n"
        "    good + ',unknown', good + ',max_read=x', good + ',allow_other=1',\n"
        "    good.replace('rootmode=40000,', ''), good.replace('group_id', 'groups'),\n"
        "    good.replace('40000', '8'), good.replace('40000', '0'))])\n"
        "print(attempt(mount, '', good), attempt(os.listdir, 'mnt'))\n"
        "print(attempt(mount, 'link', good), 'mnt fuse' in text('/proc/mounts'))\n"
        "print(attempt(umount, 'deep') in ('EINVAL', 'EPERM'))\n"
        "print(attempt(umount, '') in ('ENOENT', 'EPERM'))\n"  # EPERM is a container's profile's
        "print(attempt(umount, 'link', 8) in ('EINVAL', 'EPERM'), attempt(umount, 'link'))\n"
        "print(attempt(umount, 'mnt', 1 << 20) in ('EINVAL', 'EPERM'))\n"
        "print(attempt(umount, 'mnt') in ('EINVAL', 'EPERM'))\n"
    )
    assert output == (
        "ENOENT ENOTDIR\nENOTDIR\n" + f"{['EINVAL'] * 10}\n" + "ENOENT []\n"
        "None True\nTrue\nTrue\nTrue None\nTrue\nTrue\n"
    )


def test_what_is_in_use_stays_mounted(server: Shell) -> None:
    output = server(
        "child = served('mnt'); top = os.getcwd()\n"
        "file = os.open('mnt/file', os.O_RDONLY); print(attempt(umount, 'mnt')); os.close(file)\n"
        "file = os.open('mnt', os.O_RDONLY); print(attempt(umount, 'mnt')); os.close(file)\n"
        "os.chdir('mnt'); print(attempt(umount, top + '/mnt')); os.chdir('..')\n"
        "above = served('mnt'); print(attempt(umount, 'mnt'), ended(above))\n"
        "print(attempt(umount, 'mnt'), ended(child), attempt(umount, 'mnt') is None)\n"
    )
    assert output == "EBUSY\nEBUSY\nEBUSY\nNone 0\nNone 0 False\n"


def test_a_lazy_unmount_ends_with_the_last_file(server: Shell) -> None:
    output = server(
        "child = served('mnt')\n"
        "file = os.open('mnt/file', os.O_RDONLY)\n"
        "umount('mnt', 2); print(os.listdir('mnt'), os.path.ismount('mnt'))\n"
        "print(os.read(file, 9), os.waitpid(child, os.WNOHANG)); os.close(file)\n"
        "print(ended(child))\n"
    )
    assert output == "[] False\nb'data\\n' (0, 0)\n0\n"


def test_a_forced_unmount_ends_what_waits(server: Shell) -> None:
    output = server(
        "child = served('mnt', until=READ)\n"
        "file = os.open('mnt/file', os.O_RDONLY); r, w = os.pipe()\n"
        "def read():\n"
        "    os.write(w, attempt(os.read, file, 9).encode())\n"
        # Not the main thread: in a container it is watched after umount(), and the file stays open.
        "    closed.append(attempt(os.close, file))\n"
        "closed = []; thread = threading.Thread(target=read); thread.start()\n"
        "print(attempt(umount, 'mnt'), attempt(umount, 'mnt', 1))\n"
        "print(os.read(r, 99)); thread.join(); print(*closed)\n"
        "print(attempt(os.listdir, 'mnt'), attempt(umount, 'mnt')); os.kill(child, 9)\n"
    )
    assert output == "EBUSY EBUSY\nb'ECONNABORTED'\nENOTCONN\nENOTCONN None\n"


def test_an_unmount_waits_for_what_was_closed(server: Shell) -> None:
    """The end of a program does not wait here until its files are flushed. None may be lost."""
    output = server(
        "def stuck():\n"
        "    r, w = os.pipe(); fuse = os.open('/dev/fuse', os.O_RDWR)\n"
        "    mount('mnt', options(fuse)); child = os.fork()\n"
        "    if not child:\n"
        "        serve(fuse, FLUSH); os.write(w, b'1'); signal.pause()\n"
        "    os.close(fuse); reader = os.fork()\n"
        "    if not reader:\n"
        "        os.read(os.open('mnt/file', os.O_RDONLY), 9); os._exit(0)\n"
        "    print(ended(reader)); os.read(r, 1)\n"
        "    return child\n"
        "child = stuck()\n"
        "thread = threading.Thread(target=attempt, args=(os.stat, 'mnt')); thread.start()\n"
        "while 'seccomp' not in text(f'/proc/self/task/{thread.native_id}/wchan'): pass\n"
        "print(attempt(umount, 'mnt'))\n"
        "umount('mnt', 2); os.kill(child, 9); ended(child); thread.join()\n"
        "child = stuck()\n"
        "class Alarm(Exception): pass\n"
        "def alarm(*_): raise Alarm\n"
        "signal.signal(signal.SIGALRM, alarm)\n"
        "try: signal.setitimer(signal.ITIMER_REAL, 0.05); umount('mnt')\n"
        "except Alarm: print('interrupted')\n"
        "print(attempt(umount, 'mnt', 2), os.listdir('mnt')); os.kill(child, 9); ended(child)\n"
        "child = served('mnt'); print(text('mnt/file'), end='')\n"
        "umount('mnt'); print(ended(child))\n"
    )
    assert output == "0\nEBUSY\n0\ninterrupted\nNone []\ndata\n0\n"


@pytest.mark.parametrize("until", ["LOOKUP", "OPEN", "READ", "GETATTR", "INIT"])
def test_a_server_that_dies_leaves_its_clients_with_an_error(server: Shell, until: str) -> None:
    output = server(
        f"child = served('mnt', until={until})\n"
        "def client():\n"
        "    try: return text('mnt/file')\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "thread = threading.Thread(target=lambda: print(client(), flush=True)); thread.start()\n"
        "def waits():\n"
        "    with open(f'/proc/{child}/syscall') as call:\n"
        f"        return call.read().split()[0] == '{_pause()}'\n"
        "while not waits(): pass\n"
        "os.kill(child, 9); thread.join(); os.waitpid(child, 0)\n"
        "print(attempt(os.stat, 'mnt'), attempt(os.listdir, 'mnt'), attempt(open, 'mnt/file'))\n"
        "print(attempt(umount, 'mnt'), os.listdir('mnt'))\n"
    )
    first, *rest = output.splitlines()
    assert first in ("ECONNABORTED", "ENOTCONN")
    assert rest == ["ENOTCONN ENOTCONN ENOTCONN", "None []"]


def _pause() -> int:
    """The number of the call in which `signal.pause` waits."""
    numbers = rows.native()
    return numbers.get("pause", numbers["ppoll"])


def test_several_threads_read_from_one_descriptor(server: Shell) -> None:
    output = server(
        "fuse = os.open('/dev/fuse', os.O_RDWR); mount('mnt', options(fuse))\n"
        "if os.fork() == 0:\n"
        "    threads = [threading.Thread(target=serve, args=(fuse,)) for _ in range(4)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "    print('all ended', flush=True); os._exit(0)\n"
        "os.close(fuse)\n"
        "seen = []\n"
        "clients = [threading.Thread(target=lambda: seen.append(text('mnt/file'))) "
        "for _ in range(8)]\n"
        "for client in clients: client.start()\n"
        "for client in clients: client.join()\n"
        "print(set(seen), flush=True); umount('mnt'); os.wait()\n"
    )
    assert output == "{'data\\n'}\nall ended\n"


def test_a_clone_takes_requests_of_its_own(server: Shell) -> None:
    output = server(
        "fuse = os.open('/dev/fuse', os.O_RDWR | os.O_NONBLOCK); mount('mnt', options(fuse))\n"
        "clone = os.open('/dev/fuse', os.O_RDWR)\n"
        "print(fcntl.ioctl(clone, CLONE, struct.pack('=I', fuse)) == struct.pack('=I', fuse))\n"
        "print(attempt(fcntl.ioctl, clone, CLONE, struct.pack('=I', fuse)))\n"
        "def client():\n"
        "    print(attempt(open, 'mnt/file'), attempt(text, 'mnt/file'), end='', flush=True)\n"
        "os.write(fuse, answer(*request(os.read(fuse, 1 << 17))))\n"
        "poll = select.poll(); poll.register(fuse); poll.register(clone)\n"
        "print(attempt(os.read, fuse, 1 << 17), poll.poll(0) == [(fuse, 4), (clone, 4)])\n"
        "thread = threading.Thread(target=client); thread.start()\n"
        "told = serve(clone, LOOKUP)\n"
        "print(attempt(os.write, fuse, answer(*told)))\n"
        "other = os.open('/dev/fuse', os.O_RDWR)\n"
        "fcntl.ioctl(other, CLONE, struct.pack('=I', clone))\n"
        "os.close(clone)\n"  # and the request that it had taken ends
        "served = threading.Thread(target=serve, args=(other,)); served.start()\n"
        "thread.join(); umount('mnt'); served.join()\n"
        "print(poll.poll(0)[0] == (fuse, select.POLLERR))\n"
    )
    assert output == "True\nEINVAL\nEAGAIN True\nENOENT\nECONNABORTED data\nTrue\n"


def test_what_is_written_by_splice(server: Shell) -> None:
    output = server(
        "def spliced(fuse):\n"
        "    r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 18)\n"
        "    while True:\n"
        "        try: size = os.splice(fuse, w, 1 << 17)\n"
        "        except OSError as error: return error.errno != errno.ENODEV\n"
        "        done = answer(*request(os.read(r, size)))\n"
        "        if done is not None:\n"
        "            os.write(w, done); os.splice(r, fuse, len(done))\n"
        "fuse = os.open('/dev/fuse', os.O_RDWR); mount('mnt', options(fuse))\n"
        "child = os.fork()\n"
        "if not child: os._exit(spliced(fuse))\n"
        "os.close(fuse); print(text('mnt/file'), end=''); umount('mnt'); print(ended(child))\n"
    )
    assert output == "data\n0\n"


def test_proc_lists_the_mounts(server: Shell, here: Path) -> None:
    (here / "a b").mkdir()
    output = server(
        "child = served('a b', ',allow_other,max_read=65536,default_permissions')\n"
        "top = os.getcwd()\n"
        "for name in ('/proc/mounts', '/proc/self/mounts', f'/proc/{child}/mounts', '/etc/mtab',\n"
        "             '/proc/self/mountinfo', '/proc/thread-self/mountinfo'):\n"
        "    lines = [line for line in text(name).splitlines() if top + '/a' in line]\n"
        "    print(name.rpartition('/')[2], len(lines), *lines)\n"
        "umount('a b'); print(top + '/a' in text('/proc/mounts'), ended(child))\n"
    )
    options = f"user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other,"
    options += "max_read=65536"
    flags = "rw,relatime" if os.getuid() == 0 else "rw,nosuid,nodev,relatime"
    lines = output.splitlines()
    line = f" 1 source {here}/a\\040b fuse {flags},{options} 0 0"
    assert lines[:4] == ["mounts" + line] * 3 + ["mtab" + line]
    for told in lines[4:6]:
        number, parent, device, root, path, *rest = told.split()[2:]
        assert int(number) > int(parent) > 0
        assert (device[:5], root, path) == ("0:104", "/", f"{here}/a\\040b")
        assert rest == [flags, "-", "fuse", "source", f"rw,{options}"]
    assert lines[6:] == ["False 0"]


@pytest.mark.right("user namespaces")
def test_it_is_listed_although_others_have_mounts_of_their_own(server: Shell) -> None:
    output = server(
        "child = served('mnt'); own = os.getcwd() + '/mnt fuse '\n"
        "print(own in text('/proc/mounts'), os.system('unshare -rm true'))\n"
        "print(own in text('/proc/mounts')); umount('mnt'); print(ended(child))\n"
    )
    assert output == "True 0\nTrue\n0\n"


def test_an_open_list_of_mounts_shows_what_changes(server: Shell) -> None:
    output = server(
        "child = served('mnt'); own = os.getcwd() + '/mnt fuse '; lists = open('/proc/mounts')\n"
        "print(own in lists.read(), lists.read() == '', os.stat('/proc/mounts').st_size)\n"
        "umount('mnt'); lists.seek(0); print(own in lists.read(), ended(child))\n"
    )
    assert output == "True True 0\nFalse 0\n"


@pytest.mark.right("user namespaces")
def test_where_others_see_it_who_have_mounts_of_their_own(server: Shell) -> None:
    output = server(
        "child = served('mnt'); os.mkdir('other'); top = os.getcwd()\n"
        "script = ('mount --bind . other; for list in mounts mountinfo; do '\n"
        "          'grep -o \" [^ ]*/mnt .*fuse \" /proc/self/$list; done; cat other/mnt/file')\n"
        "sys.stdout.flush(); os.system(f\"unshare -rm sh -c '{script}' | sed s,{top},,\")\n"
        "umount('mnt'); print(ended(child))\n"
    )
    flags = "rw,relatime" if os.getuid() == 0 else "rw,nosuid,nodev,relatime"
    listed = [" /mnt fuse ", " /other/mnt fuse "]
    infos = [f" {name} {flags} - fuse " for name in ("/mnt", "/other/mnt")]
    assert output.splitlines() == [*listed, *infos, "data", "0"]


def test_a_server_reaches_what_is_below_its_mount(server: Shell, here: Path) -> None:
    (here / "mnt" / "below").write_text("native\n", encoding="utf-8")
    output = server(
        "top = os.getcwd(); held = os.open('mnt', os.O_RDONLY); os.chdir('mnt')\n"
        "child = served(top + '/mnt')\n"
        "print(text('below'), os.listdir('.'), text(top + '/mnt/file'), attempt(open, 'file'))\n"
        "print(os.stat('below', dir_fd=held).st_size, attempt(open, top + '/mnt/below'))\n"
        "print(os.listdir('../mnt'), os.getcwd() == top + '/mnt')\n"
        "os.chdir('..'); umount('mnt'); print(ended(child), text('mnt/below'), end='')\n"
    )
    assert output == ("native\n ['below'] data\n ENOENT\n7 ENOENT\n['file'] True\n0 native\n")


def test_a_server_that_asks_itself_can_be_killed(server: Shell) -> None:
    output = server(
        "fuse = os.open('/dev/fuse', os.O_RDWR); mount('mnt', options(fuse)); r, w = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    serve(fuse, LOOKUP); os.write(w, b'1'); os.stat('mnt/file'); os._exit(0)\n"
        "os.close(fuse)\n"
        "thread = threading.Thread(target=lambda: print(attempt(os.stat, 'mnt/file')))\n"
        "thread.start(); os.read(r, 1)\n"
        "print(text('beside'), end='')\n"  # the sandbox serves everybody else
        "os.kill(child, 9); thread.join(); print(ended(child), attempt(umount, 'mnt'))\n"
    )
    assert output == "native\nECONNABORTED\n-9 None\n"


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3")


@root_only
@pytest.mark.right("other users")
def test_what_an_ordinary_user_may(
    server: Shell, here: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "_FUSE_CONF", str(here / "fuse.conf"))
    needs(NOBODY[-1], "python3")
    for directory in (here, *here.parents[:-2]):
        directory.chmod(0o755)
    for name, mode in (("own", 0o755), ("sticky", 0o1777)):
        (here / name).mkdir()
        (here / name).chmod(mode)
    os.chown(here / "own", 65534, 65534)
    script = (
        "fuse = os.open('/dev/fuse', os.O_RDWR); good = options(fuse)\n"
        "print([attempt(mount, name, good) for name in ('mnt', 'sticky')])\n"
        "bad = (good.replace('65534', '0'), good + ',allow_other')\n"
        "print([attempt(mount, 'own', one) for one in bad])\n"
        "print(attempt(mount, 'own', good), text('/proc/mounts').splitlines()[-1])\n"
        "print(attempt(umount, 'own'))\n"
    )
    output = server(script, python=NOBODY)
    assert output == (
        "['EPERM', 'EPERM']\n['EPERM', 'EPERM']\n"
        f"None source {here}/own fuse rw,nosuid,nodev,relatime,user_id=65534,group_id=65534 0 0\n"
        "None\n"
    )


def test_others_do_not_get_in(server: Shell) -> None:
    output = server(
        "child = served('mnt')\n"
        "def stranger():\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "    os.write(1, (attempt(os.listdir, 'mnt') + '\\n').encode())\n"
        "if os.getuid() == 0 and os.fork() == 0: stranger(); os._exit(0)\n"
        "if os.getuid() == 0: os.wait()\n"
        "else: print('EACCES')\n"
        "umount('mnt')\n"
    )
    assert output == "EACCES\n"
