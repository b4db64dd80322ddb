"""Programs on another machine. One test server answers as SandboxFusion does and runs programs in a local
sandbox, so that results can be compared; another one misbehaves."""

import json
import math
import sys
from collections.abc import Iterator

import pytest
from server import Handler, hang, teacher

import evaluate
import grpo
import ppo
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from sandbox import Sandbox, SandboxError, remote_sandbox
from training import loop
from training.interpreter import open_sandbox
from training.options import SandboxOptions


@pytest.fixture(scope="module")
def local() -> Iterator[Sandbox]:
    with Sandbox(require="none", quiet=True, workers=2) as box:
        yield box


@pytest.fixture(scope="module")
def behind() -> Iterator[Sandbox]:
    """What the server runs programs in; like SandboxFusion it keeps 1 MiB of each stream."""
    with Sandbox(require="none", quiet=True, workers=2, output_kb=1024) as box:
        yield box


def ran(status: str, code: int | None, out: str = "", err: str = "", seconds: float | None = 0.01) -> bytes:
    """A RunCodeResponse, as github.com/bytedance/SandboxFusion defines it, of a program that was run."""
    result = {"status": status, "execution_time": seconds, "return_code": code, "stdout": out, "stderr": err}
    good = status == "Finished" and code == 0
    answer = {"status": "Success" if good else "Failed", "message": "", "compile_result": None}
    return json.dumps(answer | {"run_result": result, "executor_pod_name": None, "files": {}}).encode()


ALIVE = (200, ran("Finished", 0, "42\n"))  # to the program that is sent at the start


def fusion(behind: Sandbox):
    """A server's answer: the program's result in a local sandbox, as a RunCodeResponse."""

    def answer(handler: Handler) -> None:
        result = behind.run(handler.body["code"], handler.body["run_timeout"])
        late = result.status == "timeout"
        code = None if late else -result.signal if result.signal else result.exit_code
        err = result.stderr.replace('File "<code>"', 'File "/tmp/tmp0a_b1c2d/tmpxyz_1234.py"')
        status = "TimeLimitExceeded" if late else "Finished"
        handler.answer(200, ran(status, code, result.stdout, err, result.wall))

    return answer


