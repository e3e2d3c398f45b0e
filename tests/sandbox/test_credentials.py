"""Who asks: users, groups and capabilities, also of programs that change theirs."""

import os

import pytest

from recuse import File, Memory, OpenRequest, current_request
from recuse.sandbox import Sandbox
from tests.conftest import Needs

from .conftest import Clients, Fifo, Shell, Shells

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users"),
    pytest.mark.right("other users", "namespaces"),
]

# Tries to open the device; prints what it got for reading, writing and both.
TRY = """
def look(path='/dev/echo'):
    found = []
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        result = attempt(os.open, path, flags)
        found.append(result if isinstance(result, str) else 'ok')
        if not isinstance(result, str): os.close(result)
    print(*found)
def only(capabilities):
    libc.capset(struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[capabilities] * 3, 0, 0, 0))
def become(uid, gid=None, groups=()):
    os.setgroups(groups)
    os.setresgid(*[uid if gid is None else gid] * 3); os.setresuid(uid, uid, uid)
"""


@pytest.mark.parametrize(
    ("mode", "become", "expected"),
    [
        (0o600, "become(1000)", "EACCES EACCES EACCES"),
        (0o600, "become(12)", "ok ok ok"),
        (0o400, "become(12)", "ok EACCES EACCES"),
        (0o060, "become(12, 34)", "EACCES EACCES EACCES"),
        (0o660, "become(1000, 34)", "ok ok ok"),
        (0o620, "become(1000, 1000, [5, 34])", "EACCES ok EACCES"),
        (0o606, "become(1000, 34)", "EACCES EACCES EACCES"),
        (0o604, "become(1000)", "ok EACCES EACCES"),
        (0o000, "become(12)", "EACCES EACCES EACCES"),
        (0o000, "pass", "ok ok ok"),
        (0o600, "os.seteuid(1000)", "EACCES EACCES EACCES"),
        (0o600, "os.seteuid(1000); os.seteuid(0)", "ok ok ok"),
        (0o600, "os.setresuid(1000, 12, 0)", "ok ok ok"),
        (0o600, "libc.setfsuid(1000)", "EACCES EACCES EACCES"),
        (0o660, "libc.setfsuid(1000); libc.setfsgid(34)", "ok ok ok"),
        (0o600, "libc.setfsuid(1000); libc.setfsuid(0)", "ok ok ok"),
        # Without capabilities root is one of the others.
        (
            0o600,
            "libc.capset(struct.pack('Ii', 0x20080522, 0), bytes(24))",
            "EACCES EACCES EACCES",
        ),
        # CAP_DAC_READ_SEARCH is enough to read, CAP_DAC_OVERRIDE for all.
        (0o200, "only(1 << 2)", "ok EACCES EACCES"),
        (0o000, "only(1 << 1)", "ok ok ok"),
        (0o000, "only(1 << 3)", "EACCES EACCES EACCES"),
        # Capabilities in a user namespace of one's own are none over what belongs to others.
        (0o600, "call('unshare', 0x10000000)", "EACCES EACCES EACCES"),
        (0o600, "become(1000); call('unshare', 0x10000000)", "EACCES EACCES EACCES"),
    ],
)
def test_the_mode_is_respected(
    make_echo: type[Fifo], clients: Clients, mode: int, become: str, expected: str
) -> None:
    # Also when the sandbox has seen the process before the change.
    device = make_echo(mode=mode, uid=12, gid=34)
    with Sandbox(device) as sandbox:
        client = clients(sandbox)
        assert client(f"{TRY}{become}\nlook()") == expected + "\n"
        assert client(f"{TRY}look()\n{become}\nlook()") == f"ok ok ok\n{expected}\n"


