"""An HTTP client whose answers are bounded in time and in bytes: httpx bounds the wait for each piece alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

ENDS_AT = "ostlight_ends_at"


def bounded_client(openai: Any, seconds: float, most_bytes: int) -> Any:
    """The HTTP client for ``openai.OpenAI``: an answer that takes longer in all than ``seconds`` is a timeout, and one
    of more than ``most_bytes``, or compressed unasked, a broken connection."""
    # The package that this version of openai is built on: httpx, or its successor.
    base = next(one for one in openai.DefaultHttpxClient.__mro__ if one.__name__ == "Client")
    httpx: Any = sys.modules[base.__module__.partition(".")[0]]

    class Stream(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, request: Any, stream: Any, ends_at: float) -> None:
            self._request, self._stream, self._ends_at = request, stream, ends_at

        def __iter__(self) -> Iterator[bytes]:
            received = 0
            for piece in self._stream:
                received += len(piece)
                if received > most_bytes:
                    raise httpx.ReadError(f"an answer of more than {most_bytes:,} bytes", request=self._request)
                if time.monotonic() > self._ends_at:
                    raise httpx.ReadTimeout(f"an answer that took more than {seconds:g} s", request=self._request)
                yield piece

        def close(self) -> None:
            self._stream.close()

    def begin(request: Any) -> None:
        request.extensions = {**request.extensions, ENDS_AT: time.monotonic() + seconds}

    def bound(response: Any) -> None:
        """Called with the headers, before the body is read."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.ReadError("a compressed answer, which was not asked for", request=response.request)
        response.stream = Stream(response.request, response.stream, response.request.extensions[ENDS_AT])

    return openai.DefaultHttpxClient(timeout=seconds, event_hooks={"request": [begin], "response": [bound]})
