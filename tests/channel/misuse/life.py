"""Sections about devices: notifications, names, and the end."""

from __future__ import annotations

import os
import struct

from .kit import (
    INIT,
    Channel,
    Client,
    attempt,
    client_ioctl,
    client_read,
    client_write,
    command,
    device,
    init_out,
    opened,
    poll_state,
    released,
    reply,
    say,
)


def section_notifications() -> None:
    """Notifications before there is a device, and with one."""
    channel, path = device()
    fresh = Channel()
    fd = opened(channel, path)
    for name, to in (("no device", fresh), ("device", channel)):
        for code in range(11):
            for size in (0, 7, 8, 9, 16, 24, 32, 40, 48):
                result = to.write(reply(0, bytes(size), code))
                if result != "EINVAL":
                    say(f"{name}: code {code}, {size} bytes", result)
        say(f"{name}: POLL, kh unknown", to.write(reply(0, struct.pack("=Q", 99), 1)))
        say(f"{name}: POLL, no kh", to.write(reply(0, b"", 1)))
        say(f"{name}: POLL, 9 bytes", to.write(reply(0, bytes(9), 1)))
        for code in (-1, -5, -512, 1 << 30):
            say(f"{name}: code {code}", to.write(reply(0, bytes(8), code)))
        # INVAL_ENTRY and DELETE look at the length of a name.
        entry = struct.pack("=QII", 1, 3, 0) + b"abc\0"
        say(f"{name}: INVAL_ENTRY", to.write(reply(0, entry, 3)))
        say(f"{name}: INVAL_ENTRY, short", to.write(reply(0, entry[:-1], 3)))
        entry = struct.pack("=QII", 1, 2000, 0) + bytes(2001)
        say(f"{name}: INVAL_ENTRY, long name", to.write(reply(0, entry, 3)))
        entry = struct.pack("=QQII", 1, 2, 3, 0) + b"abc\0"
        say(f"{name}: DELETE", to.write(reply(0, entry, 6)))
        store = struct.pack("=QQII", 1, 0, 4, 0)
        say(f"{name}: STORE", to.write(reply(0, store + b"abcd", 4)))
        say(f"{name}: STORE, short", to.write(reply(0, store + b"abc", 4)))
        say(f"{name}: poll", poll_state(to.fd))
    released(channel, fd)
    fresh.close()
    channel.close()


def section_names() -> None:
    """Two channels that want the same."""
    one = Channel()
    one.serve(INIT, init_out(b"DEVNAME=misuse-twice\0", device=(240, 7)))
    other = Channel()
    request = other.next()
    payload = init_out(b"DEVNAME=misuse-twice\0")
    say("the name again", other.write(reply(request.unique, payload)))
    say("read", other.read())
    say("the first is", os.path.exists("/dev/misuse-twice"))
    other.close()
    say("and then", os.path.exists("/dev/misuse-twice"))
    other = Channel()
    request = other.next()
    payload = init_out(b"DEVNAME=misuse-second\0", device=(240, 7))
    say("the number again", other.write(reply(request.unique, payload)))
    say("read", other.read())
    say("the second is", os.path.exists("/dev/misuse-second"))
    other.close()
    one.close()


def section_end() -> None:
    """What becomes of those who wait when the channel is closed."""
    channel, path = device()
    fd = opened(channel, path)
    other = opened(channel, path)
    read = Client(client_read, fd, 3)
    channel.next()
    write = Client(client_write, other, b"data")
    channel.wait()
    copy = os.dup(channel.fd)
    channel.close()
    say("a copy: poll", poll_state(copy))
    say("there is", os.path.exists(path))
    os.close(copy)
    say("read that was read", read.result)
    say("write that was not", write.result)
    say("read", client_read(fd, 3))
    say("write", client_write(fd, b"data"))
    say("ioctl", client_ioctl(fd, command(0, 0), 0))
    say("read nothing", client_read(fd, 0))
    say("lseek", attempt(os.lseek, fd, 5, os.SEEK_SET))
    say("there is", os.path.exists(path))
    say("open", attempt(os.open, path, os.O_RDWR))
    say("open again by /proc", attempt(os.open, f"/proc/self/fd/{fd}", os.O_RDWR))
    say("close", attempt(os.close, fd))
    again = Channel()
    name = path.removeprefix("/dev/").encode()
    again.serve(INIT, init_out(b"DEVNAME=" + name + b"\0"))
    say("the name again", os.path.exists(path))
    say("the old file", client_read(other, 3))
    os.close(other)
    say("poll", poll_state(again.fd))
    again.close()


def section_sysfs() -> None:
    """What an administrator sees and does."""
    channel, path = device()
    directory = f"/sys/class/cuse/{os.path.basename(path)}"

    def waiting() -> str:
        with open(f"{directory}/waiting") as file:
            return file.read().strip()

    say("waiting", waiting())
    fd = opened(channel, path)
    say("waiting", waiting())
    clients = [Client(client_read, fd, 3)]
    channel.wait()
    say("waiting, not read", waiting())
    channel.next()
    say("waiting, read", waiting())
    clients.append(Client(client_read, fd, 3))
    channel.wait()
    say("waiting, both", waiting())
    with open(f"{directory}/abort", "w") as file:
        file.write("1")
    say("clients", [client.result for client in clients])
    say("waiting", waiting())
    say("poll", poll_state(channel.fd))
    say("read", f"{channel.read(100)} {channel.read()}")
    say("write", f"{channel.answer(b'abc')} {channel.write(reply(0, bytes(8), 1))}")
    say("client", client_read(fd, 3))
    say("there is", os.path.exists(path))
    say("open", attempt(os.open, path, os.O_RDWR))
    say("close", attempt(os.close, fd))
    with open(f"{directory}/abort", "w") as file:
        file.write("1")
    channel.close()
    # A sandbox notices a close when something is opened, if not before.
    Channel().close()
    say("there is", f"{os.path.exists(path)} {os.path.exists(directory)}")