def test_the_node_itself_is_the_owners(make_echo: type[Fifo], clients: Clients) -> None:
    script = f"""{TRY}
os.chown('/dev/echo', 12, 34)
pid = os.fork()
if pid == 0:
    become(1000)
    print(attempt(os.chmod, '/dev/echo', 0o600), attempt(os.chown, '/dev/echo', 1000, -1))
    print(attempt(os.utime, '/dev/echo', (1, 1)), attempt(os.utime, '/dev/echo', None), flush=True)
    os._exit(0)
wait(pid)
pid = os.fork()
if pid == 0:
    become(12, 12, [77])
    print(attempt(os.chmod, '/dev/echo', 0o644), attempt(os.chown, '/dev/echo', 1000, -1))
    print(attempt(os.chown, '/dev/echo', -1, 77), attempt(os.chown, '/dev/echo', -1, 78))
    print(attempt(os.utime, '/dev/echo', (1, 1)), attempt(os.chown, '/dev/echo', 12, -1))
    sys.stdout.flush()
    os._exit(0)
wait(pid)
s = os.stat('/dev/echo'); print(oct(s.st_mode), s.st_uid, s.st_gid, flush=True)
pid = os.fork()
if pid == 0:
    become(1000)
    look(); print(attempt(os.utime, '/dev/echo', None), flush=True); os._exit(0)
wait(pid)
"""
    with Sandbox(make_echo()) as sandbox:
        output = clients(sandbox)(script)
    assert output.splitlines() == [
        "EPERM EPERM",
        "EPERM None",
        "None EPERM",
        "None EPERM",
        "None None",
        "0o20644 12 77",
        "ok EACCES EACCES",
        "EACCES",
    ]


def test_directories_that_exist_only_here(make_echo: type[Fifo], clients: Clients) -> None:
    script = f"""{TRY}
path = '/dev/recuse-input/event9'
fd = os.open('/dev/recuse-input', os.O_RDONLY)
os.chmod('/dev/recuse-input', 0o700)
def child(*who):
    pid = os.fork()
    if pid: return wait(pid)
    who[0](*who[1:])
    look(path)
    print(attempt(os.stat, path) == 'EACCES', attempt(os.listdir, '/dev/recuse-input'),
          attempt(os.stat, 'event9', dir_fd=fd) == 'EACCES', os.access(path, os.F_OK), flush=True)
    os._exit(0)
child(become, 1000)
child(only, 1 << 2)
child(lambda: None)
os.chmod('/dev/recuse-input', 0o711)
child(become, 1000)
"""
    with Sandbox(make_echo(name="recuse-input/event9")) as sandbox:
        output = clients(sandbox)(script)
    assert output.splitlines() == [
        "EACCES EACCES EACCES",
        "True EACCES True False",
        "ok ok ok",
        "False ['event9'] False True",
        "ok ok ok",
        "False ['event9'] False True",
        "ok ok ok",
        "False EACCES False True",
    ]


def test_requests_have_the_ids_of_the_thread(echo: Fifo, client: Shell) -> None:
    seen = []

    def note(what: str) -> None:
        request = current_request()
        seen.append((what, request.uid, request.gid, request.pid))

    class Noting(File):
        def read(self, size: int, offset: int) -> bytes:
            note("read")
            return b""

        def write(self, data: bytes, offset: int) -> None:
            note("write")

        def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
            note("ioctl")
            return 0

    def open_noting(request: OpenRequest) -> File:
        note("open")
        return Noting()

    echo.open = open_noting  # type: ignore[method-assign]  # of this device only
    printed = client(
        """
def use(fd):
    os.read(fd, 1); os.write(fd, b'x'); fcntl.ioctl(fd, 0x1234)
    print(threading.get_native_id(), flush=True)
fd = os.open('/dev/echo', os.O_RDWR)
use(fd)
def other():
    # The bare calls, which are for this thread alone.
    call(119, 5, 5, 5); call(117, 1000, 1000, 1000)
    use(fd)
thread = threading.Thread(target=other)
thread.start(); thread.join()
pid = os.fork()
if pid == 0:
    use(fd); os._exit(0)
wait(pid)
"""
    )
    main, thread, child = map(int, printed.split())
    assert seen == [
        ("open", 0, 0, main),
        *((what, 0, 0, main) for what in ("read", "write", "ioctl")),
        *((what, 1000, 5, thread) for what in ("read", "write", "ioctl")),
        *((what, 0, 0, child) for what in ("read", "write", "ioctl")),
    ]


ACCESS = """
def show():
    print(*[os.access('/dev/echo', mode, **options) for mode in (0, 4, 2, 1)
            for options in ({}, {'effective_ids': True})])
"""


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("0, 0, 0", [True, True, True, True, True, True, False, False]),
        ("1000, 0, 0", [True, True, False, True, False, True, False, False]),
        ("0, 1000, 0", [True, True, True, False, True, False, False, False]),
        ("1000, 12, 0", [True, True, False, True, False, True, False, False]),
        ("12, 1000, 0", [True, True, True, False, True, False, False, False]),
        ("1000, 1000, 1000", [True, True, False, False, False, False, False, False]),
    ],
)
def test_access_is_about_the_real_user(
    make_echo: type[Fifo], clients: Clients, ids: str, expected: list[bool]
) -> None:
    with Sandbox(make_echo(mode=0o600, uid=12, gid=34)) as sandbox:
        output = clients(sandbox)(f"{ACCESS}os.setresuid({ids}); show()")
    assert output.split() == list(map(str, expected))


