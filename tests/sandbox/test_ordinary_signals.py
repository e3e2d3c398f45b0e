"""Signals for programs that have nothing to do with devices: they see what they see outside."""

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recuse import Device, File, Memory, OpenRequest
from recuse.sandbox import Sandbox
from recuse.sandbox.arch import MACHINE
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Compiled

Run = Callable[..., str]


CALLS_THAT_WAIT = (
    "read",
    "write",
    "recv",
    "accept",
    "open",
    "flock",
    "fcntl",
    "wait",
    "poll",
    "select",
    "epoll_wait",
    "pause",
)


class QuickFile(File):
    device: "Quick"

    def read(self, size: int, offset: int) -> bytes:
        data, self.device.data = self.device.data[:size], self.device.data[size:]
        return data

    def write(self, data: bytes, offset: int) -> None:
        self.device.data += data

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        return 7


class Quick(Device):
    """Answers everything at once."""

    name = "quick"
    data = b""

    def open(self, request: OpenRequest) -> File:
        return QuickFile()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Run]:
    """Runs a command in a sandbox, in a directory of its own; returns what it prints."""
    with Sandbox(Quick()) as sandbox:
        yield functools.partial(_run, sandbox.run, tmp_path / "inside")


@pytest.fixture
def outside(tmp_path: Path) -> Run:
    """The same without a sandbox."""
    return functools.partial(_run, subprocess.run, tmp_path / "outside")


def _run(
    run: Callable[..., subprocess.CompletedProcess[str]],
    directory: Path,
    *argv: object,
    **options: Any,
) -> str:
    directory.mkdir(exist_ok=True)
    options = {"cwd": directory, "timeout": PATIENCE_S, "stderr": subprocess.STDOUT} | options
    done = run([str(part) for part in argv], stdout=subprocess.PIPE, text=True, **options)
    return done.stdout if done.returncode == 0 else f"{done.stdout}[status {done.returncode}]"


@pytest.mark.parametrize("flags", [(), ("-static",), ("-DTHREADS", "-pthread"), ("-m32",)])
@pytest.mark.parametrize("hertz", [100, 2000])
def test_calls_that_no_signal_interrupts(
    inside: Run, compiled: Compiled, needs: Needs, hertz: int, flags: tuple[str, ...]
) -> None:
    if MACHINE == "aarch64":
        pytest.skip("a frame there lacks a call's first argument: nothing is put right")
    if "-m32" in flags:
        needs("/usr/include/{multiarch}/gnu/stubs-32.h", package="gcc-multilib")
    program = compiled("uninterrupted", *flags)
    output = inside(program, hertz, 200, "/dev/quick")
    found = re.fullmatch(r"0 failures in (\d+) calls, with (\d+) signals\n", output)
    assert found, output
    assert int(found[1]) >= 9000


@pytest.mark.slow
@pytest.mark.parametrize("hertz", [20, 100, 1000])
def test_a_hundred_thousand_calls(inside: Run, compiled: Compiled, hertz: int) -> None:
    output = inside(compiled("uninterrupted"), hertz, 2000, "/dev/quick")
    assert re.fullmatch(r"0 failures in 1\d{5} calls, with \d+ signals\n", output), output


@pytest.mark.parametrize("call", CALLS_THAT_WAIT)
@pytest.mark.parametrize("handler", ["plain", "restart"])
@pytest.mark.parametrize("flags", [(), ("-m32",)])
def test_calls_that_wait_are_interrupted_as_outside(  # noqa: PLR0917
    inside: Run,
    outside: Run,
    compiled: Compiled,
    needs: Needs,
    flags: tuple[str, ...],
    handler: str,
    call: str,
) -> None:
    if flags:
        needs("/usr/include/{multiarch}/gnu/stubs-32.h", package="gcc-multilib")
    program = compiled("interrupted", *flags)
    result = inside(program, handler, call)
    assert result == outside(program, handler, call)
    assert result in {"EINTR\n", "went on\n"}


PYTHON = """
import os, signal, sys
count = 0
def on_alarm(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, on_alarm)
if sys.argv[2] == "restart":
    signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 1 / int(sys.argv[1]), 1 / int(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    with open("a", "w") as file:
        file.write("text")
    assert open("a").read() == "text"
    os.rename("a", "b")
    os.stat("b")
    os.mkdir("d")
    os.chdir("d")
    os.chdir("..")
    os.rmdir("d")
    os.symlink("b", "l")
    assert os.readlink("l") == "b"
    assert os.access("b", os.R_OK)
    os.unlink("l")
    assert sorted(os.listdir(".")) == ["b"]
    os.getcwd()
    os.unlink("b")
signal.setitimer(signal.ITIMER_REAL, 0)
assert count
print("done")
"""


@pytest.mark.parametrize("handler", ["plain", "restart"])
def test_timers_in_python(inside: Run, handler: str) -> None:
    argv = [sys.executable, "-I", "-S", "-W", "ignore", "-c", PYTHON, 1000, handler, 400]
    assert inside(*argv) == "done\n"


