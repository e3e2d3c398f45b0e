"""What the camera answers to ioctls, one by one."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from recuse import Sandbox
from tests.examples.frames import PRELUDE, python

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_buffers() -> None:
    code = """
print(buffer(IOC.QUERYBUF), stream(True), buffer(IOC.DQBUF), stream(False))
print(request(2), request(2, memory=raw.Memory.USERPTR))
offsets = [buffer(IOC.QUERYBUF, index).m.offset for index in range(2)]
print(offsets, buffer(IOC.QUERYBUF, 2))
size = 320 * 240 * 2
maps = [mmap.mmap(camera, size, offset=offset) for offset in offsets]
print(bool(buffer(IOC.QUERYBUF, 1).flags & raw.BufferFlag.MAPPED))
for length, offset, flags in ((size, 4096, 1), (size + 4096, 0, 1), (size, 0, 2)):
    try:
        mmap.mmap(camera, length, offset=offset, flags=flags)
    except OSError as error:
        print(errno.errorcode[error.errno])
print(call(IOC.EXPBUF, raw.v4l2_exportbuffer(B)), call(IOC.S_FMT, raw.v4l2_format(B)))
other = opened(os.O_RDWR | os.O_NONBLOCK)
print(request(1, other), stream(True, other), buffer(IOC.DQBUF, 0, other))
poller = select.poll()
poller.register(camera)
print(poller.poll(0) == [(camera, select.POLLERR)])
print(buffer(IOC.QBUF).flags & raw.BufferFlag.QUEUED, buffer(IOC.QBUF))
print(stream(True), request(1))
done = buffer(IOC.DQBUF)
number = pictures.read_number(__import__("numpy").frombuffer(maps[0], "uint8")
                              [:size].reshape(240, 640)[:, ::2])
print(done.index, done.bytesused, done.sequence == number, done.field == raw.Field.NONE)
os.set_blocking(camera, False)
print(buffer(IOC.DQBUF))
buffer(IOC.QBUF, 1)
print(poller.poll(20_000) == [(camera, select.POLLIN)])
print(buffer(IOC.DQBUF).index, stream(False), stream(False), request(0), request(1, other))
print(maps[0][0] == 16, request(1))
os.close(other)
print(request(1, opened()))
"""
    size = 320 * 240 * 2
    room = -(-size // 4096) * 4096
    assert python(code) == [
        "EINVAL EINVAL EINVAL done",
        "2 EINVAL",
        f"[0, {room}] EINVAL",
        "True",
        *["EINVAL"] * 3,
        "ENOTTY EBUSY",
        "EBUSY EBUSY EBUSY",
        "True",
        "2 EINVAL",
        "done EBUSY",
        f"0 {size} True True",
        "EAGAIN",
        "True",
        "1 done done 0 1",
        "True EBUSY",
        "1",
    ]


def test_more_buffers() -> None:
    code = """
def create(count, size=0):
    asked = raw.v4l2_create_buffers(count=count, memory=MMAP, format=raw.v4l2_format(B))
    asked.format.fmt.pix.sizeimage = size or 320 * 240 * 2
    done = call(IOC.CREATE_BUFS, asked)
    return done if isinstance(done, str) else (done.index, done.count)

print(request(1), create(2), create(1, 200_000), create(1, 100), create(1, 1 << 27))
print(buffer(IOC.QUERYBUF, 2).length, buffer(IOC.QUERYBUF, 3).length)
print(create(0), create(40), create(0), create(1), request(40))
# None of them is queued, so no frame can come.
poller = select.poll()
poller.register(camera, select.POLLIN)
print(stream(True), poller.poll(0) == [(camera, select.POLLERR)])
"""
    assert python(code) == [
        "1 (1, 2) (3, 1) EINVAL EINVAL",
        "153600 200000",
        "(4, 0) (4, 28) (32, 0) ENOBUFS 32",
        "done True",
    ]


def test_what_is_not_mapped() -> None:
    code = """
import time
def map_it(protection=mmap.PROT_READ):
    try:
        mmap.mmap(camera, 4096, prot=protection).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "mapped"

print(map_it())
request(1)
print(map_it(), map_it(mmap.PROT_WRITE), map_it(mmap.PROT_READ | mmap.PROT_WRITE))
# They are gone; the camera hears of that soon.
until = time.monotonic() + 20
while buffer(IOC.QUERYBUF).flags & raw.BufferFlag.MAPPED:
    assert time.monotonic() < until
request(0)
print(len(os.read(camera, 10)), map_it(), request(1))
"""
    assert python(code) == ["EINVAL", "mapped EINVAL mapped", "10 EBUSY EBUSY"]


def test_the_frame_rate() -> None:
    """What is set is what comes, at the earliest; frames may be late."""
    code = """
wanted = raw.v4l2_streamparm(B)
wanted.parm.capture.timeperframe = raw.v4l2_fract(1, 90)
told = call(IOC.S_PARM, wanted).parm.capture.timeperframe
print(told.numerator, told.denominator)
request(2)
for index in range(2):
    buffer(IOC.QBUF, index)
