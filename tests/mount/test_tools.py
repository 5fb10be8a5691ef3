"""The tool matrix: what real programs make of a log, compared with a local copy of it.

Each cell runs one command on a record that nothing has opened yet (cold), once more (warm),
and on a local copy. Output, errors and exit code must be equal, byte for byte, paths aside.
"""

import os
import re
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NoReturn

import pytest

from .conftest import SUMMARIES
from .rig import FINISHED_S, Outcome, Rig, open_rig, record_id, wait_until, write_record

pytestmark = pytest.mark.fuse

BIG = "stage1.info.log"
OTHER = "stage1.debug.log"
EMPTY = "stage2.info.log"
ONE = "stage2.debug.log"
PAGE = "stage3.info.log"
PAGE_AND_ONE = "stage3.debug.log"

_LONG_LINE = "长行 " * 4000
_BIG_TEXT = "".join(
    f"[2025/03/04 13:06:{n % 60:02}.089 GMT+08:00] [INFO] 构建 line {n} {'=' * (n % 90)}\n"
    + (_LONG_LINE + "\n" if n % 1000 == 500 else "")
    for n in range(2400)
)
LOGS = {
    BIG: (_BIG_TEXT + "[ERROR] 最后一行 without an end").encode(),
    OTHER: _BIG_TEXT.replace("line 77 ", "LINE 77 ").encode(),
    EMPTY: b"",
    ONE: b"x",
    PAGE: b"p" * 4095 + b"\n",
    PAGE_AND_ONE: b"q" * 4096 + b"\n",
}

_AND_SUM = ' && sha256sum < "$OUT/x"'


def _node(program: str) -> str:
    return f"node -e {shlex.quote(f'const path = process.argv[1]; {program}')} {BIG}"


def _python(program: str) -> str:
    known = 'import os, sys\npath, out = sys.argv[1], os.environ["OUT"]\n'
    return f"$PYTHON -c {shlex.quote(known + textwrap.dedent(program))} {BIG}"


# What a record has beside its logs, and the local copy has not.
NOT_LOGS = "--exclude=record.json --exclude=by-name"

