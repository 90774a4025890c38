"""A server on loopback that speaks as much of the OpenAI protocol as a judge needs, and can misbehave."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Send:
    """What is sent back. ``cut`` halves the body, ``reset`` breaks the connection, ``delay_s`` comes first and
    ``trickle_s`` between any two bytes. A body of type ``bytes`` is sent as it is."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False
    reset: bool = False
    trickle_s: float = 0.0


def says(
    text: str | None, top: list[list[tuple[str, float]]] | None = None, tokens: Any = None, **message: Any
) -> Send:
    """An answer of the protocol. ``tokens`` and ``top``: the reply's tokens, and the likeliest ones at each."""
    finish = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    if top is not None:
        listed = [[{"token": t, "logprob": p} for t, p in place] for place in top]
        choice["logprobs"] = {
            "content": [{"token": t, "logprob": 0.0, "top_logprobs": p} for t, p in zip(tokens, listed, strict=True)]
        }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Send({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def scored(score: Any, reason: str = "so it is") -> Send:
    return says(json.dumps({"reason": reason, "score": score}))


class Loopback:
    """Answers each request by ``script(body, n)``, ``n`` counting requests from 0; keeps what it was sent.

    Attributes:
        bodies, authorizations: of the requests, in order.
        busiest: most requests ever under way at once.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Send]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.busiest = self._under_way = 0
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: dict[str, Any], authorization: str | None) -> Send:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.authorizations.append(authorization)
            self._under_way += 1
            self.busiest = max(self.busiest, self._under_way)
        try:
            send = self.script(body, number)
            time.sleep(send.delay_s)
            return send
        finally:
            with self._lock:
                self._under_way -= 1


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is part of the test."""


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            send = loopback.answer(body, self.headers.get("Authorization"))
            if send.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            content = send.body if isinstance(send.body, bytes) else json.dumps(send.body).encode()
            if send.cut:
                content = content[: len(content) // 2]
            self.send_response(send.status)
            for name, value in {"Content-Type": "application/json", **send.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if send.trickle_s:
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    time.sleep(send.trickle_s)
            else:
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