def test_the_device_is_told_who_asks(echo: Fifo, client: Shell) -> None:
    seen = []
    open_echo = echo.open

    def open_file(request: OpenRequest) -> File:
        seen.append((request.uid, request.gid))
        return open_echo(request)

    echo.open = open_file  # type: ignore[method-assign]  # of this device only
    client(
        f"{TRY}os.open('/dev/echo', 0); os.setegid(5); os.open('/dev/echo', 0)\n"
        "libc.setfsuid(1000); os.open('/dev/echo', 0); become(65534); os.open('/dev/echo', 0)"
    )
    assert seen == [(0, 0), (0, 5), (1000, 5), (65534, 65534)]


@pytest.mark.parametrize("maker", ["setpriv", "su", "unshare"])
def test_programs_that_drop_privileges(
    make_echo: type[Fifo], shells: Shells, needs: Needs, maker: str
) -> None:
    needs(maker)
    as_nobody = {
        "setpriv": "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c",
        "su": "su -s /bin/sh nobody -c",
        "unshare": "setpriv --reuid=65534 --regid=65534 --clear-groups unshare -r sh -c",
    }[maker]
    public, private = make_echo(name="public"), make_echo(name="private", mode=0o600)
    with Sandbox(public, private) as sandbox:
        output = shells(sandbox)(
            f"cat /dev/private; {as_nobody} 'echo x >/dev/public; cat /dev/public; "
            "ls /dev/private; cat /dev/private'"
        )
    assert output == ("x\n/dev/private\ncat: /dev/private: Permission denied\n[status 1]")


# clone3(2) with a process id of one's choice.
AGAIN = """
def process(pid, flags=0):
    wanted = (ctypes.c_int * 1)(pid)
    args = struct.pack('10Q', flags, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1)
    while (made := call(435, args, len(args))) == 'EEXIST': pass  # not free yet
    if made == 'EPERM': print('EPERM'); sys.exit()
    return made
def free_pid():
    pid = os.fork()
    if pid == 0: os._exit(0)
    wait(pid)
    return pid
"""


def test_a_process_with_the_number_of_another_is_not_the_other(
    make_echo: type[Fifo], clients: Clients
) -> None:
    script = f"""{TRY}{AGAIN}
pid = free_pid()
if process(pid) == 0:
    look(); os._exit(0)
wait(pid)
libc.setfsuid(1000)
if process(pid) == 0:
    look(); os._exit(0)
wait(pid)
libc.setfsuid(0)
if process(pid) == 0:
    look(); os._exit(0)
wait(pid)
"""
    with Sandbox(make_echo(mode=0o600)) as sandbox:
        output = clients(sandbox)(script.replace("os._exit", "sys.stdout.flush(); os._exit"))
    if output == "EPERM\n":
        pytest.skip("process numbers cannot be chosen here")
    assert output.splitlines() == ["ok ok ok", "EACCES EACCES EACCES", "ok ok ok"]


def test_a_process_with_the_number_of_another_has_memory_of_its_own(
    echo: Fifo, client: Shell
) -> None:
    # A read into memory that the first process had, and the second has not.
    script = f"""{AGAIN}
pid = free_pid()
m = mmap.mmap(-1, 1 << 16)
address = ctypes.addressof(ctypes.c_char.from_buffer(m))
if process(pid) == 0:
    fd = os.open('/dev/echo', os.O_RDWR); os.write(fd, b'one')
    print(call('read', fd, ctypes.c_void_p(address), 100), flush=True); os._exit(0)
wait(pid)
if process(pid) == 0:
    fd = os.open('/dev/echo', os.O_RDWR); os.write(fd, b'two')
    libc.munmap(ctypes.c_void_p(address), 1 << 16)
    print(call('read', fd, ctypes.c_void_p(address), 100), os.read(fd, 9), flush=True); os._exit(0)
wait(pid)
"""
    output = client(script)
    if output == "EPERM\n":
        pytest.skip("process numbers cannot be chosen here")
    assert output == "3\nEFAULT b'two'\n"