# A cell is a shell command run inside the record's directory; $OUT is an empty directory
# elsewhere. Programs are called by paths of their own where the shell has one of that name.
CELLS = {
    "cat": f"cat {BIG}",
    "cat all": "cat *.log",
    "cat stdin": f"cat < {BIG}",
    "head -n1": f"head -n1 {BIG}",
    "head -c": f"head -c 5000 {BIG}",
    "head -c minus": f"head -c -5000 {BIG}",
    "tail": f"tail {BIG}",
    "tail -n": f"tail -n 3 {BIG}",
    "tail -c": f"tail -c 77 {BIG}",
    "tail -n +K": f"tail -n +2000 {BIG}",
    "tail -c +K": f"tail -c +200000 {BIG}",
    "tac": f"tac {BIG}",
    "wc": "wc *.log",
    "wc -l": f"wc -l {BIG}",
    "wc -c": f"wc -c {BIG}",
    "wc -c stdin": f"wc -c < {BIG}",
    "wc -m": f"wc -m {BIG}",
    "nl": f"nl {BIG}",
    "grep": f"grep -n ERROR {BIG}",
    "grep -c": "grep -c INFO *.log",
    "grep -r": "grep -r ERROR . | sort",
    "grep -L": "grep -L ERROR *.log",
    "grep -l": "grep -l ERROR *.log",
    "grep none": f"grep nothing-like-it {BIG}",
    "rg": f"rg -n ERROR {BIG}",
    "rg --no-mmap": f"rg --no-mmap -n ERROR {BIG}",
    "rg --mmap": f"rg --mmap -n 'line 23[0-9]' {BIG}",
    "rg folder": "rg --sort path -c INFO",
    "sed -n": f"sed -n '1200,1210p;$p' {BIG}",
    "awk": f"awk 'END {{ print NR, length($0) }}' {BIG}",
    "sort": f"sort {BIG}",
    "uniq": f"uniq -c {BIG}",
    "cut": f"cut -c 1-20 {BIG}",
    "fold": f"fold -w 60 {BIG}",
    "cmp": f"cmp {BIG} {OTHER}",
    "cmp same": f'cp {BIG} "$OUT/x" && cmp {OTHER} "$OUT/x"',
    "diff": f"diff {BIG} {OTHER}",
    "diff -q": f"diff -q {NOT_LOGS} . $SAME",
    "diff -r": f"diff -r {NOT_LOGS} . $SAME",
    "comm": f"comm --nocheck-order -3 {BIG} {OTHER}",
    "cp": 'cp *.log "$OUT" && cd "$OUT" && sha256sum *',
    "cp -a": 'cp -a *.log "$OUT" && cd "$OUT" && sha256sum * && stat -c "%n %s %Y %a" *',
    "cp --sparse": f'cp --sparse=always {BIG} "$OUT/x" && sha256sum < "$OUT/x"',
    "install": f'install -m 600 {BIG} "$OUT/x" && sha256sum < "$OUT/x"',
    "rsync -a": (
        'rsync -a ./ "$OUT" && cd "$OUT" && sha256sum *.log && stat -c "%n %s %Y %a" *.log'
    ),
    "rsync -c": 'rsync -rlc ./ "$OUT" && cd "$OUT" && sha256sum *.log',
    "tar c": "tar c *.log | sha256sum",
    "tar czf": 'tar czf "$OUT/x" *.log && tar tvf "$OUT/x"',
    "cpio-like pax": f"tar c --format=pax --pax-option=delete=atime,delete=ctime {BIG} | md5sum",
    "dd": f"dd if={BIG} bs=1000 status=none",
    "dd skip": f"dd if={BIG} bs=4096 skip=20 count=7 status=none",
    "dd skip_bytes": f"dd if={BIG} iflag=skip_bytes skip=299000 status=none",
    "md5sum": "md5sum *.log",
    "sha256sum": f"sha256sum {BIG}",
    "cksum": f"cksum {BIG}",
    "b2sum": f"b2sum {BIG}",
    "base64": f"base64 {BIG}",
    "xxd": f"xxd {BIG} | tail -n 2",
    "xxd -s": f"xxd -s -40 {BIG}",
    "od": f"od -A d -c {BIG} | tail -n 3",
    "od -j": f"od -j 290000 -N 50 -c {BIG}",
    "strings": f"strings -n 8 {BIG}",
    "less piped": f"less -F {BIG} | sha256sum",
    "less +G piped": f"less +G {BIG} | sha256sum",
    "vim -es": f"vim -es -u NONE -c '%print' -c 'q!' {BIG}",
    "vim -d": f"vim -es -u NONE -c 'edit {OTHER}' -c 'echo line(\"$\")' -c '$print' -c 'qa!' {BIG}",
    "node readFile": _node("process.stdout.write(fs.readFileSync(path))"),
    "node async readFile": _node("fs.promises.readFile(path).then(b => process.stdout.write(b))"),
    "node copyFile": _node("fs.copyFileSync(path, process.env.OUT + '/x')") + _AND_SUM,
    "node stat then read": _node(
        """
        const size = fs.statSync(path).size, buffer = Buffer.alloc(size);
        console.log(size, fs.readSync(fs.openSync(path), buffer, 0, size, 0));
        process.stdout.write(buffer);
        """
    ),
    "node stream": _node("fs.createReadStream(path).pipe(process.stdout)"),
    "perl slurp": f"perl -0777 -ne 'print length, \"\\n\", $_' {BIG}",
    "perl -s": f"perl -e 'print -s shift, \"\\n\"' {BIG}",
    "busybox cat": f"busybox cat {BIG}",
    "busybox cp": f'busybox cp {BIG} "$OUT/x" && sha256sum < "$OUT/x"',
    "busybox wc": f"busybox wc {BIG}",
    "busybox tac": f"busybox tac {BIG}",
    "busybox tail": f"busybox tail -n 5 {BIG}",
    "busybox tail -c": f"busybox tail -c 500 {BIG}",
    "busybox sha256sum": f"busybox sha256sum {BIG}",
    "busybox grep": f"busybox grep -c INFO {BIG}",
    "file": "file *.log",
    "git diff --no-index": f"git diff --no-index {BIG} {OTHER}",
    "git diff to local": f"git diff --no-index --numstat {OTHER} $SAME/{BIG}",
    "git hash-object": f"git hash-object --no-filters {BIG}",
    "git grep --no-index": f"git grep --no-index -n ERROR {BIG}",
    "split": f'split -n 3 {BIG} "$OUT/x" && cd "$OUT" && sha256sum *',
    "split -l": f'split -l 500 {BIG} "$OUT/x" && cd "$OUT" && sha256sum *',
    "gzip -c": f"gzip -nc {BIG} | sha256sum",
    "zip": 'zip -qX "$OUT/x.zip" *.log && $PYTHON -m zipfile -l "$OUT/x.zip"',
    "stat": "stat -c '%n %s %Y %a %F %B' *.log",
    "stat blocks": f"cat {BIG} | wc -c && stat -c '%s %b' {BIG}",
    "test -s": f"/usr/bin/test -s {BIG} && echo full; /usr/bin/test -s {EMPTY} || echo empty",
    "truncate": f'truncate -r {BIG} "$OUT/x" && stat -c %s "$OUT/x"',
    "ls": "ls --ignore=record.json --ignore=by-name",
    "python read": _python("print(len(open(path, 'rb').read()))"),
    "python text": _python("print(sum(len(line) for line in open(path, encoding='utf-8')))"),
    "python seek": _python(
        "f = open(path, 'rb'); print(f.seek(0, 2), f.seek(-9, 1), f.read(), f.read())"
    ),
    "python backwards": _python(
        """
        f = os.open(path, os.O_RDONLY)
        size = os.fstat(f).st_size
        print([os.pread(f, 9, at) for at in range(size - 1, 0, -70001)])
        """
    ),
    "python mmap": _python(
        """
        import mmap
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
            print(len(m), m[-20:], m.find(b"line 77 "))
        """
    ),
    "python private mmap": _python(
        """
        import mmap
        how = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, **how) as m:
            print(len(m), m[-20:])
        """
    ),
    "python copyfile": _python("import shutil; shutil.copyfile(path, out + '/x')") + _AND_SUM,
    "python copy2": (
        _python("import shutil; shutil.copy2(path, out + '/x')")
        + _AND_SUM
        + ' && stat -c "%Y %a" "$OUT/x"'
    ),
    "python sendfile": (
        _python(
            """
            source = os.open(path, os.O_RDONLY)
            target = os.open(out + "/x", os.O_CREAT | os.O_WRONLY)
            print(os.sendfile(target, source, 0, 1 << 20))
            """
        )
        + _AND_SUM
    ),
    "python splice": _python(
        """
        source = os.open(path, os.O_RDONLY)
        receive, send = os.pipe()
        print(os.splice(source, send, 1000), os.read(receive, 1000))
        """
    ),
    "python tarfile": (
        _python("import tarfile; t = tarfile.open(out + '/x', 'w'); t.add(path); t.close()")
        + _AND_SUM
    ),
    "python zipfile": (
        _python("import zipfile; z = zipfile.ZipFile(out + '/x', 'w'); z.write(path); z.close()")
        + _AND_SUM
    ),
    "python filecmp": _python(
        "import filecmp; print(filecmp.cmp(path, os.environ['SAME'] + '/' + path, shallow=False))"
    ),
    "python linecache": _python("import linecache; print(linecache.getline(path, 9))"),
    "python walk": _python(
        """
        folder, _, names = next(os.walk("."))
        logs = sorted(name for name in names if name.endswith(".log"))
        print(folder, [(name, os.path.getsize(name)) for name in logs])
        """
    ),
    "bash read": f"while read -r line; do last=$line; done < {BIG}; echo \"$last\" | wc -c",
    "bash mapfile": f"mapfile lines < {BIG}; echo ${{#lines[@]}}",
    "missing file": "cat stage9.info.log",
    "missing name": "cat nothing.txt",
    "edge sizes": f"cat {EMPTY} {ONE} {PAGE} {PAGE_AND_ONE} | sha256sum",
    "edge sizes cp": 'cp stage[23]* "$OUT" && cd "$OUT" && sha256sum *',
    "edge sizes tail": f"tail -c 1 {EMPTY} {ONE} {PAGE} {PAGE_AND_ONE}",
    "edge sizes busybox": f"busybox cat {EMPTY} {ONE} {PAGE} {PAGE_AND_ONE} | sha256sum",
    "edge sizes tar": f"tar c {EMPTY} {ONE} {PAGE} {PAGE_AND_ONE} | sha256sum",
}  # fmt: skip

