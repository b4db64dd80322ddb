"""The HTTP teacher and evaluation by API, against a local server that misbehaves in every documented way."""

import json
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from server import Handler, Server, chat, hang, hang_up, teacher

import evaluate
from analysis import compare as comparing
from plumbing import config
from plumbing.config import UsageError
from plumbing.http import Caller, CallError
from rollout import Environment, Limits
from sandbox import Sandbox, failure
from tasks import FIRST_ONLY, get_protocol
from trajectories import endpoint as endpoints
from trajectories.endpoint import Endpoint, converse

QUESTION = [{"role": "user", "content": "6 * 7?"}]


GOOD = (200, chat("42"))


def drop_in_mid_answer(handler: Handler) -> None:
    handler.answer(200, GOOD[1][:-1], announce=len(GOOD[1]))


def drop_in_mid_chunk(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"400\r\n" + GOOD[1])


def drip(handler: Handler) -> None:
    """A byte now and then: never silent for long, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.ended.wait(0.05):
        handler.wfile.write(b" ")


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv(endpoints.KEY, raising=False)


def ask(server: Server, slept: list, **options):
    with Endpoint(server.url, "m", sleep=slept.append, **options) as endpoint:
        return endpoint.complete(QUESTION, max_tokens=64, temperature=0.6), endpoint


def test_a_request_is_what_the_interface_asks_for(serve, monkeypatch) -> None:
    monkeypatch.setenv(endpoints.KEY, "k-123\n")
    server = serve(GOOD)
    with Endpoint(server.url + "/", "m") as endpoint:
        reply = endpoint.complete(QUESTION, max_tokens=64, temperature=0.6, top_p=0.7, stop=["END"])
    assert reply == endpoints.Reply("42", "stop", 7, 3)
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer k-123"
    wanted = {"model": "m", "messages": QUESTION, "max_tokens": 64, "temperature": 0.6}
    assert body == wanted | {"top_p": 0.7, "stop": ["END"]}
    assert (endpoint.requests, endpoint.retries, endpoint.prompt_tokens, endpoint.completion_tokens) == (
        1,
        0,
        7,
        3,
    )


def test_without_a_key_none_is_sent(serve) -> None:
    server = serve(GOOD)
    ask(server, [])
    assert server.seen[0][1]["Authorization"] is None


PASSING = {
    "429": (429, b'{"error": {"message": "slow down"}}'),
    "500": (500, b"oops"),
    "503": (503, b""),
    "broken JSON": (200, GOOD[1][:-5]),
    "another content type": (200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    "empty choices": (200, b'{"choices": []}'),
    "a list": (200, b"[]"),
    "no message": (200, b'{"choices": [{"finish_reason": "stop"}]}'),
    "a text that is none": (200, b'{"choices": [{"message": {"content": 3}}]}'),
    "brackets without end": (200, b"[" * 100_000),
    "hang-up": hang_up,
    "drop in mid-answer": drop_in_mid_answer,
    "drop in mid-chunk": drop_in_mid_chunk,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(serve, name: str) -> None:
    slept = []
    reply, endpoint = ask(serve(PASSING[name], PASSING[name], GOOD), slept)
    assert reply.text == "42" and (endpoint.requests, endpoint.retries) == (1, 2)
    assert 0.5 <= slept[0] <= 1 and 1 <= slept[1] <= 2


@pytest.mark.parametrize("trouble", [hang, drip])
def test_a_server_that_does_not_end_is_left_in_time(serve, trouble) -> None:
    slept, began = [], time.monotonic()
    reply, endpoint = ask(serve(trouble, GOOD), slept, timeout=0.3)
    assert reply.text == "42" and endpoint.retries == 1
    with pytest.raises(CallError, match="no answer in time .2 tries"):
        ask(serve(trouble), slept, timeout=0.2, retries=1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("wish, seconds", [("7", 7.0), ("0", 0.0), ("2.5", 2.5)])
def test_the_servers_wish_to_wait_is_granted(serve, wish: str, seconds: float) -> None:
    slept = []
    ask(serve((429, b"", {"Retry-After": wish}), GOOD), slept)
    assert slept == [seconds]


def test_a_wish_may_be_a_date_and_nonsense_is_none(serve) -> None:
    slept = []
    at = formatdate(time.time() + 100, usegmt=True)
    ask(serve((503, b"", {"Retry-After": at}), GOOD), slept)
    assert 50 < slept.pop() <= 101
    for nonsense in ("soon", "-3", "nan"):
        ask(serve((503, b"", {"Retry-After": nonsense}), GOOD), slept)
        assert 0.5 <= slept.pop() <= 1


def test_who_asks_for_hours_is_not_waited_for(serve) -> None:
    slept = []
    with pytest.raises(CallError, match="429 Too Many Requests: no quota left$"):
        ask(serve((429, b'{"message": "no quota left"}', {"Retry-After": "86400"})), slept)
    assert slept == []


@pytest.mark.parametrize(
    "status, body, words",
    [
        (400, b'{"error": {"message": "too many\\ntokens", "code": 3}}', "400 Bad Request: too many tokens$"),
        (
            401,
            b'{"error": "who are you?"}',
            "401 Unauthorized: who are you.*no key was sent: set ABACUS_API_KEY",
        ),
        (404, b'{"detail": "no model m"}', "404 Not Found: no model m"),
        (302, b"", r"302 Found: \(no message\)"),
        (422, b'{"detail": [{"loc": "model"}]}', "422 .*loc.*model"),
    ],
)
def test_what_is_refused_for_good_is_one_line_at_once(serve, status: int, body: bytes, words: str) -> None:
    server, slept = serve((status, body)), []
    with pytest.raises(UsageError, match=words) as refused:
        ask(server, slept)
    assert refused.value.status == status and slept == [] and len(server.seen) == 1
    assert f"--url {server.url}: " in str(refused.value) and "\n" not in str(refused.value)


def test_after_the_last_try_the_reason_is_said(serve) -> None:
    server, slept = serve((500, b"out of order")), []
    with pytest.raises(CallError, match=r"500 Internal Server Error: out of order \(4 tries\)") as failed:
        ask(server, slept, retries=3)
    assert len(server.seen) == 4 and len(slept) == 3 and failed.value.status == 500


def test_a_drop_is_called_a_drop(serve) -> None:
    """Not broken JSON, for which one would look elsewhere."""
    with pytest.raises(CallError, match=f"{len(GOOD[1]) - 1} bytes read, 1 more expected"):
        ask(serve(drop_in_mid_answer), [], retries=0)


def test_pauses_double_up_to_a_minute_and_follow_the_generator() -> None:
    caller = Caller("http://localhost:1", flag="--url", rng=random.Random(3))
    again = random.Random(3)
    expected = [min(60, 2**n) * again.uniform(0.5, 1) for n in range(9)]
    assert [caller._pause(n) for n in range(9)] == expected


def test_nobody_there_is_said(serve) -> None:
    server = serve(GOOD)
    server.shutdown()
    server.server_close()
    with pytest.raises(CallError, match="refused") as failed:
        ask(server, [], retries=1)
    assert failed.value.status is None


def test_https_is_spoken_and_an_unknown_certificate_is_refused_at_once(serve, tmp_path, monkeypatch) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {cert}"
    try:
        more = ["-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*make.split(), *more], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate could be made: {error}")
    server, slept = serve(GOOD), []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url, options = f"https://localhost:{server.server_port}/v1", {"max_tokens": 64, "temperature": 0.6}
    with (
        Endpoint(url, "m", sleep=slept.append) as endpoint,
        pytest.raises(CallError, match="self-signed certificate"),
    ):
        endpoint.complete(QUESTION, **options)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Endpoint(url, "m", sleep=slept.append) as endpoint:
        assert endpoint.complete(QUESTION, **options).text == "42"
    assert slept == []


def test_the_environments_proxy_is_used(serve, monkeypatch) -> None:
    """And not for the hosts in no_proxy."""
    proxy, direct = serve(GOOD), serve(GOOD)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    ask(direct, [])
    with Endpoint("http://model.invalid/v1", "m", retries=0) as endpoint:
        assert endpoint.complete(QUESTION, max_tokens=64, temperature=0.6).text == "42"
    assert [path for path, _, _ in proxy.seen] == ["http://model.invalid/v1/chat/completions"]
    assert len(direct.seen) == 1


def test_a_redirect_is_not_followed(serve, monkeypatch) -> None:
    """It would carry the key to another address."""
    monkeypatch.setenv(endpoints.KEY, "k-123")
    other = serve(GOOD)
    with pytest.raises(CallError, match="307 Temporary Redirect"):
        ask(serve((307, b"", {"Location": other.url})), [])
    assert other.seen == []


# -- the key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 500, 200])
def test_the_key_is_in_no_message(serve, monkeypatch, status: int) -> None:
    """Also where the server repeats it, and where it would be cut in two at the message's end."""
    key = "sk-" + "abcdef" * 80
    monkeypatch.setenv(endpoints.KEY, key)
    said = b'{"error": {"message": "%s wrong key %s' % (b"x" * 60, key.encode())
    with pytest.raises(CallError) as failed:
        ask(serve((status, said)), [], retries=1)
    assert "abcdef" not in str(failed.value) and "[key]" in str(failed.value)
    if status == 401:
        assert "the key was refused" in str(failed.value)