PROGRAMS = {
    "ok": "print(6 * 7)",
    "unicode": "print('\u00e4\u20ac\U0001f600')",
    "error": "def f():\n    return 1 / 0\nf()",
    "syntax error": "print(",
    "exit code": "import sys\nprint('so far')\nsys.exit(3)",
    "timeout": "print('begun', flush=True)\nwhile True: pass",
    "signal": "import os\nos.kill(os.getpid(), 11)",
    "long output": "print('x' * 70_000)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_those_of_our_own_sandbox(serve, local, behind, name: str) -> None:
    expected = local.run(PROGRAMS[name], 0.5)
    with remote_sandbox(serve(fusion(behind)).url, quiet=True) as box:
        found = box.run(PROGRAMS[name], 0.5)
    for field in ("status", "stdout", "stderr", "exit_code", "signal", "truncated"):
        assert getattr(found, field) == getattr(expected, field), field
    assert found.wall > 0 and math.isnan(found.cpu) and math.isnan(found.max_rss_mb)


def test_many_programs_keep_their_order(serve, behind) -> None:
    with remote_sandbox(serve(fusion(behind)).url, quiet=True, workers=4) as box:
        results = box.map([f"print({i})" for i in range(20)])
    assert [r.stdout for r in results] == [f"{i}\n" for i in range(20)]


def test_the_request_is_what_the_server_documents(serve) -> None:
    server = serve(ALIVE)
    with remote_sandbox(server.url, timeout=2.5, quiet=True) as box:
        box.run("print(6 * 7)")
        box.run("print(6 * 7)", timeout=1)
    path, headers, body = server.seen[1]
    assert path == "/v1/run_code" and headers["Content-Type"] == "application/json"
    assert body == {
        "code": "print(6 * 7)", "language": "python", "run_timeout": 2.5, "compile_timeout": 2.5
    }  # fmt: skip
    assert server.seen[2][2]["run_timeout"] == 1


SANDBOX_ERROR = {
    "status": "SandboxError",
    "message": "no pod left",
    "compile_result": None,
    "run_result": None,
}
TROUBLE = {
    "its own failure": ((200, json.dumps(SANDBOX_ERROR).encode()), "not run: no pod left"),
    "a failed command": ((200, ran("Error", None)), "status 'Error', return code None"),
    "no return code": ((200, ran("Finished", None)), "return code None"),
    "no result": ((200, b'{"status": "Failed", "message": "compile"}'), "not run: compile"),
    "seconds in words": ((200, ran("Finished", 0, seconds="fast")), "expected two texts and seconds"),
    "a number for a text": ((200, ran("Finished", 0, out=5)), "expected two texts and seconds"),
    "no JSON": ((200, b"busy"), "no JSON .application/json.: 'busy'"),
    "a list": ((200, b"[]"), "not run"),
    "503": ((503, b"no worker"), "503 Service Unavailable: no worker"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_retryable_errors_are_tried_again_and_then_ours(serve, name: str) -> None:
    line, words = TROUBLE[name]
    slept = []
    with remote_sandbox(serve(ALIVE, line, line, ALIVE).url, quiet=True, sleep=slept.append) as box:
        assert box.run("print(6 * 7)").stdout == "42\n" and len(slept) == 2 and box.failed == 0
    server = serve(ALIVE, line)
    with remote_sandbox(server.url, quiet=True, retries=1, sleep=slept.append) as box:
        result = box.run("print(6 * 7)")
        assert result.status == "sandbox_error" and box.failed == 1 and len(server.seen) == 3
        assert words.split(".")[0] in result.stderr and "(2 tries)" in result.stderr


def test_a_program_that_the_server_refuses_is_not_sent_again(serve) -> None:
    server = serve(ALIVE, (422, b'{"detail": [{"msg": "no such language"}]}'))
    with remote_sandbox(server.url, quiet=True) as box:
        assert "no such language" in box.run("1").stderr and len(server.seen) == 2


def test_too_many_failures_end_it(serve) -> None:
    """As with our own sandbox: with a share of 0 the first, else more than a few."""
    for share, allowed in ((0.0, 0), (0.01, 5)):
        with remote_sandbox(
            serve(ALIVE, (500, b"")).url, quiet=True, retries=0, max_failed_share=share
        ) as box:
            for _ in range(allowed + 1):
                assert box.run("1").status == "sandbox_error"
            with pytest.raises(SandboxError, match=f"{allowed + 1} of the last {allowed + 1} programs.*500"):
                box.run("1")


def test_close_answers_what_is_sent_and_what_waits(serve) -> None:
    server = serve(ALIVE, hang)
    box = remote_sandbox(server.url, quiet=True, workers=1)
    futures = [box.submit("1"), box.submit("2")]
    while len(server.seen) < 2:
        pass
    box.close()
    assert [f.result(timeout=0).status for f in futures] == ["sandbox_error"] * 2
    with pytest.raises(SandboxError, match="closed"):
        box.run("3")


# -- in the scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, words",
    [
        ((404, b'{"detail": "Not Found"}'), "404 Not Found: Not Found"),
        ((200, ran("Finished", 0, "43\n")), "is it SandboxFusion"),
        ((200, ran("Finished", 127, "", "python: not found")), "python: not found"),
    ],
)
def test_a_server_that_runs_nothing_is_one_line_at_the_start(serve, line, words: str) -> None:
    with (
        pytest.raises(UsageError, match=words) as refused,
        open_sandbox(SandboxOptions(sandbox_url=serve(line).url)),
    ):
        pass
    assert "--sandbox-url http://127.0.0.1" in str(refused.value) and "\n" not in str(refused.value)


def test_an_isolation_that_nobody_can_check_is_not_promised(serve, capsys) -> None:
    server = serve(ALIVE)
    with (
        pytest.raises(UsageError, match="--sandbox full: cannot be checked"),
        open_sandbox(SandboxOptions(sandbox="full", sandbox_url=server.url)),
    ):
        pass
    with open_sandbox(SandboxOptions(sandbox_url=server.url)) as box:
        box.run("print(6 * 7)")
        assert (box.level, box.layers) == (f"remote {server.url}", {"remote": server.url})
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"sandbox: remote {server.url}; ")
    assert last.endswith("1 programs run, 0 tries repeated, 0 programs not run")


@pytest.mark.parametrize("script", [grpo, ppo])
def test_a_run_says_in_its_configuration_where_programs_run(serve, tmp_path, monkeypatch, script) -> None:
    """Before its first question: there the run is stopped."""

    def stop(*_) -> None:
        raise KeyboardInterrupt

    url = serve(ALIVE).url
    monkeypatch.setattr(loop, "requests", stop)
    with pytest.raises(KeyboardInterrupt):
        cfg = script.Config(tasks="toy", max_tokens=2, slots=1, out=str(tmp_path), sandbox_url=url)
        script.train(cfg, World("cpu"))
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["found"]["sandbox"] == {"level": f"remote {url}", "layers": {"remote": url}}


def test_an_evaluation_may_have_both_elsewhere(serve, behind, monkeypatch, tmp_path) -> None:
    """The model behind one address, its programs behind another."""
    url, model = serve(fusion(behind)).url, serve(teacher).url
    argv = ["evaluate.py", "--url", model, "--model", "m", "--tasks", "toy_halve_sum", "--questions", "3"]
    monkeypatch.setattr(sys, "argv", [*argv, "--sandbox-url", url, "--out", str(tmp_path / "a.json")])
    config.run(evaluate.main)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["overall"]["micro"]["accuracy"] == 1 and found["sandbox"] == f"remote {url}"


def test_a_program_that_cannot_be_run_stops_an_evaluation(serve, monkeypatch, capsys) -> None:
    """A table that lacks questions is another table."""
    model, server = serve(teacher).url, serve(ALIVE, (404, b"gone"))
    argv = ["evaluate.py", "--url", model, "--model", "m", "--tasks", "toy_halve_sum", "--questions", "3"]
    monkeypatch.setattr(sys, "argv", [*argv, "--sandbox-url", server.url])
    with pytest.raises(SystemExit):
        config.run(evaluate.main)
    assert "404 Not Found: gone; expected every program to be run" in capsys.readouterr().err
