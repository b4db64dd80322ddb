"""What several test files share."""

from collections.abc import Callable, Iterator

import pytest
from server import Server

from plumbing.ranks import World
from training.loading import load_model


@pytest.fixture(scope="module")
def tiny() -> tuple:
    """The embedded model with random weights, and its tokenizer."""
    return load_model("tiny", World("cpu"), "float32")


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable]:
    """Starts servers: serve(line, line, ...). The environment's proxies, if any, are not for them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    running = []

    def start(*script) -> Server:
        running.append(Server(list(script)))
        return running[-1]

    yield start
    for server in running:
        server.ended.set()
        server.shutdown()
        server.server_close()