@pytest.mark.parametrize("key", ["two words", "line\nline", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(monkeypatch, key: str) -> None:
    monkeypatch.setenv(endpoints.KEY, key)
    with pytest.raises(UsageError, match="ABACUS_API_KEY") as refused:
        Endpoint("http://localhost:1/v1", "m")
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    "url, words",
    [
        ("localhost:8000/v1", "expected an address like"),
        ("http://", "expected an address like"),
        ("ftp://a/v1", "expected an address like"),
        ("http://a:99999/v1", "expected an address like"),
        ("http://a..b/v1", "expected an address like"),
        ("http://a/v1?x=1", "expected an address like"),
        ("http://a/v 1", "expected an address like"),
        ("http://a/v1/chat/completions", "without /chat/completions"),
        ("https://me:secret@a/v1", "user name or password"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        Endpoint(url, "m")
    assert "secret" not in str(refused.value)


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [None, (7, None), ("7", "3")])
def test_tokens_that_are_not_counted_are_unknown(serve, usage) -> None:
    reply, endpoint = ask(serve((200, chat("42", usage=usage))), [])
    assert reply.completion_tokens is None and endpoint.uncounted == 1
    assert "1 answers came without a count, theirs are unknown" in endpoint.cost()


def test_a_thinker_out_of_tokens_has_said_nothing(serve) -> None:
    reply, _ = ask(serve((200, chat(None, finish="length"))), [])
    assert (reply.text, reply.finish) == ("", "length")


def test_many_at_once_and_all_counted(serve) -> None:
    """Sixteen conversations meet at the server at the same time, and no count is lost."""
    meeting = threading.Barrier(16)

    def together(handler: Handler) -> None:
        meeting.wait(20)
        handler.answer(*GOOD)

    with Endpoint(serve(together).url, "m", workers=16) as endpoint:
        options = {"max_tokens": 64, "temperature": 0.0}
        futures = [endpoint.submit(endpoint.complete, QUESTION, **options) for _ in range(48)]
        assert [f.result().text for f in futures] == ["42"] * 48
        assert (endpoint.requests, endpoint.prompt_tokens, endpoint.completion_tokens) == (48, 336, 144)


def test_close_ends_what_hangs_and_what_waits(serve) -> None:
    server = serve(hang)
    endpoint = Endpoint(server.url, "m", workers=1)
    options = {"max_tokens": 64, "temperature": 0.0}
    first, second = (endpoint.submit(endpoint.complete, QUESTION, **options) for _ in range(2))
    while not server.seen:
        time.sleep(0.01)
    began = time.monotonic()
    endpoint.close()
    assert time.monotonic() - began < 5
    with pytest.raises(CallError, match="given up"):
        first.result(timeout=0)
    assert second.cancelled() and len(server.seen) == 1


# -- conversations ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(require="none", quiet=True, workers=1) as box:
        yield box


def talk(server: Server, sandbox: Sandbox | None, protocol: str = "r1ci", **limits):
    with Endpoint(server.url, "m", sleep=lambda _: None) as endpoint:
        limits = Limits(**{"max_tokens": 100, **limits})
        environment = Environment(None, get_protocol(protocol), sandbox, limits)
        return converse(endpoint, "6 * 7?", environment, temperature=0.6)


BLOCK = "Try.\n```python\nprint(6 * 7)\n```"


def test_a_program_is_run_and_its_output_comes_back(serve, sandbox) -> None:
    """What the model makes up behind its block is cut off; what comes back is what the program printed."""
    server = serve((200, chat(BLOCK + "\nCode Execution Results:\n43\n<<<43>>>")), (200, chat("So <<<42>>>")))
    exchange = talk(server, sandbox)
    assert exchange.messages == [
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": BLOCK},
        {"role": "tool", "content": "42\n"},
        {"role": "assistant", "content": "So <<<42>>>"},
    ]
    assert exchange.finish == "stop" and [c.code for c in exchange.calls] == ["print(6 * 7)"]
    assert exchange.text == BLOCK + "\nSo <<<42>>>"
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (14, 6)
    first, second = (body for _, _, body in server.seen)
    assert first["messages"] == [
        {"role": "user", "content": get_protocol("r1ci").opening("6 * 7?")[1]},
    ]
    assert first["max_tokens"] == 100 and second["max_tokens"] == 97
    assert first["stop"] == ["Code Execution Results:"]
    assert second["messages"][1:] == [
        {"role": "assistant", "content": BLOCK},
        {"role": "user", "content": "Code Execution Results:\n42"},
    ]


def test_a_second_block_in_a_message_is_answered_by_a_notice(serve, sandbox) -> None:
    server = serve((200, chat(BLOCK + "\nAnd:\n" + BLOCK)), (200, chat("So <<<42>>>")))
    exchange = talk(server, sandbox)
    said, heard = (m["content"] for m in server.seen[1][2]["messages"][1:])
    assert said == BLOCK and heard == f"Code Execution Results:\n42\n{FIRST_ONLY}"
    assert len(exchange.calls) == 1 and exchange.messages[2]["content"] == "42\n"


def test_retool_has_its_own_marks(serve, sandbox) -> None:
    block = "<code>\n```python\n1 / 0\n```\n</code>"
    answer = "<answer>\n\\boxed{7}\n</answer>"
    server = serve((200, chat(block)), (200, chat(answer)))
    exchange = talk(server, sandbox, "retool")
    assert exchange.calls[0].code == "1 / 0" and exchange.calls[0].result.status == "error"
    shown = server.seen[1][2]["messages"][-1]["content"]
    assert shown.startswith("<interpreter>\nTraceback") and shown.endswith("division by zero\n</interpreter>")


def test_in_words_alone_code_is_not_run(serve) -> None:
    server = serve((200, chat(BLOCK + "\n<<<42>>>")))
    exchange = talk(server, None, "text")
    assert exchange.calls == [] and exchange.finish == "stop" and len(exchange.messages) == 2
    assert "stop" not in server.seen[0][2]


def test_the_limit_of_programs_ends_the_conversation(serve, sandbox) -> None:
    exchange = talk(serve((200, chat(BLOCK))), sandbox, max_calls=1)
    assert [m["role"] for m in exchange.messages] == ["user", "assistant", "tool", "assistant"]
    assert exchange.finish == "calls" and len(exchange.calls) == 1


def test_the_limit_of_tokens_is_for_all_messages_together(serve, sandbox) -> None:
    server = serve((200, chat(BLOCK, usage=(5, 60))))
    exchange = talk(server, sandbox)
    assert exchange.finish == "length" and [b["max_tokens"] for _, _, b in server.seen] == [100, 40]
    unknown = talk(serve((200, chat(BLOCK, usage=None)), GOOD), sandbox)
    assert unknown.finish == "stop" and unknown.completion_tokens is None
    cut = talk(serve((200, chat("```python\nprint(", finish="length"))), sandbox)
    assert cut.finish == "length" and cut.calls == []


def test_a_program_that_we_failed_to_run_ends_it_and_is_shown_to_nobody(serve) -> None:
    class Broken:
        def run(self, code: str, timeout: float):
            return failure("out of order")

    server = serve((200, chat(BLOCK)))
    exchange = talk(server, Broken())
    assert exchange.finish == "sandbox" and exchange.failed.stderr == "out of order"
    assert exchange.calls == [] and len(server.seen) == 1 and len(exchange.messages) == 2


def test_a_protocol_that_asks_after_the_answer_is_refused(serve) -> None:
    with pytest.raises(UsageError, match="guided: it asks in the midst of an answer"):
        talk(serve(GOOD), None, "guided")


# -- evaluation ------------------------------------------------------------------------------------


def evaluated(server: Server, monkeypatch, out: Path, *options: str) -> dict:
    """What evaluate.py writes for two tasks with three questions each."""
    argv = ["evaluate.py", "--url", server.url, "--model", "m", "--tasks", "toy_halve_sum,toy_under_smallest"]
    argv += [
        "--questions",
        "6",
        "--sandbox",
        "none",
        "--preload",
        "",
        "--slots",
        "3",
        "--out",
        str(out),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", argv)
    config.run(evaluate.main)
    return json.loads(out.read_text())


def test_a_model_behind_http_gets_its_row(serve, monkeypatch, tmp_path, capsys) -> None:
    """All of one task right, all of the other wrong; the tokens are those that the server counts."""
    found = evaluated(serve(teacher), monkeypatch, tmp_path / "a.json", "--samples", "2")
    tasks, row = found["tasks"], found["overall"]["micro"]
    assert (tasks["toy_halve_sum"]["accuracy"], tasks["toy_under_smallest"]["accuracy"]) == (1, 0)
    assert (row["episodes"], row["calls"], row["code_ratio"], row["response_tokens"]) == (12, 1, 1, 10)
    assert row["tool_tokens"] is None and row["first_call"] is None
    printed = capsys.readouterr().out
    assert "24 requests answered, 0 tries repeated; 600 tokens read and 120 written" in printed
    line = next(x for x in printed.split("\n") if x.startswith("all questions"))
    assert line.split()[2:] == ["6", "0.500", "+-0.224", "0.500", "1.00", "1.00", "0.00", "10.0"]
    compared = comparing.compare([str(tmp_path / "a.json")] * 2)
    assert "+0.000" in compared


def test_in_words_alone_and_without_counts_the_cell_stays_empty(serve, monkeypatch, tmp_path, capsys) -> None:
    server = serve((200, chat("<<<1>>>", usage=None)))
    found = evaluated(server, monkeypatch, tmp_path / "a.json", "--protocol", "text")
    row = found["overall"]["micro"]
    assert row["response_tokens"] is None and row["calls"] == 0 and len(server.seen) == 6
    printed = capsys.readouterr().out
    line = next(x for x in printed.split("\n") if x.startswith("all questions"))
    assert line.split()[2:] == ["6", "0.000", "+-0.000", "0.00", "0.00", "0.00"]
    assert "6 answers came without a count" in printed


@pytest.mark.parametrize(
    "options, words",
    [
        (["--dtype", "float32"], "--dtype float32: has no effect with --url"),
        (["--model", "tiny"], "expected --model NAME as well"),
        (["--protocol", "guided"], "it asks in the midst of an answer"),
    ],
)
def test_what_an_address_has_no_use_for_is_refused(
    serve, monkeypatch, tmp_path, capsys, options, words
) -> None:
    server = serve(GOOD)
    with pytest.raises(SystemExit):
        evaluated(server, monkeypatch, tmp_path / "a.json", *options)
    assert words in capsys.readouterr().err and server.seen == []


def test_an_evaluation_that_broke_off_goes_on_without_asking_again(
    serve, monkeypatch, tmp_path, capsys
) -> None:
    gone = (404, b'{"error": {"message": "no model m"}}')
    server = serve((200, chat("<<<1>>>")), gone)
    with pytest.raises(SystemExit) as leave:
        evaluated(server, monkeypatch, tmp_path / "a.json", "--slots", "1")
    assert leave.value.code == 2 and [f.name for f in tmp_path.iterdir()] == ["a.json.part"]
    assert f"--url {server.url}: 404 Not Found: no model m" in capsys.readouterr().err
    server.script[:] = [(200, chat("<<<2>>>"))]
    asked = len(server.seen)
    found = evaluated(server, monkeypatch, tmp_path / "a.json", "--slots", "1")
    assert len(server.seen) - asked == 5 and [f.name for f in tmp_path.iterdir()] == ["a.json"]
    answers = [answer for question in found["questions"] for answer in question["answers"]]
    assert sorted(answers) == ["1", "2", "2", "2", "2", "2"]


def refused(text: str | None, finish: str = "stop", refusal: str | None = None) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


KEPT_BACK = {
    "a filter": refused(None, "content_filter"),
    "a filter in mid-answer": refused("The answer is <<<", "content_filter"),
    "a refusal": refused(None, refusal="I cannot help with that."),
    "another word": refused("", "SAFETY"),
    "a status": (400, b'{"error": {"code": "content_filter", "message": "filtered"}}'),
    "too long": (413, b'{"detail": "too long"}'),
}


@pytest.mark.parametrize("name", KEPT_BACK)
def test_a_refused_question_costs_no_other_and_is_no_wrong_answer(
    serve, monkeypatch, tmp_path, capsys, name: str
) -> None:
    server = serve((200, chat("<<<1>>>")), KEPT_BACK[name], (200, chat("<<<1>>>")))
    found = evaluated(server, monkeypatch, tmp_path / "a.json", "--slots", "1")
    assert sorted(finish for q in found["questions"] for finish in q["finish"]) == ["refused"] + ["stop"] * 5
    assert "1 of 6 answers were refused or filtered by the server" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, text",
    [
        ([{"type": "text", "text": "4"}, {"type": "text", "text": "2"}], "42"),
        ([{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "42"}], "42"),
        ([{"type": "output_text", "text": "42"}], "42"),
        ([], ""),
        (None, ""),
    ],
)  # fmt: skip
def test_an_answer_in_parts_is_joined(content, text: str) -> None:
    reply = endpoints.read_reply({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})
    assert (reply.text, reply.finish) == (text, "stop")


def test_fields_that_a_server_refuses_are_renamed_or_left_out(serve) -> None:
    server = serve(GOOD)
    fields = "max_tokens=max_completion_tokens, temperature=,stop="
    with Endpoint(server.url, "m", fields=fields) as endpoint:
        endpoint.complete(QUESTION, max_tokens=64, temperature=0.6, top_p=0.7, stop=["END"])
    body = server.seen[0][2]
    assert body == {"model": "m", "messages": QUESTION, "max_completion_tokens": 64, "top_p": 0.7}
    for wrong in ("model=x", "stop", "stop=a b"):
        with pytest.raises(UsageError, match="--url-fields .*: expected FIELD=NAME or FIELD=, of max_tokens"):
            Endpoint(server.url, "m", fields=wrong)


@pytest.mark.parametrize(
    "path, answer, words",
    [
        ("", (404, b"not found"), "; most servers answer below /v1: --url http://127.0.0.1:{port}/v1"),
        ("/api", (405, b""), "/api/v1"),
        ("/v1", (404, b'{"error": {"message": "no model m"}}'), "no model m"),
        ("/v1", (400, b'{"error": {"message": "Unsupported: \'max_tokens\'"}}'), "--url-fields max_tokens="),
        ("/v1", (422, b'{"detail": "temperature must be 1"}'), "--url-fields temperature="),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(serve, path: str, answer: tuple, words: str) -> None:
    server = serve(answer)
    url = server.url.removesuffix("/v1") + path
    with Endpoint(url, "m") as endpoint, pytest.raises(CallError) as error:
        endpoint.complete(QUESTION, max_tokens=64, temperature=0.6)
    said = str(error.value)
    assert said.endswith(words.format(port=server.server_port)) or words in said
    assert ("below /v1" in said) == (path != "/v1")
