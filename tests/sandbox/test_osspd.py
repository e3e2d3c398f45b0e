"""osspd, which serves OSS sound devices with libfuse 2 and threads, and a mixer that reads them."""

import subprocess

from recuse import Sandbox

PATIENCE_S = 60

SCENE = """
"$1" -f >/dev/null 2>&1 &
while ! { test -c /dev/dsp && test -c /dev/adsp && test -c /dev/mixer; }; do :; done
stat -c '%n %t:%T' /dev/adsp /dev/dsp /dev/mixer
"$2" -q
kill $!
wait $!
ls /dev/dsp /dev/mixer 2>&1 | grep -c 'No such file'
"""


def test_three_devices_of_one_server_and_a_mixer(needs):
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
    assert "pcm 100, 100" in lines
    assert lines[-1] == "2"