stream(True)
frames = []
for _ in range(8):
    frames.append(buffer(IOC.DQBUF))
    buffer(IOC.QBUF, frames[-1].index)
first, last = frames[0], frames[-1]
seconds = (last.timestamp.secs - first.timestamp.secs) + (
    last.timestamp.usecs - first.timestamp.usecs) / 1e6
print(seconds > (last.sequence - first.sequence) / 2 * 3 / 250)
"""
    assert python(code) == ["3 250", "True"]


def test_dequeueing_ends_with_the_stream() -> None:
    """A program that waits for a frame, with no buffer queued, hears of the stream's end."""
    code = """
import threading
request(1)
stream(True)
found = []
waiting = threading.Thread(target=lambda: found.append(buffer(IOC.DQBUF)))
waiting.start()
while not open(f"/proc/self/task/{waiting.native_id}/syscall").read().startswith("16 "):
    pass  # until it is in ioctl(2)
stream(False)
waiting.join(20)
print(found)
"""
    assert python(code) == ["['EINVAL']"]


def test_a_slow_program_loses_frames() -> None:
    """Those that come while no buffer is free; their numbers are left out, 500 in a second."""
    code = """
import time
import numpy as np
request(2)
memory = mmap.mmap(camera, 320 * 240 * 2)
stream(True)
buffer(IOC.QBUF)
last = buffer(IOC.DQBUF)
for _ in range(3):
    begin = last.timestamp.secs + last.timestamp.usecs / 1e6
    while time.monotonic() < begin + 0.05:
        pass
    buffer(IOC.QBUF)
    done = buffer(IOC.DQBUF)
    luma = np.frombuffer(memory, "uint8")[:320 * 240 * 2].reshape(240, 640)[:, ::2]
    print(done.sequence - last.sequence >= 23, pictures.read_number(luma) == done.sequence)
    last = done
"""
    assert python(code) == ["True True"] * 3


def test_extended_controls_tell_which_one_is_wrong() -> None:
    code = """
ids = raw.ControlID
def several(command, *pairs, which=0):
    items = (raw.v4l2_ext_control * len(pairs))()
    for item, (item.id, item.value) in zip(items, pairs):
        pass
    asked = raw.v4l2_ext_controls(count=len(pairs), error_idx=99)
    asked.reserved[0] = 1
    asked.which = which
    asked.controls = ctypes.cast(items, type(asked.controls))
    done = call(command, asked)
    assert asked.reserved[0] == 0
    return done if isinstance(done, str) else "", asked.error_idx, [i.value for i in items]

print(several(IOC.S_EXT_CTRLS, (ids.BRIGHTNESS, 300), (ids.HFLIP, 7)))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.HFLIP, 0)))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), which=raw.ControlWhichValue.DEF_VAL))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.GAIN, 0)))
print(several(IOC.TRY_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.TEST_PATTERN, 3)))
print(several(IOC.S_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.TEST_PATTERN, 3)))
print(several(IOC.TRY_EXT_CTRLS, (ids.BRIGHTNESS, 0), which=0x9f0000))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0)))
print(several(IOC.TRY_EXT_CTRLS, which=0x9f0000), several(IOC.TRY_EXT_CTRLS, which=0x9a0000))
print(several(IOC.TRY_EXT_CTRLS, (ids.HFLIP, -1), (ids.CONTRAST, -1)))
print(call(IOC.G_EXT_CTRLS, raw.v4l2_ext_controls(count=1025)))
"""
    assert python(code) == [
        "('', 2, [255, 1])",
        "('', 2, [255, 1])",
        "('', 1, [128])",
        "('EINVAL', 2, [0, 0])",
        "('ERANGE', 1, [0, 3])",
        "('ERANGE', 2, [0, 3])",
        "('EINVAL', 0, [0])",
        "('', 1, [255])",
        "('', 0, []) ('EINVAL', 0, [])",
        "('', 2, [1, 0])",
        "EINVAL",
    ]


def test_which_events_come() -> None:
    code = """
ids, flag = raw.ControlID, raw.EventSubscriptionFlag
other = opened()
os.set_blocking(camera, False)

def subscribe(flags, which=ids.CONTRAST):
    wanted = raw.v4l2_event_subscription(raw.EventType.CTRL, which, flags)
    return call(IOC.SUBSCRIBE_EVENT, wanted)

def change(value, fd):
    call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, value), fd)

def event():
    done = call(IOC.DQEVENT, raw.v4l2_event())
    return done if isinstance(done, str) else (done.u.ctrl.value, done.u.ctrl.changes)

subscribe(0)
change(1, camera)
print(event())
change(1, other)
print(event())
subscribe(flag.ALLOW_FEEDBACK)
change(2, camera)
print(event())
subscribe(flag.SEND_INITIAL)
change(3, other)
print(event(), event())
subscribe(0, ids.BRIGHTNESS)
change(4, other)
call(IOC.UNSUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.ALL))
print(event())
change(5, other)
print(event())
"""
    assert python(code) == ["ENOENT", "ENOENT", "(2, 1)", "(3, 3) ENOENT", "ENOENT", "ENOENT"]


