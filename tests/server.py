"""A local HTTP server that answers as it is told, well or badly, for the tests of what is asked elsewhere."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers the requests in turn as `script` says, the last line of it for ever. A line is (status, body[,
    headers]) or a function of the handler; `seen` keeps what was asked: (path, headers, body)."""

    daemon_threads = True
    request_queue_size = 128  # connections that may come at once

    def __init__(self, script: list):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen, self.ended = script, [], threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_) -> None:
        """A client that leaves is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            line = self.server.script[min(len(self.server.seen), len(self.server.script) - 1)]
            self.server.seen.append((self.path, self.headers, self.body))
        if callable(line):
            line(self)
        else:
            self.answer(*line)

    def answer(self, status: int, body: bytes, headers: dict | None = None, announce: int = 0) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(announce or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def hang(handler: Handler) -> None:
    handler.server.ended.wait(20)


def hang_up(handler: Handler) -> None:
    handler.connection.close()


def chat(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (7, 3)) -> bytes:
    """A chat completion as servers send it."""
    message = {"role": "assistant", "content": text}
    answer = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage:
        answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return json.dumps(answer).encode()


def teacher(handler: Handler) -> None:
    """Halves and adds up whatever it is asked, by a program, and says what the program printed."""
    last = handler.body["messages"][-1]["content"]
    if last.startswith("Code Execution Results:"):
        handler.answer(200, chat(f"<<<{last.split()[-1]}>>>", usage=(30, 4)))
    else:
        numbers = last[last.index("[") : last.index("]") + 1]
        code = f"```python\nprint(sum(v // 2 for v in {numbers}))\n```"
        handler.answer(200, chat(code, usage=(20, 6)))
