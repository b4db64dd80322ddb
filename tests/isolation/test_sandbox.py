"""The sandbox under attack, and its promises about results, life and death.

Oracles: the real interpreter (what a program prints and how it ends), the state of this machine before and
after each attack, the kernel's own headers, and a BPF interpreter. HOSTILE is the list of attacks; each prints
ESCAPED if it got what it wanted. Leaving one layer out must let some of them escape: so they can fail.
"""

# ruff: noqa: E501 - an attack is a program in one string, and is easier to check on one line

import contextlib
import functools
import importlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from isolation import folder as folders
from isolation import syscalls
from sandbox import LAYERS, LEVELS, Result, Sandbox, SandboxError

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="confinement needs Linux")


def strongest(**options) -> Sandbox:
    return Sandbox(**{"require": "none", "quiet": True, "workers": 2, **options})


@pytest.fixture(scope="module")
def sandbox():
    with strongest() as box:
        yield box


# ---------------------------------------------------------------------------------------------- attacks

FOLDER = Path(__file__).parent


def programs(name: str) -> dict[str, str]:
    """Name -> code of the programs in one file of hostile/; a line "# %% NAME" begins a program."""
    text = (FOLDER / "hostile" / f"{name}.py").read_text()
    parts = re.split(r"^# %% (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


KINDS = ("memory", "processes", "trainer", "files", "network", "kernel", "worker", "crashes")
HOSTILE = {name: code for kind in KINDS for name, code in programs(kind).items()}
HANG, FLOODS = programs("hang"), programs("floods")


@contextlib.contextmanager
def reachable():
    """A folder that any user can reach, unlike pytest's own, which every other run of pytest makes private again."""
    with tempfile.TemporaryDirectory(prefix="outside-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "outside"


@pytest.fixture
def outside():
    with reachable() as folder:
        yield folder


def attack(folder: Path, without=(), cases=None, python=sys.executable, user=None):
    """Run attacks; returns (level, [(name, status, stdout, stderr, host unchanged, next snippet)], arrived)."""
    folder.mkdir(exist_ok=True)
    canary = folder / "canary"
    canary.write_text("untouched")
    os.chmod(canary, 0o666)
    os.chmod(folder, 0o777)
    if user is not None:
        os.chown(canary, user, user)
    tcp, udp, abstract = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM), None
    port = tcp.getsockname()[1]
    udp.bind(("127.0.0.1", port))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{port}")
    abstract.listen()
    prelude = f"OUTSIDE, TRAINER, PORT = {str(folder)!r}, @PID, {port}\n"
    prelude += (FOLDER / "hostile" / "prelude.py").read_text()
    if cases is None:
        cases = [(n, c, 20.0) for n, c in HOSTILE.items()] + [(n, c, 0.25) for n, c in HANG.items()]
        cases += [(n, c, 20.0) for n, c in FLOODS.items()]
    job = {
        "file": str(canary),
        "without": without,
        "prelude": prelude,
        "following": (FOLDER / "following.py").read_text(),
        "cases": cases,
    }
    code = folder.parent / "code"  # the checkout may be private; the copy is for every user
    code.mkdir(exist_ok=True)
    copy_sources(code)
    done = subprocess.run(
        [python, "-c", (FOLDER / "driver.py").read_text(), str(code if user is not None else ROOT)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    arrived = []
    for name, listener in (("TCP", tcp), ("UDP", udp), ("abstract", abstract)):
        listener.setblocking(False)
        try:
            listener.recv(1) if name == "UDP" else listener.accept()
            arrived.append(name)
        except BlockingIOError:
            pass
        listener.close()
    level, report = json.loads(done.stdout)
    return level, report, arrived


def wrong(report) -> dict[str, str]:
    """The cases that escaped, or ended in a way they should not have."""
    found = {}
    for name, status, stdout, stderr, unchanged, following in report:
        expected = (
            {"timeout"} if name in HANG else {"output"} if name in FLOODS else {"ok", "error", "signal"}
        )
        if "NameError" in stderr or "SyntaxError" in stderr or "KeyError" in stderr:
            found[name] = f"the attack itself is broken: {stderr}"
        elif "ESCAPED" in stdout:
            found[name] = stdout
        elif status not in expected:
            found[name] = f"{status}: {stderr}"
        elif name in HANG and not stdout.startswith("kept"):
            found[name] = "output lost"
        elif not unchanged:
            found[name] = "the host has changed"
        elif following != "ok 42 []":
            found[name] = f"the next snippet gave {following}"
    return found


def python_for_nobody() -> str | None:
    """An interpreter that an unprivileged user can start; ours may live in a private home."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if (
                subprocess.run(
                    check, user=65534, group=65534, extra_groups=[], cwd="/", check=False
                ).returncode
                == 0
            ):
                return python
        except OSError:
            pass
    return None


@functools.cache
def attacks():
    """Every attack at both levels by both users, as {(level, user): what attack() returns}, or why there is none;
    all four at once, since most of their time is waiting."""
    runs, found = {}, {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        for user in ("this user", "nobody"):
            python = sys.executable if user == "this user" else python_for_nobody()
            for level, without in (("full", ()), ("core", ("namespaces",))):
                if user == "nobody" and os.geteuid() != 0:
                    found[level, user] = (
                        "not root: cannot become another user; this user is the unprivileged one"
                    )
                elif python is None:
                    found[level, user] = "no Python >= 3.11 that the user nobody can start"
                else:
                    options = {"python": python, "user": 65534 if user == "nobody" else None}
                    folder = stack.enter_context(reachable())
                    runs[level, user] = pool.submit(attack, folder, without, **options)
        return found | {key: run.result() for key, run in runs.items()}


@pytest.mark.slow
@linux
@pytest.mark.parametrize("user", ["this user", "nobody"])
@pytest.mark.parametrize("level", ["full", "core"])
def test_hostile_programs(level, user):
    found = attacks()[level, user]
    if isinstance(found, str):
        pytest.skip(found)
    reached, report, arrived = found
    if reached != level:
        pytest.skip(f"this machine reaches only level {reached}")
    assert len(report) >= 100
    assert wrong(report) == {}
    assert arrived == []


@linux
@pytest.mark.parametrize("without", [[], ["namespaces"]], ids=["full", "core"])
def test_rights_are_given_up(without):
    """User, capabilities, dumpable, no-new-privileges and death signal, as the kernel reports them."""
    code = """
import ctypes, os
libc, data, signal = ctypes.CDLL(None), (ctypes.c_uint * 6)(), ctypes.c_int()
libc.capget((ctypes.c_uint * 2)(0x20080522, 0), data)
libc.prctl(2, ctypes.byref(signal), 0, 0, 0)
print(os.getresuid()[0], len(set(os.getresuid() + os.getresgid())), list(data), libc.prctl(3, 0, 0, 0, 0),
      libc.prctl(39, 0, 0, 0, 0), signal.value, os.getgroups())
"""
    with strongest(without=without) as box:
        user = syscalls.NOBODY if syscalls.may_become_nobody() else os.geteuid()
        private = without and not all(map(syscalls.readable_by_all, syscalls.readable_paths([])))
        kept = syscalls.reading_capability() if private and user == syscalls.NOBODY else 0
        result = box.run(code)
        if user == syscalls.NOBODY:
            expected = f"{user} 1 {[kept, kept, 0, 0, 0, 0]} 0 1 9 []"
            assert result.stdout.strip() == expected, result
        else:
            assert f"{[kept, kept, 0, 0, 0, 0]} 0 1 9" in result.stdout, result


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "without, escapes",
    [
        (["landlock"], ["list outside"]),
        (["namespaces", "landlock"], ["list outside", "read outside", "passwords", "/proc"]),
        (
            ["seccomp"],
            ["fork", "memory by memfd", "let the parent trace it", "netlink", "undo the death signal"],
        ),
        (["rlimits"], ["memory by mmap", "memory in pipes", "one sparse file"]),
    ],
)
def test_every_layer_is_needed(outside, without, escapes, sandbox):
    """With layers left out, attacks that they alone stop get through: so the list above can fail."""
    if sandbox.level != "full":
        pytest.skip(f"this machine reaches only level {sandbox.level}")
    _, report, _ = attack(outside, without, [(name, HOSTILE[name], 5.0) for name in escapes])
    assert [name for name, _, stdout, *_ in report if "ESCAPED" in stdout] == escapes


@linux
def test_self_test_finds_a_layer_that_is_there_in_name_only(tmp_path, sandbox):
    """The level is what attacks show: with a filter that allows everything, the kernel still says "on"."""
    if sandbox.level == "none":
        pytest.skip("no confinement on this machine")
    leaky = changed_sandbox(tmp_path, "(RET, 0, 0, EPERM)", "(RET, 0, 0, ALLOW)")
    with pytest.raises(
        leaky.SandboxError, match="core was asked for, but seccomp is off: in the self-test a program could"
    ):
        leaky.Sandbox(quiet=True)


# ---------------------------------------------------------------------------------------------- results

PROGRAMS = {
    "print": "print(1 + 1)",
    "nothing": "",
    "unicode": "print('é 漢字 \N{SNOWMAN}')",
    "error": "def f(x):\n    return 1 / x\n\n\nprint('before')\nf(0)",
    "chained": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "context": "try:\n    {}['a']\nexcept KeyError:\n    int('x')",
    "group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "library": "import json\njson.loads('{')",
    "syntax": "x = (1,\n",
    "indent": "if 1:\nx = 2",
    "name": "prnt(1)",
    "assertion": "assert 1 == 2, 'no'",
    "note": "e = ValueError('x')\ne.add_note('a note')\nraise e",
    "exec inside": "exec(compile('1/0', '<inner>', 'exec'))",
    "exit 0": "import sys; sys.exit(0)",
    "exit 3": "import sys; sys.exit(3)",
    "exit 256": "import sys; sys.exit(256)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit 2 ** 70": "import sys; sys.exit(2 ** 70)",
    "exit an int of its own": "class Code(int): pass\nraise SystemExit(Code(7))",
    "exit text": "import sys; sys.exit('bad')",
    "exit()": "exit(4)",
    "os._exit": "import os; os._exit(7)",
    "atexit": "import atexit\natexit.register(print, 'bye')\n1/0",
    "thread": "import threading\nt = threading.Thread(target=print, args=('t',))\nt.start()\nt.join()",
    "late thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.05), print('late'))).start()",
    "pool": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p: print(list(p.map(abs, [-1, 2])))",
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(.01)\n    print('done')\nasyncio.run(f())",
    "asyncio gather": "import asyncio\nasync def f(i): return i\nasync def g(): print(await asyncio.gather(f(1), f(2)))\nasyncio.run(g())",
    "main": "print(__name__, __import__('sys').modules['__main__'].__dict__ is globals())",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nprint(A())",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "annotations": "def f(x: int): pass\nprint(f.__annotations__)",
    "input": "input()",
    "stdin": "import sys\nprint(repr(sys.stdin.read()))",
    "warning": "import warnings\nwarnings.warn('w')",
    "hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1/0",
    "decimal": "from decimal import *\nfrom fractions import *\nprint(Decimal(1) / 3, Fraction(1, 3))",
    "generator": "g = (i for i in range(3))\nprint(*g)\nnext(g)",
    "attribute": "import math\nmath.squrt(2)",
    "name in a function": "def f():\n    total = 1\n    return totl\nf()",
    "C output": "import ctypes\nctypes.CDLL(None).puts(b'from C')",
    "closed stdout": "import sys\nsys.stdout.close()",
    "printing to a closed stdout": "import sys\nsys.stdout.close()\nprint(1)",
    "bytes": "import sys\nsys.stdout.buffer.write(b'raw')",
    "big exception": "raise ValueError('x' * 1000)",
    "recursion": "def f(): f()\nf()",
    "digits": "print(10 ** 5000)",
    # __file__, help, a byte order mark, errors of the compiler, and what a program may replace
    "like a file: file": "print(__file__, __name__, __import__('sys').argv, __spec__, __cached__, __annotations__)",
    "like a file: dir": "print(sorted(dir()))",
    "like a file: help": "help(len)",
    "like a file: help own": "def f(x):\n    'doc of f'\nhelp(f)",
    "like a file: bom": "\ufeffprint('x')",
    "like a file: bom2": "\ufeff\ufeffprint('x')",
    "like a file: return": "x = 1\nreturn x",
    "like a file: return indented": "if True:\n    y = 2\n    return y\n",
    "like a file: yield": "class A:\n    yield 3",
    "like a file: global": "def f():\n    x = 1\n    global x\nf()",
    "like a file: nonlocal": "def f():\n    nonlocal q",
    "like a file: dup arg": "def f(a, a):\n    pass",
    "like a file: break": "print(1)\nbreak",
    "like a file: await": "await x",
    "like a file: starred": "*a, *b = 1, 2, 3",
    "like a file: del": "del f()",
    "like a file: future": "x = 1\nfrom __future__ import annotations",
    "like a file: import star": "def f():\n    from math import *",
    "like a file: default except": "try: pass\nexcept: pass\nexcept ValueError: pass",
    "like a file: nested": "for a in b:\n for a in b:\n  for a in b:\n   for a in b:\n    for a in b:\n     for a in b:\n      for a in b:\n       for a in b:\n        for a in b:\n         for a in b:\n          for a in b:\n           for a in b:\n            for a in b:\n             for a in b:\n              for a in b:\n               for a in b:\n                for a in b:\n                 for a in b:\n                  for a in b:\n                   for a in b:\n                    for a in b:\n                     for a in b:\n                       pass",
    "like a file: unicode late": "é = 1; return é",
    "like a file: wide caret": "s = '漢字'; return s",
    "like a file: form feed": "x = 1\n\x0creturn 2",
    "like a file: crlf": "x = 1\r\nreturn 2\r\n",
    "like a file: tab early": "if 1:\n\tx = = 2",
    "like a file: tabs": "if 1:\n\tx = 1\n\treturn x",
    "like a file: gen multi": "f(a for a in b,\n  c)",
    "like a file: print replaced": "import builtins\nbuiltins.print = None\n1/0",
    "like a file: len replaced": "import builtins\nbuiltins.len = lambda x: 0\n1/0",
    "like a file: str replaced": "import builtins\nbuiltins.str = None\nraise ValueError('x')",
    "like a file: isinstance replaced": "import builtins\nbuiltins.isinstance = lambda *a: False\n1/0",
    "like a file: getattr": "import builtins\ndel builtins.getattr\n1/0",
    "like a file: exit replaced": "import builtins\nbuiltins.print = None\nraise SystemExit('bye')",
    "like a file: no hook": "import sys\nsys.excepthook = None\n1/0",
    "like a file: hook deleted": "import sys\ndel sys.excepthook\n1/0",
    "like a file: hook of two arguments": "import sys\nsys.excepthook = lambda kind, error: None\n1/0",
    "like a file: failing hook": "import sys\ndef hook(*a):\n    return a[9]\nsys.excepthook = hook\n1/0",
    "like a file: no block after for": "for i in range(3):\nprint(i)",
    "like a file: no block after def": "x = 1\ndef f(x):\nreturn x\n",
    "like a file: no block in a block": "if 1:\n    while 1:\n    print(1)",
    "like a file: unindent": "if 1:\n        x = 1\n    y = 2",
    "like a file: unexpected indent": "x = 1\n    y = 2",
    "like a file: mixed tabs": "if 1:\n\tx = 1\n        y = 2",
    "like a file: excepthook": "import sys\nsys.excepthook = sys.__excepthook__\n1/0",
    "like a file: call hook": "import sys\ntry: 1/0\nexcept ZeroDivisionError: sys.excepthook(*sys.exc_info())",
    "like a file: linecache clear": "import linecache\nlinecache.clearcache()\n1/0",
    "like a file: inspect": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "like a file: stderr replaced": "import sys, io\nsys.stderr = io.StringIO()\n1/0",
    "like a file: thread print none": "import threading, builtins\nbuiltins.print = None\nt = threading.Thread(target=lambda: 1/0, name='T')\nt.start(); t.join()",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_like_the_real_interpreter(name, sandbox, tmp_path):
    """stdout, stderr and exit code are those of `python -u FILE` for a file named "<code>"."""
    file = tmp_path / "<code>"
    file.write_text(PROGRAMS[name], encoding="utf-8")
    real = subprocess.run(
        [sys.executable, "-u", "-X", "utf8", file],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
    )
    result = sandbox.run(PROGRAMS[name], 20.0)
    assert result.stdout == real.stdout.decode().replace(str(file), "<code>")
    assert result.exit_code == real.returncode
    assert result.status == ("ok" if real.returncode == 0 else "error")
    expected = real.stderr.decode().replace(str(file), "<code>")
    times = re.compile(r"repeated \d+ more times")  # a few frames of the limit are ours
    assert times.sub("", result.stderr) == times.sub("", expected)


FOLDERS = {  # program -> what it prints; at level core
    "temporary": (
        "import os, tempfile\nf = tempfile.NamedTemporaryFile('w')\nf.write('abc')\nf.flush()\n"
        "with tempfile.TemporaryDirectory() as d: open(d + '/a', 'x').close()\n"
        "t = tempfile.TemporaryFile()\nt.write(b'ab')\n"
        "print(os.path.getsize(f.name), t.tell(), os.getcwd() == os.environ['HOME'] == tempfile.gettempdir())",
        "3 2 True",
    ),
    "a file": ("open('x', 'w').write('hi')\nprint(open('x').read())", "hi"),
    "a module": ("open('own_module.py', 'w').write('x = 3')\nimport own_module\nprint(own_module.x)", "3"),
    "a data base": (
        "import sqlite3\nc = sqlite3.connect('a.db')\nc.execute('create table t(x)')\n"
        "c.execute('insert into t values (7)')\nc.commit()\nprint(c.execute('select * from t').fetchall())",
        "[(7,)]",
    ),
    "read-only folders": (
        "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.mkdir('none', 0)\nos.umask(0o777)\n"
        "os.mkdir('also none')\nopen('file', 'w').close()\nprint(len(os.listdir()))",
        "4",
    ),
    "a deep tree": (
        "import os\nfor _ in range(300): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('x', 'w').close()\nprint(1)",
        "1",
    ),
    "links out": (
        "import os\nos.symlink({outside!r}, 'out')\nos.symlink({outside!r} + '/kept', 'file')\nos.symlink('me', 'me')\n"
        "try: os.listdir('out')\nexcept OSError as e: print(type(e).__name__)",
        "PermissionError",
    ),
    "its own name": ("import os\ntry: os.rename(os.getcwd(), '../x')\nexcept OSError: print('no')", "no"),
    "names like ours": (
        "import os\nfor n in range(3): os.makedirs(f'{{os.path.basename(os.getcwd())}}-{{n}}/1/2')\nprint(1)",
        "1",
    ),
}


@linux
def test_programs_at_level_core_have_an_empty_folder_each(outside):
    """Whatever one leaves, the next finds nothing, and what a link names outside is untouched."""
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with strongest(without=("namespaces",), workers=1) as box:
        if box.level != "core":
            pytest.skip(f"this machine reaches only level {box.level}")
        base = Path(box._template.folder)
        for name, (code, printed) in FOLDERS.items():
            result = box.run(code.format(outside=str(outside)) if "{" in code else code, 20.0)
            assert (result.status, result.stdout.strip()) == ("ok", printed), (name, result)
            assert box.run("import os; print(os.listdir('.'))").stdout == "[]\n", name
            assert len(list(base.glob("*"))) == 1, name
        assert (outside / "kept").read_text() == "kept"
        os.kill(box._template.pid, signal.SIGKILL)
        assert box.run("open('x', 'w'); print(1)", 20.0).stdout == "1\n"
        assert not base.exists() and (base := Path(box._template.folder)).exists()
    assert not base.exists()


@linux
@pytest.mark.parametrize(
    "code, status",
    [
        ("i = 0\nwhile True:\n    open(f'{i}', 'wb').write(b'x' * (1 << 20)); i += 1", "output"),
        ("i = 0\nwhile True:\n    open(f'{i}', 'w'); i += 1", "output"),
        ("import os\nwhile True:\n    os.mkdir('d'); os.chdir('d'); open('x', 'wb').write(b'x' * (1 << 22))", "output"),
        ("f = open('x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", "error"),  # RLIMIT_FSIZE
    ],
    ids=["bytes", "entries", "depth", "one file"],
)  # fmt: skip
def test_a_program_cannot_fill_the_disk(code, status):
    with strongest(without=("namespaces",), workers=1) as box:
        if box.level != "core":
            pytest.skip(f"this machine reaches only level {box.level}")
        result = box.run(code, 60.0)
        assert result.status == status, result
        assert box.run("import os; print(os.listdir('.'))").stdout == "[]\n"


def test_half_of_the_free_disk_stays_free(tmp_path, monkeypatch):
    """Files that are deleted but open are in no folder: the disk itself is asked."""
    (tmp_path / "own").mkdir()
    for left, full in ((600, False), (400, True)):
        monkeypatch.setattr(folders, "free_bytes", lambda _, left=left: left)
        assert folders.over_quota(str(tmp_path / "own"), 1000) is full


@pytest.mark.parametrize(
    "code, status, output",
    [
        ("import os; os.write(1, bytes([255, 65]))", "ok", "\ufffdA"),
        ("print('\\udc80')", "ok", "\ufffd"),
        ("x = '\udc80'", "error", ""),
        ("print(1)\0", "error", ""),
        ("raise SystemExit(2 ** 40)", "error", ""),  # the interpreter cuts it to 32 bits, which are 0
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal", ""),
        ("print('ok'); import ctypes; ctypes.string_at(0)", "signal", "ok"),
        ('print(\'{"status": "ok"}\'); raise SystemExit(1)', "error", '{"status": "ok"}'),
        ("import os; os.close(1); os.close(2)", "ok", ""),
        ("import os; os.closerange(0, 1000); os._exit(0)", "ok", ""),
    ],
)
def test_status_is_how_the_process_ended(code, status, output, sandbox):
    result = sandbox.run(code)
    assert (result.status, result.stdout.strip()) == (status, output)
    assert (result.signal is not None) == (status == "signal")


def test_output_is_capped_per_stream(sandbox):
    result = sandbox.run("import sys\nprint('a' * 100_000)\nsys.stderr.write('b' * 10)")
    assert (result.status, result.stdout, result.stderr, result.truncated) == (
        "ok",
        "a" * 65536,
        "b" * 10,
        True,
    )
    assert not sandbox.run("print('a' * 65535)").truncated
    assert sandbox.run("while True: print('y' * 4096)", 30.0).status == "output"


def test_partial_output_survives_a_timeout(sandbox):
    result = sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nwhile True: pass", 0.3)
    assert (result.status, result.stdout, result.stderr) == ("timeout", "out\n", "err\n")
    assert 0.3 <= result.wall < 5


@pytest.mark.slow
def test_the_clock_starts_with_the_program():
    """Nine programs of 0.2 s wait for one worker for longer than their timeout, and none times out."""
    with strongest(workers=1) as box:
        results = box.map(["import time; time.sleep(.2); print(1)"] * 9, 1.5)
    assert Counter(r.status for r in results) == {"ok": 9}


@pytest.mark.slow
def test_results_keep_their_order_from_many_threads():
    with strongest() as box:
        answers = {}

        def work(number):
            codes = [f"print({number} * 100 + {i})" for i in range(20)]
            answers[number] = [int(r.stdout) for r in box.map(codes)]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert answers == {n: [n * 100 + i for i in range(20)] for n in range(6)}


@pytest.mark.slow
def test_a_callback_may_submit():
    """A callback runs in the reader thread: were the template to wait for that thread, both would wait for ever."""
    with strongest(output_kb=2048) as box:
        big, ends = "x = '" + "a" * 1_000_000 + "'", []
        for future in [box.submit("print('y' * 2_000_000)") for _ in range(30)]:
            future.add_done_callback(lambda _: box.submit(big).add_done_callback(ends.append))
        assert wait_until(lambda: len(ends) == 30, 60)
    assert {future.result().status for future in ends} == {"ok"}


def test_nothing_leaks_into_the_next_program(sandbox):
    sandbox.map(
        ["import builtins, json, os, sys\nbuiltins.print = None\njson.loads = None\nos.environ['X'] = 'y'\nsys.path.clear()\n"
        "sys.setrecursionlimit(50)\nglobals()['secret'] = 1\nos.umask(0)\nimport gc; gc.disable()"] * 4
    )  # fmt: skip
    check = (
        "import gc, json, os, sys\nassert 'secret' not in globals() and 'X' not in os.environ and sys.path and gc.isenabled()\n"
        "assert sys.getrecursionlimit() == 1000\nprint(json.loads('1'))"
    )
    assert {(r.status, r.stdout) for r in sandbox.map([check] * 4)} == {("ok", "1\n")}


@pytest.mark.slow
def test_every_program_draws_its_own_random_numbers():
    """A fork inherits numpy's generator: without care, every program would draw the same."""
    code = "import random, numpy\nprint(random.random(), numpy.random.rand())"
    pytest.importorskip("numpy")
    pytest.importorskip("sympy")
    with strongest(preload=("numpy", "sympy")) as box:
        more = "\nfrom sympy.core.random import rng\nprint(rng.random())"
        drawn = [r.stdout.split() for r in box.map([code + more] * 4)]
        assert [len(set(numbers)) for numbers in zip(*drawn, strict=True)] == [4, 4, 4]


# --------------------------------------------------------------------------------------- life and death


def copy_sources(folder: Path, old: str = "", new: str = "") -> None:
    """The sandbox's files in `folder`, with one piece of their text changed."""
    found = 0
    for file in (ROOT / "sandbox.py", *ROOT.glob("isolation/*.py"), *ROOT.glob("plumbing/*.py")):
        text = file.read_text()
        found += text.count(old) if old else 1
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text.replace(old, new) if old else text)
    assert found, old


def changed_sandbox(folder: Path, old: str, new: str):
    """The module sandbox with one piece of its text changed, for its template and workers too."""
    copy_sources(folder, old, new)
    name = f"sandbox_of_{folder.name}"
    (folder / "sandbox.py").rename(folder / f"{name}.py")
    ours = {m: sys.modules.pop(m) for m in list(sys.modules) if m.partition(".")[0] == "isolation"}
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for copied in [m for m in sys.modules if m.partition(".")[0] == "isolation"]:
            del sys.modules[copied]
        sys.modules.update(ours)


def descendants(pid: int) -> list[int]:
    """Processes below one, as /proc tells."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry)] = int(fields[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def wait_until(condition, seconds=20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.slow
@linux
def test_a_dead_template_is_replaced_and_a_second_death_is_the_end():
    box = strongest()
    with box:
        layers, first = box.layers, box._template.pid
        waiting = [box.submit("import time; time.sleep(.5); print(5)") for _ in range(5)]
        old = descendants(first)
        os.kill(first, signal.SIGKILL)
        assert [f.result(60).stdout for f in waiting] == ["5\n"] * 5
        assert box.layers == layers and box._template.pid != first
        assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in old))
        waiting = [box.submit("import time; time.sleep(60)") for _ in range(5)]
        os.kill(box._template.pid, signal.SIGKILL)
        assert {f.result(60).status for f in waiting} == {"sandbox_error"}
        with pytest.raises(SandboxError, match="died twice within 10 seconds"):
            box.run("print(1)")


@pytest.mark.slow
@linux
def test_a_restart_with_fewer_layers_is_refused(sandbox):
    if sandbox.level == "none":
        pytest.skip("no layers to lose")
    with strongest() as box:
        box._config["without"] = ["seccomp"]  # as if the machine had changed
        os.kill(box._template.pid, signal.SIGKILL)
        assert wait_until(lambda: bool(box._broken))
        with pytest.raises(SandboxError, match="the restarted sandbox does not hold.*seccomp"):
            box.run("print(1)")


@pytest.mark.slow
@linux
@pytest.mark.parametrize("without", [[], LAYERS], ids=["full", "none"])
def test_a_dead_worker_is_replaced_and_its_program_run_again(without):
    with strongest(workers=1, without=without) as box:
        future = box.submit("import time; time.sleep(2); print(5)")
        assert wait_until(lambda: len(descendants(box._template.pid)) == 2)
        worker, snippet = descendants(box._template.pid)
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: snippet not in descendants(box._template.pid), 1.5)
        assert future.result(60).stdout == "5\n"
        assert box.run("print(6)").stdout == "6\n"


@pytest.mark.slow
@linux
@pytest.mark.parametrize("without", [[], LAYERS], ids=["full", "none"])
def test_a_killed_trainer_leaves_nothing_alive(without):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom sandbox import Sandbox\n"
        f"box = Sandbox(workers=2, require='none', quiet=True, without={list(without)!r})\n"
        "futures = [box.submit('import signal\\nsignal.pthread_sigmask(0, range(1, 65))\\nwhile True: pass', 60) for _ in '1234']\n"
        "print('ready', flush=True)\nimport time; time.sleep(60)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout.readline() == "ready\n"
    assert wait_until(lambda: len(descendants(trainer.pid)) == 5)  # template, two workers, two snippets
    below = descendants(trainer.pid)
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below))
    trainer.stdout.close()


@linux
def test_close_ends_every_process_and_what_waits():
    box = strongest()
    futures = [box.submit("while True: pass", 60) for _ in range(5)]
    below = [box._template.pid, *descendants(box._template.pid)]
    box.close()
    box.close()
    assert {f.result(20).status for f in futures} == {"sandbox_error"}
    assert not any(os.path.exists(f"/proc/{pid}") for pid in below)
    with pytest.raises(SandboxError, match="closed"):
        box.run("1")


@pytest.mark.slow
@linux
def test_descriptors_and_processes_do_not_grow(sandbox):
    programs = [
        "print(1)",
        "1/0",
        "import os; os._exit(3)",
        "open('/tmp/x', 'w')",
        "import ctypes; ctypes.string_at(0)",
    ]

    def counts():
        pids = [os.getpid(), sandbox._template.pid, *descendants(sandbox._template.pid)]
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    sandbox.map(programs * 4)
    assert wait_until(lambda: len(counts()) == 4)
    before = counts()
    sandbox.map(programs * 40)
    assert wait_until(lambda: counts() == before)


@pytest.mark.slow
@linux
def test_too_many_failures_stop_the_run():
    """As if the kernel, out of memory, killed every worker that runs a program. Few failures never stop a run,
    many do; each program was tried twice, and each failure was answered as ours."""
    with strongest(max_failed_share=0.5, workers=1) as box:
        template, answers = box._template.pid, []
        with pytest.raises(
            SandboxError, match="6 of the last 7 programs could not be run, .* the worker died"
        ):
            answers.append(box.run("print(1)"))
            for _ in range(9):
                future = box.submit("import time; time.sleep(20)")
                while not future.done():
                    if len(family := descendants(template)) == 2:  # a worker and its snippet
                        with contextlib.suppress(ProcessLookupError):  # it was on its way into namespaces
                            os.kill(family[0], signal.SIGKILL)
                    time.sleep(0.005)
                answers.append(future.result())
        assert [r.status for r in answers] == ["ok"] + ["sandbox_error"] * 6
        assert box._template.pid == template


def test_failures_long_ago_are_forgotten(monkeypatch, sandbox):
    """A share of the whole run would let one that breaks after a million programs go on for thousands."""
    box = strongest(max_failed_share=0.01)
    with box:
        bad, good = Result("sandbox_error", "", "", None, None, 0, 0, 0, False), sandbox.run("1")

        def answer(result, times):
            for _ in range(times):
                box._waiting[-1] = Future(), {"id": -1, "retry": True}
                box._resolve(-1, result)

        answer(good, 5000)
        answer(bad, 10)
        assert box.run("print(1)").status == "ok"
        answer(good, 1000)
        answer(bad, 10)
        assert box.run("print(1)").status == "ok"
        answer(bad, 1)
        with pytest.raises(SandboxError, match="11 of the last 1000 programs"):
            box.run("print(1)")
        box._broken = ""


@pytest.mark.slow
@linux
def test_a_callback_may_submit_when_the_template_is_replaced():
    """A program that has lost its second template is answered in the reader's thread, which must hold no lock."""
    with strongest(workers=1) as box:
        future, ends = box.submit("import time; time.sleep(60)"), []
        future.add_done_callback(lambda _: ends.append(box.submit("print(2)")))
        for _ in range(2):
            pid = box._template.pid
            os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: box._template.pid != pid and not box._lock.locked())  # noqa: B023
            box._last_death = -100.0
        assert wait_until(lambda: bool(ends)) and ends[0].result(20).stdout == "2\n"
        assert future.result().status == "sandbox_error"


@pytest.mark.slow
@linux
def test_half_a_message_of_a_dying_template_is_no_message():
    """It once ended the reader's thread, and with it every future."""
    with strongest(workers=1) as box:
        future = box.submit("print(3)")
        assert future.result(20).stdout == "3\n"
        waiting = box.submit("import time; time.sleep(.5); print(4)")
        os.kill(box._template.pid, signal.SIGSTOP)
        stream, box._template.stream = box._template.stream, io.BytesIO(b'{"id": 1, "resu')
        os.kill(box._template.pid, signal.SIGKILL)
        assert waiting.result(20).stdout == "4\n"
        stream.close()


@pytest.mark.slow
@linux
def test_a_trainer_killed_while_modules_are_imported_leaves_nothing(tmp_path):
    """Nobody reads the socket then: the kernel has to tell."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "slow_to_import.py").write_text("import time\ntime.sleep(30)\n")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(packages)!r}]\nfrom sandbox import Sandbox\n"
        "Sandbox(require='none', quiet=True, preload=('slow_to_import',))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: len(descendants(trainer.pid)) == 1)
    (template,) = descendants(trainer.pid)
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: not os.path.exists(f"/proc/{template}"), 5.0)


@linux
def test_a_fork_of_the_trainer_may_not_use_the_sandbox(sandbox):
    read_fd, write_fd = os.pipe()
    template, pid = sandbox._template.pid, os.fork()
    if pid == 0:
        try:
            sandbox.submit("1")
        except SandboxError as error:
            os.write(write_fd, str(error).encode())
        sandbox.close()  # nor end it
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"belongs to the process that made it" in os.read(read_fd, 1000)
    assert sandbox.run("print(1)").stdout == "1\n" and sandbox._template.pid == template
    os.close(read_fd)
    os.close(write_fd)


# --------------------------------------------------------------------------------- levels and interface


@pytest.mark.parametrize("layer", LEVELS["core"])
def test_the_default_refuses_what_is_weaker_than_core(layer):
    with pytest.raises(
        SandboxError, match=f"level core was asked for, but {layer} is off: .*so programs can"
    ) as error:
        Sandbox(without=(layer,), quiet=True)
    assert "\n" not in str(error.value) and "require='none'" in str(error.value)


def test_full_is_refused_without_namespaces():
    with pytest.raises(SandboxError, match="level full was asked for, but namespaces"):
        Sandbox(without=("namespaces",), require="full", quiet=True)


def test_one_line_says_level_and_layers(capfd, sandbox):
    with strongest(quiet=False) as box:
        assert set(box.layers) == set(LAYERS)
        assert capfd.readouterr().err == f"{box}\n"
        assert str(box).startswith(f"sandbox: level {box.level}; ")


@pytest.mark.parametrize("options", [{"require": "strong"}, {"without": ("walls",)}])
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match="expected one of"):
        Sandbox(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"memory_mb": 0},
        {"memory_mb": 1 << 50},
        {"output_kb": 0},
        {"timeout": 0},
        {"timeout": "5"},
        {"max_failed_share": -0.1},
        {"max_failed_share": float("nan")},
    ],
)
def test_numbers_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match="; expected a|expected a timeout"):
        Sandbox(**options)


def test_a_module_that_cannot_be_preloaded_is_named():
    with pytest.raises(
        SandboxError, match=r"cannot preload 'nope\.x': ModuleNotFoundError: No module named 'nope'"
    ):
        strongest(preload=("nope.x",))


@pytest.mark.parametrize(
    "code, timeout",
    [(b"1", None), ("1", 0), ("1", -1), ("1", float("nan")), ("1", float("inf")), ("1", "2"), ("1", 1j)],
)
def test_bad_arguments_are_refused(code, timeout, sandbox):
    with pytest.raises(ValueError, match="expected a (program|timeout)"):
        sandbox.submit(code, timeout)


def test_a_timeout_of_any_numeric_type(sandbox):
    """A Decimal was registered, could not be sent, and then ended the reader at the next restart."""
    assert sandbox.run("print(1)", Decimal(9)).stdout == "1\n"
    assert sandbox._waiting == {}


def test_a_callback_that_exits_ends_nobody_else(sandbox, capsys):
    def leave(_):
        raise SystemExit(3)

    sandbox.submit("import time; time.sleep(.2)").add_done_callback(leave)
    assert sandbox.submit("print(4)").result(20).stdout == "4\n"
    assert wait_until(lambda: sandbox._waiting == {})
    assert sandbox.submit("print(5)").result(20).stdout == "5\n"


@pytest.mark.slow
def test_a_program_too_large_for_its_memory_says_so():
    with strongest(memory_mb=64, workers=1) as box:
        if box.layers["rlimits"] != "on":
            pytest.skip("no limit of memory on this machine")
        result = box.run("#" + "x" * (20 << 20), 20.0)
        assert (result.status, result.exit_code, result.stderr) == ("error", 1, "MemoryError\n")


@pytest.mark.slow
@linux
def test_a_stopped_worker_is_replaced():
    """It would keep its program, and the future of it, for ever."""
    with strongest(workers=1) as box:
        future = box.submit("import time; time.sleep(.5); print(5)")
        assert wait_until(lambda: len(descendants(box._template.pid)) == 2)
        os.kill(descendants(box._template.pid)[0], signal.SIGSTOP)
        assert future.result(20).stdout == "5\n"


@pytest.mark.slow
@linux
def test_a_kill_for_want_of_memory_is_ours(tmp_path):
    """With another file in the place of the kernel's counters, which only an administrator could raise."""
    counters = tmp_path / "vmstat"
    counters.write_text("oom_kill 00001\n")
    changed = changed_sandbox(tmp_path, "/proc/vmstat", str(counters))
    kill = "import os; os.kill(os.getpid(), 9)"
    open_counters = counters.open("r+b", buffering=0)
    with open_counters, changed.Sandbox(require="none", quiet=True, workers=1) as box:
        future = box.submit(f"import time; time.sleep(1); {kill}")
        for count in itertools.takewhile(lambda _: not future.done(), itertools.count(2)):
            os.pwrite(open_counters.fileno(), b"oom_kill %05d\n" % count, 0)  # never empty between two writes
            time.sleep(0.02)
        assert future.result().status == "sandbox_error" and "ran out of memory" in future.result().stderr
        box.run(kill)  # perhaps tried again, for the last count
        assert (box.run(kill).status, box.run(kill).signal) == ("signal", 9)


@linux
def test_workers_that_fail_again_and_again_are_not_started_for_ever(tmp_path):
    """As if namespaces were forbidden after the start."""
    flag, line = tmp_path / "forbidden", '        if "namespaces" in layers:\n'
    check = f"        if os.path.exists({str(flag)!r}):\n            sys.exit('forbidden')\n{line}"
    changed = changed_sandbox(tmp_path, line, check)
    with changed.Sandbox(require="none", quiet=True, workers=1) as box:
        assert box.run("print(1)").stdout == "1\n"
        flag.touch()
        os.kill(descendants(box._template.pid)[0], signal.SIGKILL)
        assert wait_until(lambda: bool(box._broken))
        with pytest.raises(changed.SandboxError):
            box.run("print(1)")


def test_a_share_of_zero_stops_at_the_first_failure():
    with strongest(max_failed_share=0) as box:
        box._waiting[-1] = Future(), {"id": -1, "retry": True}
        box._resolve(-1, Result("sandbox_error", "", "", None, None, 0, 0, 0, False))
        with pytest.raises(SandboxError, match="1 of the last 1 programs"):
            box.run("print(1)")


@pytest.mark.slow
def test_command_line(tmp_path, sandbox):
    program = tmp_path / "program.py"
    program.write_text("\ufeffprint(6 * 7)", encoding="utf-8")
    command = [sys.executable, str(ROOT / "sandbox.py")]
    table = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"sandbox: level {sandbox.level}" in table.stdout and "NOT STOPPED" not in table.stdout
    if sandbox.level != "none":
        done = subprocess.run([*command, str(program)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "42\n")
    done = subprocess.run([*command, "no-such-file"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "no-such-file" in done.stderr


@linux
def test_root_without_capabilities():
    """As some containers run: it cannot become nobody, and stays what it is."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, str(ROOT / "sandbox.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "sandbox: level " in done.stdout and "Traceback" not in done.stderr, done
    assert "NOT STOPPED" not in done.stdout


# --------------------------------------------------------------------------------------- system calls


def header_numbers(machine: str) -> dict[str, int]:
    """System-call numbers as the kernel's headers give them; empty where they are not installed."""
    aliases = {"3264_fcntl": "fcntl", "3264_fstat": "fstat", "3264_lseek": "lseek", "3264_mmap": "mmap"}
    aliases |= {"3264_sendfile": "sendfile", "3264_ftruncate": "ftruncate", "3264_fadvise64": "fadvise64"}
    aliases |= {"3264_statfs": "statfs", "3264_fstatfs": "fstatfs", "3264_fstatat": "newfstatat"}
    places = {
        "x86_64": ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"],
        "aarch64": ["/usr/include/asm-generic/unistd.h"],
    }
    for place in places[machine]:
        if os.path.exists(place):
            found = re.findall(r"#define __NR_?(\w+)\s+(\d+)\s", Path(place).read_text())
            return {aliases.get(name, name): int(number) for name, number in found}
    return {}


@pytest.mark.parametrize("machine", syscalls.ARCHITECTURES)
def test_numbers_are_those_of_the_kernel_headers(machine):
    known = header_numbers(machine)
    if not known:
        pytest.skip("kernel headers are not installed")
    column = syscalls.ARCHITECTURES[machine][1]
    ours = syscalls.numbers(syscalls.ALLOWED, column) | syscalls.numbers(syscalls.CHECKED, column)
    ours["clone3"] = syscalls.CLONE3
    assert {k: v for k, v in ours.items() if known.get(k) != v} == {}


def bpf(program: bytes, arch: int, number: int, arguments=()) -> int:
    """What a seccomp filter answers to a call: a BPF interpreter."""
    data = struct.pack("IIQ6Q", number, arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    code = [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]
    at, a = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            a = struct.unpack_from("I", data, k)[0]
        elif op == 0x54:
            a &= k
        elif op == 0x06:
            return k
        else:
            at += yes if {0x15: a == k, 0x35: a >= k, 0x25: a > k}[op] else no


@pytest.mark.parametrize("machine", syscalls.ARCHITECTURES)
def test_the_filter_allows_the_table_and_nothing_else(machine):
    audit, column = syscalls.ARCHITECTURES[machine]
    program = syscalls.seccomp_filter(machine)
    allowed = set(syscalls.numbers(syscalls.ALLOWED, column).values())
    checked = syscalls.numbers(syscalls.CHECKED, column)
    for number in {*range(600), 0x40000000, 0x40000001, 0xFFFFFFFF} - set(checked.values()) - {435}:
        assert (bpf(program, audit, number) == syscalls.ALLOW) == (number in allowed), number
    assert bpf(program, audit, 435) == syscalls.ENOSYS
    for other in (0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, 0):
        if other != audit:
            assert bpf(program, other, 0) == syscalls.KILL
    own = syscalls.OWN_PID
    good = [("clone", 0x3D0F00), ("tgkill", own), ("prlimit64", 0), ("fcntl", 0, 3), ("ioctl", 0, 0x5401)]
    good += [
        ("close_range", 3, 4095, 4),
        ("prctl", 15),
        ("socketpair", 1, 1 | 0x80800),
        ("openat", 0, 0, 0x241),
        ("openat", 0, 0, 0),
    ]
    bad = [
        ("clone", 0x3D0F00 | 0x10000000),
        ("close_range", 3, 4095, 2),
        ("tgkill", own + 1),
        ("prlimit64", 7),
        ("fcntl", 0, 8),
        ("fcntl", 0, 10),
    ]
    bad += [("ioctl", 0, 0x5412), ("prctl", 1), ("prctl", 22), ("socketpair", 1, 2), ("socketpair", 2, 1)]
    bad += [("openat", 0, 0, 0x200), ("openat", 0, 0, 0x80200)]
    bad += [("clone", 17), ("kill", 1), ("clone", 0x3D0B00)]  # the last: a thread with its own open files
    for name, *arguments in good:
        number = checked[name]
        assert bpf(program, audit, number, arguments) == syscalls.ALLOW, (name, arguments)
    for name, *arguments in bad:
        assert bpf(program, audit, checked[name], arguments) == syscalls.EPERM, (name, arguments)


@pytest.mark.slow
def test_python_below_tmp_loses_no_layer(tmp_path):
    """A checkout in /tmp: the fresh /tmp of each program must not hide Python's packages, which once cost the
    namespaces (the new root already had a /tmp) and would have cost numpy."""
    if not str(tmp_path.resolve()).startswith("/tmp/"):
        pytest.skip(f"pytest's folder {tmp_path} is not below /tmp")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "only_here.py").write_text("where = __file__\n")
    copy_sources(tmp_path)
    program = f"import only_here; print(only_here.where); open({str(packages)!r} + '/new', 'w')"
    (tmp_path / "run.py").write_text(
        "from sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    with Sandbox(require='none', quiet=True) as s:\n"
        f"        print(s.level); r = s.run({program!r}); print(r.stdout, r.stderr)\n"
    )
    done = subprocess.run([tmp_path / "venv/bin/python", tmp_path / "run.py"], capture_output=True, text=True)
    with Sandbox(require="none", quiet=True) as here:
        level = here.level
    assert done.stdout.splitlines()[0] == level, done.stdout + done.stderr
    assert "only_here.py" in done.stdout
    if level != "none":
        assert "Read-only file system" in done.stdout or "Permission denied" in done.stdout