@pytest.mark.parametrize("maker", ["thread", "vfork"])
def test_a_process_with_the_number_of_a_thread_has_paths_of_its_own(
    client: Shell, maker: str
) -> None:
    # The thread's process lives, and in its memory there is another path at that address.
    script = f"""{AGAIN}
path = ctypes.create_string_buffer(b'/dev/echo', 64)
made = []
def thread():
    made.append(threading.get_native_id())
    os.close(libc.syscall(2, path, os.O_RDWR))
def process_in_this_memory():
    # As vfork(2), with a stack of its own.
    stack = ctypes.create_string_buffer(1 << 16)
    top = ctypes.c_void_p(ctypes.addressof(stack) + len(stack) & ~15)
    entry = ctypes.cast(libc.creat, ctypes.c_void_p)
    made.append(libc.clone(entry, top, 0x100 | 0x4000 | 17, path))  # VM, VFORK, SIGCHLD
    wait(made[-1])
for turn in range(40):
    ctypes.memmove(path, b'/dev/echo\\0', 10)
    if {maker!r} == 'thread':
        other = threading.Thread(target=thread)
        other.start(); other.join()
    else:
        process_in_this_memory()
    while os.path.exists(f'/proc/{{made[-1]}}'): pass
    pid = process(made[-1])
    if pid == 0:
        ctypes.memmove(path, b'/etc/hostname\\0', 14)
        fd = libc.syscall(2, path, os.O_RDONLY)
        os._exit(os.readlink(f'/proc/self/fd/{{fd}}') != '/etc/hostname')
    if wait(pid): print('turn', turn)
print('end')
"""
    output = client(script)
    if output == "EPERM\n":
        pytest.skip("process numbers cannot be chosen here")
    assert output == "end\n"


def test_a_process_with_the_number_of_a_thread_is_not_that_thread(
    make_echo: type[Fifo], clients: Clients
) -> None:
    script = f"""{TRY}{AGAIN}
made = []
def privileged():
    made.append(threading.get_native_id()); os.close(os.open('/dev/echo', os.O_RDWR))
os.open('/dev/echo', os.O_RDWR)
for turn in range(20):
    thread = threading.Thread(target=privileged)
    thread.start(); thread.join()
    while os.path.exists(f'/proc/self/task/{{made[-1]}}'): pass
    libc.setfsuid(1000)
    pid = process(made[-1])
    if pid == 0: os._exit(attempt(os.open, '/dev/echo', os.O_RDWR) != 'EACCES')
    libc.setfsuid(0)
    if wait(pid): print('turn', turn)
print('end')
"""
    with Sandbox(make_echo(mode=0o600)) as sandbox:
        output = clients(sandbox)(script)
    if output == "EPERM\n":
        pytest.skip("process numbers cannot be chosen here")
    assert output == "end\n"


def test_a_thread_that_was_never_seen_executes_a_program(echo: Fifo, client: Shell) -> None:
    # A read into memory that the first program had, and the second has not.
    script = """
address = 0x10_0000_0000
def fill(text):
    fd = os.open('/dev/echo', os.O_RDWR); os.write(fd, text)
    print(call('read', fd, ctypes.c_void_p(address), 100), os.read(fd, 9), flush=True)
if len(sys.argv) > 1:
    fill(b'two'); sys.exit()
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
assert libc.mmap(address, 4096, 3, 0x32, -1, 0) == address
fill(b'one')
program = [part.encode() for part in [sys.executable, *sys.orig_argv[1:], 'again']]
array = (ctypes.c_char_p * (len(program) + 1))(*program)
thread = threading.Thread(target=lambda: libc.execv(program[0], array))
thread.start(); thread.join()
"""
    assert client(script) == "3 b''\nEFAULT b'two'\n"


def test_a_thread_with_credentials_of_its_own(make_echo: type[Fifo], clients: Clients) -> None:
    # The bare call changes one thread only.
    script = f"""{TRY}
def other():
    assert call(117, 1000, 1000, 1000) == 0; look()
look(); t = threading.Thread(target=other); t.start(); t.join(); look()
"""
    with Sandbox(make_echo(mode=0o600)) as sandbox:
        output = clients(sandbox)(script)
    assert output.splitlines() == ["ok ok ok", "EACCES EACCES EACCES", "ok ok ok"]