PERL = r"""
use POSIX; use Time::HiRes qw(setitimer ITIMER_REAL);
my $count = 0; $SIG{ALRM} = sub { $count++ }; setitimer(ITIMER_REAL, 0.001, 0.001);
sub check { my ($what, $good) = @_; $good or do { print "$what: $!\n"; exit 1 } }
for (1 .. 400) {
    check("open", open(my $file, ">", "a")); print $file "text"; close $file;
    check("-e", -e "a"); check("stat", stat("a")); check("mkdir", mkdir "d");
    check("rename", rename("d", "e")); check("rmdir", rmdir "e");
    check("opendir", opendir(my $dir, ".")); check("readdir", readdir $dir); closedir $dir;
    check("getcwd", POSIX::getcwd()); check("chdir", chdir "."); check("unlink", unlink "a");
}
setitimer(ITIMER_REAL, 0); print $count > 0 ? "done\n" : "no signals\n";
"""


def test_timers_in_perl(inside: Run, needs: Needs) -> None:
    assert inside(needs("perl", package="perl"), "-e", PERL) == "done\n"


JAVA = """
import java.nio.file.*;
public class Signals {
    static volatile int count = 0;
    public static void main(String[] args) throws Exception {
        sun.misc.Signal.handle(new sun.misc.Signal("ALRM"), signal -> count++);
        long pid = ProcessHandle.current().pid();
        String loop = "while kill -ALRM " + pid + " 2>/dev/null; do :; done";
        Process signals = new ProcessBuilder("sh", "-c", loop).start();
        for (int round = 0; round < 500 || count == 0; round++) {
            Path file = Path.of("a"), other = Path.of("b"), directory = Path.of("d");
            Files.writeString(file, "text");
            if (!Files.readString(file).equals("text")) throw new Exception("other text");
            Files.move(file, other);
            if (!Files.exists(other)) throw new Exception("it is not there");
            Files.delete(other);
            Files.createDirectory(directory);
            Files.list(Path.of(".")).close();
            Files.delete(directory);
        }
        signals.destroyForcibly();
        System.out.println("done");
        System.exit(0);
    }
}
"""


@pytest.mark.slow
def test_signals_in_java(inside: Run, needs: Needs, tmp_path: Path) -> None:
    java = needs("java", package="default-jdk-headless")
    source = tmp_path / "Signals.java"
    source.write_text(JAVA)
    assert inside(java, source, stderr=subprocess.DEVNULL) == "done\n"


GO = """
package main

import ("fmt"; "os"; "os/signal"; "syscall"; "unsafe")

func check(err error) {
    if err != nil { fmt.Println(err); os.Exit(1) }
}

func main() {
    signals := make(chan os.Signal, 1000)
    signal.Notify(signals, syscall.SIGALRM)
    timer := [4]int64{0, 1000, 0, 1000}
    syscall.Syscall(syscall.SYS_SETITIMER, 0, uintptr(unsafe.Pointer(&timer)), 0)
    for round := 0; round < 1000; round++ {
        check(os.WriteFile("a", []byte("text"), 0644))
        text, err := os.ReadFile("a")
        check(err)
        if string(text) != "text" { fmt.Println("other text"); os.Exit(1) }
        check(os.Rename("a", "b"))
        _, err = os.Stat("b")
        check(err)
        check(os.Remove("b"))
        check(os.Mkdir("d", 0755))
        _, err = os.ReadDir(".")
        check(err)
        check(os.Remove("d"))
        check(os.Chdir("."))
        _, err = os.Getwd()
        check(err)
    }
    <-signals
    fmt.Println("done")
}
"""


