"""Programs that need longer: test suites, package managers, many files."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SERVED, Somebody
from .places import Place, same

Needs = Callable[..., Path]

pytestmark = pytest.mark.slow

by_dev_fuse = pytest.mark.parametrize(
    "served",
    [(kind, "no_io_uring") for kind in SERVED],
    ids="-".join,
    indirect=True,
    scope="module",
)
"""The way that requests come makes a difference to single calls, and these tests take long."""

_OUTCOME = re.compile(
    r"^(test_\w+ \([\w.]+\))(?:\n.*)? \.\.\. (ok|FAIL|ERROR|skipped|expected)", re.M
)


Outcome = tuple[list[tuple[str, str]], int]

_ordinary: dict[str, Outcome] = {}
"""What was found in an ordinary directory, for all kinds of mounts."""


# All ways to compress are the same for a filesystem. And a hundred walks through a directory of
# depth 30 ask mirrorfs and loopbackfs for 100,000 names, one after the other.
_LEFT_OUT = ("-i", "*Lzma*", "-i", "*Bzip2*", "-i", "*_many_open_files")


def outcome(python: Path, suite: str, top: Path) -> Outcome:
    """What CPython's tests of a module find in a directory, and their exit status."""
    done = subprocess.run(
        [python, "-m", "test", "-v", *_LEFT_OUT, "--tempdir", top, suite],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
        cwd=top,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(top), "LC_ALL": "C.UTF-8"},
    )
    found = sorted(_OUTCOME.findall(done.stdout + done.stderr))
    assert len(found) >= 5
    return found, done.returncode


@pytest.mark.parametrize(
    "suite",
    ["os", "posix", "shutil", "tempfile", "pathlib", "mmap", "fcntl", "mailbox", "zipfile"],
)
@pytest.mark.timeout(600)
@by_dev_fuse
def test_pythons_own(place: Place, needs: Needs, suite: str) -> None:
    """What CPython's tests find on an ordinary filesystem, they find on a mount."""
    python = needs("/usr/bin/python3", "python3")
    version = python.resolve().name
    needs(f"/usr/lib/{version}/test/test_{suite}.py", f"lib{version}-testsuite")
    found = outcome(python, f"test_{suite}", place.mounted)
    if suite not in _ordinary:
        _ordinary[suite] = outcome(python, f"test_{suite}", place.ordinary)
    assert found == _ordinary[suite]


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio", "pvsync2"])
def test_fio_verifies(place: Place, needs: Needs, engine: str) -> None:
    needs("fio", "fio")
    same(
        place,
        f"""
for pattern in write randwrite; do
fio --name=job --ioengine={engine} --rw=$pattern --bs=16k --size=2m --numjobs=3 --thread \\
  --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=1 --minimal --output=/dev/null
ls -l | awk '{{ print $5, $9 }}'; done
""",
    )


def wheel(path: Path) -> None:
    """Make one with a module, a program and a hundred small files."""
    info = "tiny-1.dist-info"
    content = {
        "tiny/__init__.py": "def main():\n    print('it is installed')\n",
        **{f"tiny/part{number}.py": f"number = {number}\n" for number in range(100)},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in content))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    wheel(directory / "tiny-1-py3-none-any.whl")
    return directory


@by_dev_fuse
def test_pip(place: Place, needs: Needs, wheels: Path) -> None:
    needs("/usr/bin/python3", "python3")
    needs("/usr/share/python-wheels", "python3-venv")
    output = same(
        place,
        f"""
/usr/bin/python3 -m venv --without-pip env
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
pip() {{ PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl) env/bin/python -m pip "$@"; }}
pip install -q --no-index {wheels}/tiny-1-py3-none-any.whl; env/bin/tiny
pip list --format=freeze | grep tiny; pip check
find env/lib -path '*tiny*' | sort | sed 's/.*site-packages//'
pip uninstall -q -y tiny; find env -path '*tiny*'
""",
    )
    assert output.startswith("it is installed\n")


@by_dev_fuse
def test_a_thousand_files(place: Place, needs: Needs) -> None:
    needs("rsync", "rsync")
    output = same(
        place,
        """
mkdir tree; for d in $(seq 20); do mkdir tree/d$d; (cd tree/d$d; seq 50 | split -l 1 - f); done
find tree -exec touch -h -d @5000 {} +; find tree | wc -l
tar -cf all.tar --sort=name tree; mkdir out; tar -xf all.tar -C out; diff -r tree out/tree
rsync -a tree/ copy/; diff -r tree copy; rsync -ani --checksum tree/ copy/; cp -a tree again
diff -r tree again; find again -type f -delete; find again | wc -l
ls -lR tree | grep -v '^[td]' | sha256sum
""",
    )
    assert output.startswith("1021\n")


@pytest.mark.parametrize("kind", ["memory", "mirror", "loopback"])
def test_of_an_ordinary_user(somebody: Somebody, kind: str, needs: Needs) -> None:
    """The server, the mount and the programs are one user's: then much is refused, the same."""
    needs("git", "git")
    needs("sqlite3", "sqlite3")
    script = """
cd "$1"; umask 022; mkdir a; cd a
echo one >f; ln f g; chmod 4755 f; stat -c '%A %h' f; echo two >>f; stat -c '%A' f
chown 0 f 2>&1 | sed 's/.*: //' || true; chmod 0 f; cat f 2>&1 | sed 's/.*: //' || true
chmod 600 f; mkdir -m 555 d; touch d/x 2>&1 | sed 's/.*: //' || true
mknod n c 1 3 2>&1 | sed 's/.*: //' || true
mkfifo p; cat p & echo through >p; wait; ln -s f l; mv l m; readlink m; cp -a . ../b
diff -r . ../b --exclude=p --no-dereference; export HOME=/nonexistent
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b GIT_AUTHOR_DATE='2020-01-01 00:00 +0000'
export GIT_COMMITTER_DATE='2020-01-01 00:00 +0000'
mkdir git; cd git; git init -q -b main; seq 100 | split -l 1; git add .; git commit -qm x; git gc -q
git rev-parse HEAD; git status --short; cd ..; git clone -q git clone; ls clone | wc -l
for mode in delete wal; do sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a); begin;
insert into t values (1), (2); commit; select sum(a) from t; pragma integrity_check;"; done
rm -rf d; cd ..; chmod -R u+w a b; rm -rf a b; ls -A
"""
    plain, source = (somebody.home / name for name in ("plain", "source"))
    for made in (plain, source):
        made.mkdir()
        os.chown(made, *(os.stat(somebody.directory)[4:6]))
    spec = f"{somebody.home}/examples/{kind}fs.py"
    if kind != "memory":
        spec += f",source={source}"
    done = somebody.recuse("mount", "--background", spec, str(somebody.directory))
    assert (done.returncode, done.stderr) == (0, "")
    try:
        there, here = (
            somebody.run("bash", "-ec", script, "bash", str(top))
            for top in (plain, somebody.directory)
        )
    finally:
        ended = somebody.recuse("umount", str(somebody.directory))
    assert (here.stdout, here.stderr, here.returncode) == (there.stdout, there.stderr, 0)
    assert ended.returncode == 0
