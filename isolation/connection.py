"""The trainer's connection to the template process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

from isolation import folder as folders
from isolation.result import SETUP_SECONDS

# The template imports the standard library only; the project's folder is not on a program's path.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEMPLATE = (
    "import sys; sys.path[0] = sys.argv[1]; from isolation.template import template_main; "
    "del sys.path[0]; template_main(int(sys.argv[2]))"
)
ENVIRONMENT = {  # of every program
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class TemplateProcess:
    """A template process, and the messages to and from it: lines of JSON over a socket."""

    def __init__(self, config: dict):
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-c", TEMPLATE, ROOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        self.pid, self.folder = self.process.pid, ""
        self.stream = self.socket.makefile("rb")
        self.send(config)

    def send(self, message: dict) -> None:
        """Send a message. One to a dead template is lost: `receive` tells of the death."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict | None:
        """The template's next message; None when it has died, even in the middle of a message."""
        with contextlib.suppress(OSError):
            line = self.stream.readline()
            return json.loads(line) if line.endswith(b"\n") else None

    def stop(self) -> None:
        """End the template and everything below it. `receive` in another thread returns None."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(SETUP_SECONDS)
        except subprocess.TimeoutExpired:  # stopped, or it hangs in the import of a module
            self.process.kill()
            self.process.wait()
        if self.folder:  # a template that was killed has left it
            folders.remove(self.folder)

    def close(self) -> None:
        """Close the socket, once no thread reads from it."""
        self.stream.close()
        self.socket.close()
