"""What several test files share."""

from collections.abc import Callable, Iterator

import pytest
from server import Server


@pytest.fixture
def serve() -> Iterator[Callable]:
    """Starts servers: serve(line, line, ...)."""
    running = []

    def start(*script) -> Server:
        running.append(Server(list(script)))
        return running[-1]

    yield start
    for server in running:
        server.ended.set()
        server.shutdown()
        server.server_close()
