"""osspd, which serves OSS sound devices with libfuse 2 and threads, and programs that use them.

osspd forks a slave for every open of /dev/dsp or /dev/adsp. The slave takes what begins with PULSE_
out of the caller's /proc/PID/environ and talks to the PulseAudio server found there: here one of
the test's own, outside of the sandbox, whose speaker and microphone are pipes. It has no clock: the
sound moves on when the test reads the one or writes to the other, so nothing is lost by being late.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import tempfile
import time
import wave
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from recuse import Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S

RATE_HZ = 48000

# Two ramps, one up and one down, without silence. Its length is a multiple of 4096 samples:
# Debian's sox reads beyond its buffer otherwise, until it crashes (SoX bug 300).
SOUND = b"".join(struct.pack("<hh", at % 32767 + 1, -(at % 32767) - 1) for at in range(48 * 2048))

SPOKEN = SOUND[: 6 * 8192]
"""What is recorded: it fits into a pipe."""

SCENE = """
"$1" -f >/dev/null 2>&1 &
while ! { test -c /dev/dsp && test -c /dev/adsp && test -c /dev/mixer; }; do :; done
stat -c '%n %t:%T' /dev/adsp /dev/dsp /dev/mixer
"$2" -q
"$2" -w 40 -i 30 -q
kill $!
wait $!
ls /dev/dsp /dev/mixer 2>&1 | grep -c 'No such file'
"""


def test_three_devices_of_one_server_and_a_mixer(needs: Needs) -> None:
    server = needs("osspd", "osspd")
    mixer = needs("aumix", "aumix")
    with Sandbox() as sandbox:
        done = sandbox.run(
            ["sh", "-c", SCENE, "sh", server, mixer],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE_S,
        )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["/dev/adsp e:c", "/dev/dsp e:3", "/dev/mixer e:0"]
    assert lines[3:7] == ["pcm 100, 100", "igain 100, 100, R", "pcm 40, 40", "igain 30, 30, R"]
    assert lines[-1] == "2"


@dataclass
class Pulse:
    """A PulseAudio server, and the ends of its pipes."""

    environment: dict[str, str]
    speaker: int
    microphone: int

    def hears(self, sound: bytes) -> bool:
        """Whether `sound` and nothing else is played, which is waited for.

        There may be silence in between: with no clock, whoever plays is always late.
        """
        deadline = time.monotonic() + PATIENCE_S
        rest = b""
        heard = array("I")
        while len(heard) < len(sound) // heard.itemsize:
            assert select.select([self.speaker], [], [], PATIENCE_S)[0], "no sound any more"
            assert time.monotonic() < deadline, "only silence"
            data = rest + os.read(self.speaker, 1 << 16)
            whole = len(data) // heard.itemsize * heard.itemsize
            rest = data[whole:]
            if any(data):
                heard.extend(frame for frame in array("I", data[:whole]) if frame)
        return heard.tobytes() == sound


def wait_for_server(server: subprocess.Popen[bytes], address: Path) -> None:
    """Until somebody listens at `address`."""
    deadline = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_UNIX) as client:
        while client.connect_ex(str(address)):
            assert server.poll() is None, "PulseAudio has ended"
            assert time.monotonic() < deadline, "PulseAudio does not listen"


@pytest.fixture
def pulse(needs: Needs) -> Iterator[Pulse]:
    """A sound server that takes and leaves nothing outside of a directory of its own."""
    program = needs("pulseaudio", "pulseaudio")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        address = directory / "native"
        # The user's settings, cookie and desktop are neither used nor touched.
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": name,
            "XDG_RUNTIME_DIR": name,
            "PULSE_RUNTIME_PATH": name,
            "PULSE_STATE_PATH": name,
            "PULSE_COOKIE": f"{name}/cookie",
            "PULSE_SERVER": f"unix:{address}",
        }
        form = f"format=s16le rate={RATE_HZ} channels=2"
        options = (
            "-n --daemonize=no --use-pid-file=no --exit-idle-time=-1 --disable-shm --realtime=no"
        )
        server = subprocess.Popen(
            [str(program), *options.split(), "--high-priority=no", "--log-level=error"]
            + ["-L", f"module-pipe-sink file={directory}/speaker {form}"]
            + ["-L", f"module-pipe-source file={directory}/microphone {form}"]
            + ["-L", f"module-native-protocol-unix socket={address}"],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        pipes = []
        try:
            wait_for_server(server, address)
            for pipe in ("speaker", "microphone"):
                # For reading and writing: then it does not matter who opens first.
                pipes.append(os.open(directory / pipe, os.O_RDWR | os.O_NONBLOCK))
            yield Pulse(environment, *pipes)
        finally:
            for number in pipes:
                os.close(number)
            server.kill()
            server.wait()


@pytest.fixture
def sandbox(needs: Needs, pulse: Pulse) -> Iterator[Sandbox]:
    """A sandbox with osspd in it, which serves."""
    server = needs("osspd", "osspd")
    there = "until test -c /dev/dsp && test -c /dev/adsp && test -c /dev/mixer; do :; done"
    with Sandbox() as sandbox:
        sandbox.popen([server, "-f"], env=pulse.environment)
        sandbox.run(["sh", "-c", there], timeout=PATIENCE_S)
        yield sandbox


def start(sandbox: Sandbox, pulse: Pulse, *argv: str | Path) -> subprocess.Popen[bytes]:
    return sandbox.popen(argv, env=pulse.environment, stdin=subprocess.DEVNULL)


@pytest.fixture
def sox(needs: Needs) -> Path:
    """SoX with its driver for OSS, which is a package of its own."""
    needs("/usr/lib/{multiarch}/sox/libsox_fmt_oss.so", "libsox-fmt-oss")
    return needs("sox", "sox")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file with SOUND."""
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(SOUND)
    return path


