"""Ordinary programs on packaged filesystems in the sandbox print what they print natively.

There are no symbolic links in the scripts: sshfs resolves them at the other end, or refuses to.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ...conftest import Needs
from ..conftest import Shell

pytestmark = pytest.mark.slow

SERVERS = {
    "bindfs": "bindfs --no-allow-other below mnt",
    "sshfs": "sshfs -o ssh_command=$PWD/ssh host:$PWD/below mnt",
    "gocryptfs": "run='gocryptfs -q -nosyslog -extpass echo -extpass word'\n"
    "$run -init -scryptn 10 below && $run below mnt",
}

CLIENTS = {
    "git": """
git init -q one && cd one && git config user.email a@b && git config user.name n
for i in 1 2 3 4 5; do echo $i >f$i; done; git add . && git commit -qm first && echo x >>f1
git status --short; git commit -qam second; git gc -q && git fsck --no-progress
git clone -q --no-hardlinks . ../two && git -C ../two log --format=%s
""",
    "make": r"""
printf 'int f(void);\nint main(void) { return f(); }\n' >a.c; echo 'int f(void) { return 3; }' >b.c
printf 'p: a.o b.o\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -c -o $@ $<\n' >Makefile
unset MAKEFLAGS MAKELEVEL; make -s -j2 && ./p; echo $?; make
""",
    "tar": """
mkdir -p a/b; seq 9999 >a/numbers; cp -r /usr/share/doc/libc6-dev a/b
tar cf a.tar a && mkdir x && tar xf a.tar -C x && diff -r a x/a && echo the same
rsync -a x/ y/ && rsync -an --itemize-changes x/ y/ && diff -r a y/a && echo the same
find . -type f | wc -l; grep -rl 777 . | sort; rm -r x y; ls
""",
    "sqlite3": """
sqlite3 db 'create table t(a, b); begin; insert into t values(1, 2), (3, 4); commit'
sqlite3 db 'select sum(b) from t; begin; delete from t; rollback; select count(*) from t'
sqlite3 db 'pragma journal_mode; pragma integrity_check; vacuum'; ls
""",
    "python3": """
/usr/bin/python3 -B - <<end
import os, shutil, sys, threading, zipfile
os.makedirs("py/deep"); open("py/module.py", "w").write("x = 42")
sys.path.insert(0, "py"); import module; print(module.x)
print(sorted(os.listdir(shutil.copytree("py", "copy"))))
with zipfile.ZipFile("z.zip", "w") as z: z.write("py/module.py")
print(zipfile.ZipFile("z.zip").testzip())
failed = []
def work(number):
    name = f"py/{number}"
    try:
        for turn in range(4):
            with open(name, "w") as file: file.write(str(turn) * 100)
            with open(name) as file: assert file.read() == str(turn) * 100
            os.rename(name, name + "x"); os.stat(name + "x"); os.rename(name + "x", name)
        os.unlink(name)
    except BaseException as error: failed.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed, sorted(os.listdir("py")))
end
""",
    "busybox": """
cp /bin/busybox . && ./busybox sh -c 'for i in 1 2 3; do echo $i; done >f; ./busybox wc -l f
mkdir d; ./busybox cp f d/g; ./busybox tar cf d.tar d; ./busybox tar tf d.tar; ./busybox find d
./busybox sed -i s/2/two/ d/g; ./busybox cat d/g; ./busybox rm -r d; ./busybox ls'
""",
    "node": """
mkdir -p app package; cd app; echo '{"name": "app", "version": "1.0.0"}' >package.json
echo '{"name": "package", "version": "1.0.0", "main": "it.js"}' >../package/package.json
echo 'module.exports = 7' >../package/it.js
export npm_config_cache=$PWD/../cache npm_config_update_notifier=false
npm install --offline --no-audit --no-fund --silent --install-links ../package && ls
cat >main.js <<end
const fs = require("fs"); console.log(require("package")); fs.writeFileSync("new", "text");
fs.promises.readFile("new", "utf8").then(text => { fs.rmSync("new"); console.log(text); });
end
node main.js; ls
""",
    "javac": """
cat >It.java <<end
import java.nio.file.*;
class It {
    public static void main(String[] names) throws Exception {
        Path path = Path.of("new"); Files.writeString(path, "text");
        System.out.println(Files.readString(path) + Files.walk(Path.of(".")).count());
        Files.move(path, Path.of("moved")); Files.delete(Path.of("moved"));
    }
}
end
javac It.java && java -cp . It; ls
""",
    "go": """
cat >main.go <<end
package main
import ("fmt"; "os"; "sync")
func main() {
    var all sync.WaitGroup
    for i := 0; i < 32; i++ {
        all.Add(1)
        go func(name string) {
            defer all.Done()
            if err := os.WriteFile(name, []byte(name), 0644); err != nil { panic(err) }
            text, _ := os.ReadFile(name)
            if string(text) != name { panic(name) }
            os.Remove(name)
        }(fmt.Sprint(i))
    }
    all.Wait()
    fmt.Println("done")
}
end
HOME=$PWD/../home GO111MODULE=off GOCACHE=$PWD/../cache go build -o main main.go && ./main; ls
""",
}


@pytest.mark.parametrize("program", CLIENTS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_program(  # noqa: PLR0917 - fixtures and parameters
    bare_shell: Shell, natively: Shell, needs: Needs, here: Path, server: str, program: str
) -> None:
    needs(server, server)
    needs("rsync" if program == "tar" else program)
    sftp = needs("/usr/lib/openssh/sftp-server", "openssh-sftp-server")
    (here / "ssh").write_text(f"#!/bin/sh\nexec {sftp}\n", encoding="utf-8")
    (here / "ssh").chmod(0o755)
    (here / "below").mkdir()
    script = f"exec 2>&1\n(cd mnt\n{CLIENTS[program]})"
    output = bare_shell(f"{SERVERS[server]}\n{script}; fusermount3 -u mnt")
    expected = natively(script)
    assert output == expected
    assert output
