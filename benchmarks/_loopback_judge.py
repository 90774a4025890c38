"""A server on loopback that takes 200 ms for every judgement, and counts its requests.

    python benchmarks/_loopback_judge.py PORT DELAY_S

``GET /stats`` returns the requests so far, how many were different, and the seconds from the first request to the last
answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter


class Judge:
    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.requests: Counter[bytes] = Counter()
        self.first = self.last = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(response(self.stats()))
                    continue
                lines = head.lower().split(b"\r\n")
                length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
                body = await reader.readexactly(length)
                self.first = self.first or time.monotonic()
                self.requests[hashlib.sha256(body).digest()] += 1
                await asyncio.sleep(self.delay_s)
                writer.write(response(answer(body)))
                await writer.drain()
                self.last = time.monotonic()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def stats(self) -> dict[str, float]:
        return {
            "requests": self.requests.total(),
            "different": len(self.requests),
            "most": max(self.requests.values(), default=0),
            "seconds": self.last - self.first,
        }


def answer(body: bytes) -> dict[str, object]:
    score = 1 + len(body) % 5
    message = {"role": "assistant", "content": json.dumps({"reason": "as measured", "score": score})}
    usage = {"prompt_tokens": 400, "completion_tokens": 16, "total_tokens": 416}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "model": "loopback", "choices": [choice], "usage": usage}


def response(content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def main(port: int, delay_s: float) -> None:
    server = await asyncio.start_server(Judge(delay_s).serve, "127.0.0.1", port, limit=2**24, backlog=256)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