# --stat-size auto has a price, and this is all of it: programs that stat every file only to
# show it see 0 for a log that was not opened yet. What each then says of the big log:
LISTINGS = {
    "ls -l": (f"ls -l --time-style=+ {BIG}", rf"-r--r--r-- 1 \S+ \S+ 0  {BIG}\n"),
    "ls -s": (f"ls -s {BIG}", rf"0 {BIG}\n"),
    "find -size": (f"find {BIG} -size +1k", r""),
    "find -empty": (f"find {BIG} -empty", rf"{BIG}\n"),
    "find -printf": (f"find {BIG} -printf '%s\\n'", r"0\n"),
    "du": (f"du {BIG}", rf"0\t{BIG}\n"),
    "du -b": (f"du -b {BIG}", rf"0\t{BIG}\n"),
    "bash [ -s ]": (f"[ -s {BIG} ]", r""),
}

IN_CHUNKED = [
    "cat", "head -n1", "tail -n", "tail -c", "tac", "wc", "wc -c", "grep -c", "grep -r", "rg",
    "cmp", "cp -a", "rsync -a", "tar c", "dd skip", "md5sum", "xxd -s", "less piped", "vim -es",
    "node readFile", "node stat then read", "busybox cat", "busybox cp", "busybox tac", "file",
    "git diff --no-index", "git hash-object", "split", "stat", "test -s", "python mmap",
    "python sendfile", "python copyfile", "python tarfile", "python seek", "edge sizes",
    "edge sizes busybox",
]  # fmt: skip

