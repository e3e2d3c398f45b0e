"""Programs, scripts and libraries that lie on a filesystem of the sandbox."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from ...conftest import Needs
from ..conftest import Shell

SCRIPTS = """
cd mnt; cp /bin/echo e; ./e a program; cp e "a name"; "./a name" with a space
printf '#!/bin/sh\\necho "$0" "$@"\\n' >s; chmod +x s; ./s one two; sh -c './s three'
PATH=$PWD:$PATH e on PATH
printf '#! /bin/sh -e \\necho from $0; false; echo no\\n' >t; chmod +x t; ./t; echo $?
printf '#!%s/s x\\n' "$PWD" >u; chmod +x u; ./u two | sed "s,$PWD,DIR,g"
printf '#!%s/loop\\n' "$PWD" >loop; chmod +x loop; ./loop 2>&1 | sed 's/.*: //'
printf 'echo plain $1\\n' >p
chmod +x p; sh -c './p text'; chmod -x e; ./e 2>&1 | sed 's/.*: //'
mkdir d; ./d 2>&1 | sed 's/.*: //'
ln -s s l; ./l by a link; env -i ./s; find . -name s -exec ./s {} +; ls | xargs ./s | wc -w
(exec ./s last)
printf '#!' >n; chmod +x n; sh -c ./n; printf '\\177ELF' >b; chmod +x b; ./b 2>/dev/null; echo $?
"""


def test_programs_and_scripts(shell: Shell, natively: Shell) -> None:
    expected = natively(SCRIPTS)
    assert len(expected.splitlines()) > 15
    assert shell(SCRIPTS) == expected


STARTS = """
import subprocess
open("mnt/s", "w").write("#!/bin/sh\\necho $0 $*; exit 3\\n"); os.chmod("mnt/s", 0o755)
print(subprocess.run(["mnt/s", "a"], stdout=subprocess.PIPE))
print(subprocess.run(["./s", "b"], cwd="mnt", stdout=subprocess.PIPE, close_fds=False).stdout)
sys.stdout.flush(); print(wait(os.posix_spawn("mnt/s", ["mnt/s", "c"], os.environ)))
print(attempt(os.posix_spawn, "mnt/nothing", ["x"], {}), attempt(subprocess.run, ["./mnt"]))
sys.stdout.flush()
fd = os.open("mnt/s", os.O_RDONLY); print(attempt(os.execve, fd, ["x"], {})); sys.stdout.flush()
pid = os.fork()
if pid == 0: os.set_inheritable(fd, True); os.execve(fd, ["by", "descriptor"], {})
print(wait(pid), flush=True)
threading.Thread(target=lambda: print(subprocess.run(["mnt/s", "d"], stdout=-1).stdout)).start()
"""
STARTED = """CompletedProcess(args=['mnt/s', 'a'], returncode=3, stdout=b'mnt/s a\\n')
b'./s b\\n'
mnt/s c
3
ENOENT EACCES
ENOENT
/dev/fd/3 descriptor
3
b'mnt/s d\\n'
"""


def test_all_ways_to_start_one(client: Shell) -> None:
    assert client(STARTS) == STARTED


LINKS = """
cd mnt; ln -s /bin/echo out; ln -s .. up; printf '#!/bin/sh\\necho native $0 $*\\n' >../script
chmod +x ../script; ./out by a link; up/script one; up/mnt/out two; sh -c 'exec ./up/./script three'
../script four; ln -s up/script both; ./both five; PATH=. out six
ln -s nothing dangling; ./dangling
"""


def test_native_programs_to_which_links_lead(shell: Shell, natively: Shell) -> None:
    expected = natively(LINKS)
    assert "native ./both five" in expected
    assert shell(LINKS) == expected


def test_an_environment_for_python(shell: Shell) -> None:
    script = f"""
{sys.executable} -m venv --without-pip mnt/v && mnt/v/bin/python -c 'import sys; print(sys.prefix)'
"""
    assert shell(script).endswith("/mnt/v\n")


def test_a_library(shell: Shell, needs: Needs) -> None:
    needs("cc", package="gcc")
    script = """
cd mnt; echo 'int twice(int n) { return 2 * n; }' >l.c; cc -shared -fPIC -o libtwice.so l.c
echo 'int twice(int); int main(void) { return twice(21); }' >m.c
cc -o m m.c -L. -ltwice -Wl,-rpath,$PWD
./m; echo $?; ldd m | grep -c twice
"""
    assert shell(script) == "42\n1\n"


def test_an_extension_of_pythons(client: Shell) -> None:
    name = "_heapq" + sysconfig.get_config_var("EXT_SUFFIX")
    source = Path(sysconfig.get_config_var("DESTSHARED") or "") / name
    if not source.exists():
        pytest.skip("this Python has no such extension in a file of its own")
    script = """
import shutil, sys; shutil.copy(args[0], "mnt"); sys.path.insert(0, "mnt")
import _heapq; print(_heapq.__file__[len(os.getcwd()) + 1:], _heapq.heappop([1, 2]))
"""
    assert client(script, source) == f"mnt/{name} 1\n"
