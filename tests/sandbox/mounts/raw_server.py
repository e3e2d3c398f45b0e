"""A server at /dev/fuse without any library, as the beginning of scripts for tests.

It serves a directory with one file, ``file``. ``mounted`` says in which directory that is.
"""

SERVER = r"""
import ctypes, errno, fcntl, os, select, signal, stat, struct, sys, threading

libc = ctypes.CDLL(None, use_errno=True)
INIT, LOOKUP, GETATTR, OPEN, READ, OPENDIR, READDIR = 26, 1, 3, 14, 15, 27, 28
FORGET, BATCH_FORGET, ACCESS, STATFS, RELEASE, FLUSH, RELEASEDIR = 2, 42, 34, 17, 18, 25, 29
CLONE = 0x8004E500

def attempt(function, *args, **options):
    try:
        return function(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]

def be_watched():
    # Where a container refuses mount and umount2, recuse sees them only of threads that it watches.
    os.close(os.open("/dev/fuse", os.O_RDWR))

def mount(target, data, kind=b"fuse", flags=0, source=b"source"):
    if flags & 32: be_watched()  # MS_REMOUNT: it has been a while since it was mounted
    if libc.mount(source, os.fsencode(target), kind, flags, os.fsencode(data)):
        raise OSError(ctypes.get_errno(), "mount")

def umount(target, flags=0):
    be_watched()
    if libc.umount2(os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "umount")

def options(fuse, more=""):
    return f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}{more}"

def request(message):
    length, opcode, unique, node = struct.unpack_from("=IIQQ", message)
    assert length == len(message), (length, len(message))
    return opcode, unique, node, message[40:]

def reply(unique, body=b"", error=0):
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body

def init(unique, minor=31):
    return reply(unique, struct.pack("=IIIIHHI", 7, minor, 0, 0, 12, 9, 1 << 16) + bytes(40))

def attr(node):
    mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o644, 5)
    return struct.pack("=6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1,
                       os.getuid(), os.getgid(), 0, 4096, 0)

def answer(opcode, unique, node, body):
    '''The reply to a request; None if it needs none.'''
    if opcode == INIT:
        return init(unique)
    if opcode == LOOKUP:
        if body != b"file\0":
            return reply(unique, error=-errno.ENOENT)
        return reply(unique, struct.pack("=4Q2I", 2, 0, 0, 0, 0, 0) + attr(2))
    if opcode == GETATTR:
        return reply(unique, struct.pack("=Q2I", 0, 0, 0) + attr(node))
    if opcode in (OPEN, OPENDIR):
        return reply(unique, struct.pack("=QIi", 7, 1, 0))
    if opcode == READ:
        offset, size = struct.unpack_from("=8xQI", body)
        return reply(unique, b"data\n"[offset : offset + size])
    if opcode == READDIR:
        (offset,) = struct.unpack_from("=8xQ", body)
        return reply(unique, b"" if offset else struct.pack("=QQII8s", 2, 1, 4, 8, b"file"))
    if opcode == STATFS:
        return reply(unique, struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 512, 255, 512, 0))
    if opcode in (RELEASE, FLUSH, RELEASEDIR):
        return reply(unique)
    if opcode in (FORGET, BATCH_FORGET):
        return None
    return reply(unique, error=-errno.ENOSYS)

def serve(fuse, until=None):
    '''Answer until the end, or until a request of that kind is there, which is returned.'''
    while True:
        try:
            message = os.read(fuse, 1 << 17)
        except OSError as error:
            return errno.errorcode[error.errno]
        told = request(message)
        if told[0] == until:
            return told
        done = answer(*told)
        if done is not None:
            try: os.write(fuse, done)
            except FileNotFoundError: pass  # it has ended meanwhile

def served(target, more="", until=None):
    '''Serve there in a child; returns its ID.'''
    fuse = os.open("/dev/fuse", os.O_RDWR)
    mount(target, options(fuse, more))
    child = os.fork()
    if not child:
        told = serve(fuse, until)
        if isinstance(told, tuple):
            signal.pause()
        os._exit(told != "ENODEV")
    os.close(fuse)
    return child

def ended(child):
    '''Its exit status.'''
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def text(path):
    with open(path) as file:
        return file.read()
"""