# A record of which the API tells no stages has an empty listing until something is cached.
# Nor is it known then when the stage finished.
IN_NO_STAGES = [
    name
    for name in IN_CHUNKED
    if "*" not in CELLS[name] and name not in ("grep -r", "rsync -a", "python tarfile")
]


@dataclass
class Bench:
    """A mount with a fresh record for every cell, and a local copy of what they all hold."""

    rig: Rig
    records: Path
    local: Path
    used: int = 0
    agree: Counter[str] = field(default_factory=Counter)
    differ: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def fresh(self) -> Path:
        """Return the directory of a record that nobody has looked at."""
        self.used += 1
        return self.records / record_id(self.used)

    def run(self, script: str, folder: Path) -> Outcome:
        out = self.rig.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        names = f"export OUT={out} SAME={self.local} PYTHON={sys.executable}\n"
        outcome = self.rig.shell(names + script, cwd=folder)
        out_text, err_text = (
            text.replace(os.fsencode(folder), b"FOLDER").replace(os.fsencode(self.local), b"FOLDER")
            for text in (outcome.out, outcome.err)
        )
        return Outcome(outcome.code, out_text, err_text)

    def compare(self, name: str, script: str) -> None:
        folder = self.fresh()
        expected = self.run(script, self.local)
        if expected.code == 127:
            missing(expected.err.decode())
        for when in ("cold", "warm"):
            seen = self.run(script, folder)
            if seen == expected:
                self.agree[when] += 1
            else:
                self.differ.append(f"{name} ({when}): {brief(seen)} instead of {brief(expected)}")
                pytest.fail(self.differ[-1])

    def summary(self) -> str:
        same = sum(self.agree.values())
        lines = [f"{same} of {same + len(self.differ)} cells agree with a local file", *self.differ]
        if self.known:
            lines.append(f"known to show 0 before the first open: {', '.join(self.known)}")
        return "\n  ".join(lines)


