"""Programs that know nothing of recuse use a filesystem that is mounted in their sandbox.

Each script runs once there and once natively, in a directory ``mnt``, and prints the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ...conftest import Needs
from ..conftest import Shell

SCRIPTS = {
    "coreutils": """
cd mnt
echo hi >a; cat a; ls; mkdir d; mv a d/b; cp /bin/true d; cmp /bin/true d/true && echo the same
stat -c '%n %F %h %a' d d/b; chmod 600 d/b; touch -d @5 d/b; stat -c '%a %Y' d/b
ln d/b hard; ln -s d/b soft; cat hard soft; readlink soft; readlink -f soft | sed s,.*/mnt,,
truncate -s 3000 d/b; wc -c <hard; dd if=d/b bs=1000 count=2 status=none | wc -c
find . | sort; du -s --apparent-size d/b | cut -f1; rm -r d; ls; rmdir d 2>&1
test -w . && test ! -e d && echo tested
tail -c 3 hard | od -An -c; tee new <hard | md5sum | cut -c-8
""",
    "dash": """
cd mnt && mkdir -p x/y && cd x/y && pwd | sed s,.*/mnt,, && echo one >one && echo two >>one
while read line; do echo "<$line>"; done <one; echo *; cd ../..; for f in x/*/*; do echo $f; done
: >x/empty; [ -s x/empty ] || echo empty; cat <<end >x/here; cat x/here; (cd x; rm here); ls x
here
end
cd ..; cat beside mnt/../beside; umask 027; mkdir mnt/private; >mnt/secret
ls -l mnt | tail -n +2 | cut -c-10
""",
    "bash": """
bash -c 'cd mnt; shopt -s globstar; mkdir -p a/b; printf "%s\\n" 3 1 2 >a/b/n; echo **/n
exec 3<>rw; echo hey >&3; cat rw; mapfile -t l <a/b/n; echo ${l[@]}; sort -o a/b/n a/b/n
cat a/b/n
set -o noclobber; echo x >rw
pushd a/b >/dev/null; dirs -l | sed "s,/[^ ]*/mnt,,g"; diff n <(echo 1)'
true
""",
    "tar": """
mkdir t t/sub; echo 1 >t/one; ln t/one t/sub/two; ln -s ../one t/sub/link;
head -c 100000 /dev/zero >t/z
chmod 750 t/sub; touch -d @9 t/one
cp -a t mnt/copy; tar cf mnt/t.tar t; mkdir mnt/x; tar xf mnt/t.tar -C mnt/x
diff -r t mnt/copy && diff -r --no-dereference t mnt/x/t && echo the same
stat -c '%a %h %Y' t/sub t/one mnt/x/t/sub mnt/x/t/one | sort | uniq -c | sed 's/^ *//' | cut -c-7
tar tf mnt/t.tar | wc -l; cd mnt; tar czf - x | gzip -dc | tar tf - | wc -l
""",
    "find": """
mkdir -p mnt/a/b/c; touch mnt/a/f mnt/a/b/f; cd mnt; find a -name f -type f | sort
find a -depth -type d -empty; find . -name f -execdir pwd ';' | sed s,.*/mnt,, | sort
find a -name f -delete; find a | sort | xargs; rm -rf a; find .
""",
    "git": """
cd mnt; git init -q repo 2>&1; cd repo; git config user.email a@b; git config user.name n
for i in 1 2 3; do echo $i >f$i; done; git add . && git commit -qm first && git log --format=%s
git status --short; git mv f1 g1; echo more >>f2; git status --short; git commit -qam second
git diff --stat HEAD~ | cat; git stash list; git checkout -qb old HEAD~
ls; git fsck 2>&1; git gc -q
git log --all --format=%s; cd ..; git clone -q repo two && ls two; rm -rf repo; ls
""",
    "python": """
python3 -c '
import os, shutil, tempfile, mmap
os.makedirs("mnt/a/b"); open("mnt/a/f", "w").write("x" * 100000)
shutil.copytree("mnt/a", "mnt/c"); print(sorted(os.listdir("mnt/c")), os.stat("mnt/c/f").st_size)
os.chdir("mnt/a"); print(os.getcwd()[-6:], os.listdir(".."), os.path.realpath("b")[-8:])
with tempfile.TemporaryFile(dir=".") as f: f.write(b"hi"); f.seek(0); print(f.read())
with tempfile.NamedTemporaryFile(dir=".") as f: print(os.path.exists(f.name))
top = os.open(".", os.O_RDONLY); os.chdir("/"); os.fchdir(top); print(os.getcwd()[-6:])
with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m:
    m[:2] = b"yy"; print(m[:3], len(m), f.read(3))
for name, _, files, fd in os.fwalk("."): print(name, files, os.stat(fd).st_nlink)
shutil.rmtree("../c"); print(os.path.exists("../c"), os.scandir("..").__next__().is_dir())
import importlib, sys; open("made.py", "w").write("x = 5"); sys.path.insert(0, "")
print(importlib.import_module("made").x)
' 2>&1 | sed "s/'c', 'a'/'a', 'c'/"
""",
    "sed": """
cd mnt; printf 'a\\nb\\n' >f; sed -i s/a/c/ f; cat f; grep -rn b .;
awk '{ print > "o" NR }' f; cat o2
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_program_does_what_it_does_natively(
    name: str, shell: Shell, here: Path, natively: Shell
) -> None:
    expected = natively(SCRIPTS[name])
    assert len(expected.splitlines()) > 3
    assert shell(SCRIPTS[name]) == expected
    assert [path.name for path in (here / "mnt").iterdir()] == []


TABLES = """
d=$(readlink -f mnt)
findmnt -no TARGET,SOURCE,FSTYPE "$d" | sed "s,$d,MNT,"
df --output=source,target mnt | tail -1 | tr -s ' ' | sed "s,$d,MNT,"
grep -c " $d fuse.memory " /proc/mounts /proc/self/mounts; stat -f -c %T mnt
cat </etc/mtab | tail -1 | sed "s,$d,MNT,"; mountpoint -q mnt
"""


def test_lists_of_mounts_have_it(shell: Shell, needs: Needs) -> None:
    needs("findmnt", package="util-linux")
    owner = f"user_id={os.geteuid()},group_id={os.getegid()}"
    assert shell(TABLES).splitlines() == [
        "MNT memory fuse.memory",
        "memory MNT",
        "/proc/mounts:1",
        "/proc/self/mounts:1",
        "fuseblk",
        f"memory MNT fuse.memory rw,nosuid,nodev,{owner},default_permissions,allow_other,"
        "max_read=1048576 0 0",
    ]