@pytest.mark.slow
def test_timers_in_go(inside: Run, needs: Needs, tmp_path: Path) -> None:
    go = needs("go", package="golang-go")
    source = tmp_path / "signals.go"
    source.write_text(GO)
    build = [str(go), "build", "-o", str(tmp_path / "signals"), str(source)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GO111MODULE": "off"}
    subprocess.run(build, check=True, env=environment, cwd=tmp_path)
    assert inside(tmp_path / "signals") == "done\n"


def shells(needs: Needs, name: str) -> list[str | Path]:
    """The command line of a shell."""
    if name == "busybox":
        return [needs("busybox", package="busybox-static"), "sh"]
    return [needs(name, package=name)]


EVERY_SHELL = pytest.mark.parametrize("name", ["dash", "busybox", "bash"])

CHILDREN_END = """
bad=0 round=0
: >file
while [ $round -lt 60 ]; do
    /bin/true & /bin/true & /bin/true &
    [ -e file ] || { bad=$((bad+1)); echo "$round: it is not there"; }
    [ -e file ] || { bad=$((bad+1)); echo "$round: it is not there"; }
    echo "line $round" >file || { bad=$((bad+1)); echo "$round: write failed"; }
    read -r line <file || { bad=$((bad+1)); echo "$round: read failed"; }
    [ "$line" = "line $round" ] || { bad=$((bad+1)); echo "$round: read '$line'"; }
    cd . || { bad=$((bad+1)); echo "$round: cd failed"; }
    [ "$(cat file | cat)" = "line $round" ] || { bad=$((bad+1)); echo "$round: pipe failed"; }
    round=$((round+1)); [ $((round % 20)) = 0 ] && wait
done
wait
echo "$bad failures"
"""


@EVERY_SHELL
def test_children_end_while_a_shell_works(inside: Run, needs: Needs, name: str) -> None:
    assert inside(*shells(needs, name), "-c", CHILDREN_END) == "0 failures\n"


TRAPS = """
trap 'got="$got usr1"' USR1
trap 'got="$got term"' TERM
got=
kill -USR1 $$; kill -TERM $$
echo "traps:$got"
(trap 'echo child; exit 3' USR1; : >trapping; while :; do :; done) &
until [ -e trapping ]; do :; done
kill -USR1 $!; wait $!; echo "status $?"
mkfifo pipe
(read line <pipe; echo "read $line") & reader=$!
echo "through the pipe" >pipe
wait $reader
(exit 5); echo "status $?"
sleep 100 & sleeper=$!
until grep -qx sleep /proc/$sleeper/comm; do :; done
kill $sleeper; wait $sleeper 2>/dev/null; echo "killed $?"
trap - USR1 TERM; trap
printf 'a\\nb\\nc\\n' | while read -r x; do /bin/true & echo "line $x"; done; wait
for n in 1 2 3 4 5; do (exit $n) & eval "child$n=\\$!"; done
for n in 5 4 3 2 1; do eval "wait \\$child$n"; echo "child $n ended with $?"; done
"""


@EVERY_SHELL
def test_traps_and_waits_are_as_outside(inside: Run, outside: Run, needs: Needs, name: str) -> None:
    argv = [*shells(needs, name), "-c", TRAPS]
    found = inside(*argv)
    assert "child 1 ended with 1" in found
    assert found == outside(*argv)


JOBS = """
set -m
sleep 100 & first=$!
sleep 200 & second=$!
kill -STOP $first
until grep -q '^State:.T' /proc/$first/status; do :; done
jobs | sed 's/ *$//'
kill -CONT $first
until grep -q '^State:.S' /proc/$first/status; do :; done
kill -TERM $first $second
wait $first $second; echo "status $?"
(kill -STOP $(exec sh -c 'echo $PPID'); echo "went on" >third) & third=$!
until grep -q '^State:.T' /proc/$third/status; do :; done
kill -CONT $third
until [ -s third ]; do :; done
cat third
"""


@pytest.mark.parametrize("name", ["dash", "bash"])
def test_jobs_are_as_outside(inside: Run, outside: Run, needs: Needs, name: str) -> None:
    argv = [*shells(needs, name), "-c", JOBS]
    # Of the ends of jobs shells tell when they happen to notice them.
    found = inside(*argv, stderr=subprocess.DEVNULL)
    assert "went on" in found
    assert found == outside(*argv, stderr=subprocess.DEVNULL)


def test_children_of_make(inside: Run, needs: Needs) -> None:
    make = needs("make", package="make")
    rules = ["all: " + " ".join(f"made/{n}" for n in range(60))]
    rules += [
        f"made/{n}:\n\t@mkdir -p made\n\t@test -e Makefile\n\t@echo {n} >$@" for n in range(60)
    ]
    rules += ["check: all", '\t@test "$$(cat made/* | wc -l)" = 60', "\t@echo done"]
    write = 'printf "%s\\n" "$1" >Makefile && exec "$0" -s -j8 check'
    assert inside("sh", "-c", write, make, "\n".join(rules)) == "done\n"


@pytest.fixture
def package(needs: Needs, tmp_path: Path) -> Callable[[str], Path]:
    """The sources of a real package, with all that its configure script needs; a copy of them."""
    source = needs("/usr/share/libtool/configure", package="libltdl-dev").parent
    needs("autoreconf", package="autoconf")
    needs("automake", package="automake")
    needs("make", package="make")
    shutil.copytree(source, tmp_path / "source")
    # It also wants to run libtoolize, which that package itself does without.
    command = ["autoreconf", "--install"]
    subprocess.run(command, cwd=tmp_path / "source", capture_output=True, check=False)

    def copy(name: str) -> Path:
        return shutil.copytree(tmp_path / "source", tmp_path / name)

    return copy


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_is_configured_and_made_as_outside(
    inside: Run, outside: Run, package: Callable[[str], Path]
) -> None:
    def build(run: Run, name: str) -> tuple[str, str, list[str]]:
        directory = package(name)
        options = {"cwd": directory, "timeout": 500}
        said = run("sh", "configure", **options)
        run("make", "-s", "-j4", stderr=subprocess.DEVNULL, **options)
        made = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.[ao]"))
        return said, (directory / "config.h").read_text(), made

    found = build(inside, "inside")
    assert "config.status: creating config.h" in found[0]
    assert ".libs/dlopen.a" in found[2]
    assert found == build(outside, "outside")