@pytest.mark.parametrize("polls", [False, True], ids=["ioctl", "poll"])
def test_events_wake_who_waits(polls: bool) -> None:
    code = f"""
import threading
other, control = opened(), raw.ControlID.CONTRAST
call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, control))
poller = select.poll()
poller.register(camera, select.POLLPRI)
polls = {polls}
found = []
def wait():
    found.append(poller.poll(20_000) if polls else call(IOC.DQEVENT, raw.v4l2_event()).id)
waiting = threading.Thread(target=wait)
waiting.start()
while not open(f"/proc/self/task/{{waiting.native_id}}/syscall").read().startswith(
    "7 " if polls else "16 "
):
    pass  # until it is in poll(2) or ioctl(2)
call(IOC.S_CTRL, raw.v4l2_control(control, 9), other)
waiting.join(20)
print(found == [[(camera, select.POLLPRI)] if polls else control])
"""
    assert python(code) == ["True"]


def test_events_and_priority() -> None:
    code = """
ids = raw.ControlID
other = opened()
poller = select.poll()
poller.register(camera, select.POLLPRI)
wanted = raw.v4l2_event_subscription(raw.EventType.CTRL, ids.CONTRAST)
print(call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, 5)))
call(IOC.SUBSCRIBE_EVENT, wanted)
print(poller.poll(0))
for fd, value in ((camera, 1), (other, 2), (other, 2), (other, 3)):
    call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, value), fd)
print(poller.poll(0) == [(camera, select.POLLPRI)])
call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, ids.BRIGHTNESS))
call(IOC.S_CTRL, raw.v4l2_control(ids.BRIGHTNESS, 1), other)
event = call(IOC.DQEVENT, raw.v4l2_event())
print(event.id == ids.CONTRAST, event.u.ctrl.value, event.u.ctrl.changes, event.pending)
os.set_blocking(camera, False)
print(call(IOC.DQEVENT, raw.v4l2_event()).pending, call(IOC.DQEVENT, raw.v4l2_event()))
call(IOC.UNSUBSCRIBE_EVENT, wanted)
call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 4), other)
print(call(IOC.DQEVENT, raw.v4l2_event()))

print(call(IOC.S_PRIORITY, ctypes.c_uint32(3), other).value)
print(call(IOC.G_PRIORITY, ctypes.c_uint32()).value)
print(call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 5)), request(1), request(1, other))
create = raw.v4l2_create_buffers(count=1, memory=MMAP, format=raw.v4l2_format(B))
for command, asked in (
    (IOC.S_INPUT, ctypes.c_int(0)), (IOC.S_FMT, raw.v4l2_format(B)),
    (IOC.S_PARM, raw.v4l2_streamparm(B)), (IOC.S_EXT_CTRLS, raw.v4l2_ext_controls()),
    (IOC.S_PRIORITY, ctypes.c_uint32(1)), (IOC.CREATE_BUFS, create),
    (IOC.STREAMON, ctypes.c_int(B)), (IOC.STREAMOFF, ctypes.c_int(B)),
):
    print(call(command, asked), end=" ")
print(request(0, other), call(IOC.S_INPUT, ctypes.c_int(0)))
print(call(IOC.S_PRIORITY, ctypes.c_uint32(9), other))
os.close(other)
print(call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 5), opened()).value)
"""
    assert python(code) == [
        "EINVAL",
        "[]",
        "True",
        "True 3 1 1",
        "0 ENOENT",
        "ENOENT",
        "3",
        "3",
        "EBUSY EBUSY 1",
        "EBUSY " * 8 + "0 EBUSY",
        "EINVAL",
        "5",
    ]


def test_a_program_that_is_killed_gives_the_buffers_back() -> None:
    code = """
import signal, subprocess
if not (child := os.fork()):
    os.close(camera)
    camera = opened()
    request(4)
    kept = mmap.mmap(camera, 320 * 240 * 2)
    buffer(IOC.QBUF)
    stream(True)
    buffer(IOC.DQBUF)
    os.kill(os.getpid(), signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), request(2, opened()))
"""
    assert python(code) == ["-9 2"]


def test_nothing_is_left_of_a_program() -> None:
    import camera  # noqa: PLC0415

    code = """
call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, raw.ControlID.CONTRAST))
request(2)
buffer(IOC.QBUF)
stream(True)
kept = mmap.mmap(camera, 4096)
print(buffer(IOC.DQBUF).sequence >= 0)
"""
    device = camera.Camera(fps=500, width=320, height=240)
    with Sandbox(device) as sandbox:
        program = [sys.executable, "-c", PRELUDE + code]
        assert sandbox.run(program, capture_output=True, timeout=60).stdout == b"True\n"
    assert device.controls.files == device.opened == set()
    assert (device.queue.area, device.queue.owner, device.queue.streaming) == (None, None, False)