def sound_of(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, RATE_HZ)
        return file.readframes(file.getnframes())


@pytest.mark.parametrize("device", ["/dev/dsp", "/dev/adsp"])
def test_sox_plays(sandbox: Sandbox, pulse: Pulse, sox: Path, recording: Path, device: str) -> None:
    player = start(sandbox, pulse, sox, "-q", recording, "-t", "oss", device)
    assert pulse.hears(SOUND)
    assert player.wait(PATIENCE_S) == 0


def test_ffmpeg_plays(sandbox: Sandbox, pulse: Pulse, needs: Needs, recording: Path) -> None:
    ffmpeg = needs("ffmpeg", "ffmpeg")
    argv = [str(ffmpeg), "-v", "error", "-i", str(recording), "-f", "oss", "/dev/dsp"]
    player = start(sandbox, pulse, *argv)
    assert pulse.hears(SOUND)
    assert player.wait(PATIENCE_S) == 0


def test_sox_records(sandbox: Sandbox, pulse: Pulse, sox: Path, tmp_path: Path) -> None:
    assert os.write(pulse.microphone, SPOKEN) == len(SPOKEN)
    form = ["-t", "oss", "-r", str(RATE_HZ), "-c", "2", "-b", "16"]
    out = tmp_path / "out.wav"
    recorder = start(sandbox, pulse, sox, "-q", *form, "/dev/dsp", out, "trim", "0", "8192s")
    assert recorder.wait(PATIENCE_S) == 0
    assert sound_of(out) == SPOKEN[: 8192 * 4]


def test_ffmpeg_records(sandbox: Sandbox, pulse: Pulse, needs: Needs, tmp_path: Path) -> None:
    ffmpeg = needs("ffmpeg", "ffmpeg")
    assert os.write(pulse.microphone, SPOKEN) == len(SPOKEN)
    form = ["-f", "oss", "-sample_rate", str(RATE_HZ), "-channels", "2"]
    out = tmp_path / "out.wav"
    argv = [str(ffmpeg), "-v", "error", *form, "-i", "/dev/adsp", "-frames:a", "4", str(out)]
    recorder = start(sandbox, pulse, *argv)
    assert recorder.wait(PATIENCE_S) == 0
    assert len(sound_of(out)) > 0
    assert SPOKEN.startswith(sound_of(out))