def missing(what: str) -> NoReturn:
    """Give up on a program that is not installed; where CI is set all must be."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def brief(outcome: Outcome) -> str:
    def cut(text: bytes) -> str:
        return repr(text) if len(text) < 300 else f"{text[:150]!r}...{text[-100:]!r} ({len(text)})"

    return f"[{outcome.code}, {cut(outcome.out)}, {cut(outcome.err)}]"


def write_bench(folder: Path, records: int) -> tuple[Path, Path]:
    """Write records that share one set of files, and the local copy of it."""
    recordings, local = folder / "recordings", folder / "local"
    local.mkdir()
    shared = folder / "shared"
    shared.mkdir()
    for name, content in LOGS.items():
        (shared / name).write_bytes(content)
        (local / name).write_bytes(content)
        (local / name).chmod(0o444)
        os.utime(local / name, (FINISHED_S, FINISHED_S))
    for number in range(1, records + 1):
        write_record(recordings, number, {name: shared / name for name in LOGS})
    return recordings, local


@contextmanager
def open_bench(request: pytest.FixtureRequest, cells: int, *faults: str) -> Iterator[Bench]:
    folder = request.getfixturevalue("tmp_path_factory").mktemp("bench")
    recordings, local = write_bench(folder, cells)
    with open_rig(folder) as rig:
        bench = Bench(rig, rig.mount(rig.emulator(recordings, *faults)).path, local)
        yield bench
        how = f" ({', '.join(faults)})" if faults else ""
        request.config.stash.setdefault(SUMMARIES, []).append(
            f"tool matrix{how}: {bench.summary()}"
        )


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with open_bench(request, len(CELLS) + len(LISTINGS) + len(SCREENS)) as bench:
        yield bench


@pytest.fixture(scope="module")
def chunked(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with open_bench(request, len(IN_CHUNKED), "chunked") as bench:
        yield bench


@pytest.fixture(scope="module")
def no_stages(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with open_bench(request, len(IN_NO_STAGES) + 1, "no-stages") as bench:
        yield bench


@pytest.mark.parametrize("name", CELLS)
def test_a_log_is_like_a_local_file_to(bench: Bench, name: str) -> None:
    bench.compare(name, CELLS[name])


@pytest.mark.parametrize("name", IN_CHUNKED)
def test_a_log_of_unannounced_length_is_like_a_local_file_to(chunked: Bench, name: str) -> None:
    chunked.compare(name, CELLS[name])


@pytest.mark.parametrize("name", IN_NO_STAGES)
def test_a_log_without_metadata_is_like_a_local_file_to(no_stages: Bench, name: str) -> None:
    no_stages.compare(name, CELLS[name])


def test_without_metadata_a_record_lists_what_is_cached(no_stages: Bench) -> None:
    folder = no_stages.fresh()
    assert no_stages.run("ls", folder) == Outcome(0, b"", b"")
    assert no_stages.run(f"wc -c < {BIG}", folder).out == b"%d\n" % len(LOGS[BIG])
    assert no_stages.run("ls", folder) == Outcome(0, f"{BIG}\n".encode(), b"")


@pytest.mark.parametrize("name", LISTINGS)
def test_the_known_deviation_of(bench: Bench, name: str) -> None:
    script, cold = LISTINGS[name]
    folder = bench.fresh()
    expected = bench.run(script, bench.local)
    seen = bench.run(script, folder)
    assert re.fullmatch(cold, seen.out.decode()), seen
    assert seen.err == b""
    assert seen != expected
    bench.known.append(name)
    assert bench.run(f"cat {BIG} | wc -c", folder).out == b"%d\n" % len(LOGS[BIG])
    assert bench.run(script, folder) == expected


# What one sees in a terminal: opened, at its end, after a search.
SCREENS = {
    "less": (["less", BIG], [["G"], ["?line 1234", "Enter"], ["/构建 line 20", "Enter"], ["g"]]),
    "vim": (
        ["vim", "-u", "NONE", "-N", BIG],
        [["G"], ["?line 1234", "Enter"], [":777", "Enter"], ["gg"]],
    ),
}


_TERMINALS = count()


class Terminal:
    """A tmux session on a server of its own."""

    def __init__(self, rig: Rig, folder: Path, command: list[str]) -> None:
        self._rig = rig
        # A socket of its own: the server before may be about to end.
        socket = rig.folder / f"tmux-{next(_TERMINALS)}"
        self._tmux = ("tmux", "-u", "-S", socket, "-f", "/dev/null")
        size = ("-x", "100", "-y", "30")
        outcome = rig.run(*self._tmux, "new-session", "-d", *size, *command, cwd=folder)
        assert outcome.code == 0, outcome

    def press(self, *keys: str) -> None:
        assert self._rig.run(*self._tmux, "send-keys", *keys).code == 0

    def screen(self) -> bytes:
        return self._rig.run(*self._tmux, "capture-pane", "-p").out

    def settled(self) -> bytes:
        """Return the screen once it is drawn and has stopped changing."""
        seen: list[bytes] = []

        def same() -> bool:
            seen.append(self.screen())
            return bool(seen[-1].strip()) and len(seen) > 8 and len(set(seen[-8:])) == 1

        wait_until(same)
        return seen[-1]

    def shows(self, screen: bytes) -> bytes:
        """Return the screen once it is as expected, or as it is when it never gets so."""
        with suppress(AssertionError):
            wait_until(lambda: self.screen() == screen, timeout_s=10)
        return self.screen()

    def close(self) -> None:
        self._rig.run(*self._tmux, "kill-server")


def screens(rig: Rig, folder: Path, program: str, expected: list[bytes] | None) -> list[bytes]:
    command, steps = SCREENS[program]
    shown: list[bytes] = []
    terminal = Terminal(rig, folder, command)
    try:
        for keys in [[], *steps]:
            if keys:
                terminal.press(*keys)
            wanted = expected and expected[len(shown)]
            shown.append(terminal.shows(wanted) if wanted else terminal.settled())
    finally:
        terminal.close()
    return shown


@pytest.mark.parametrize("program", SCREENS)
def test_the_screen_is_that_of_a_local_file_in(bench: Bench, program: str) -> None:
    if not (shutil.which("tmux") and shutil.which(program)):
        missing(f"tmux or {program} is not installed")
    expected = screens(bench.rig, bench.local, program, None)
    assert len(set(expected)) == len(expected)  # each step shows something of its own
    folder = bench.fresh()
    for when in ("cold", "warm"):
        if screens(bench.rig, folder, program, expected) == expected:
            bench.agree[when] += 1
        else:
            bench.differ.append(f"the screen of {program} ({when})")
            pytest.fail(bench.differ[-1])
