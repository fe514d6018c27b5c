"""A small HTTP proxy that breaks what it carries: in front of a real server, by a seed, and it counts what it broke.

The Host header goes through as the client signed it, so a signature is as good behind the proxy as before it.
"""

import asyncio
import hashlib
import random
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

Fault = str
"""slow_down, throttle, error, conflict: answered in the server's place; reset_before, reset_after: the connection breaks before or after the
server did its work; truncate: half of the answer's body, then a reset; delay: later; and a key of REFUSALS."""

_BUSY: Mapping[Fault, tuple[str, str]] = {
    "slow_down": ("503 Slow Down", "SlowDown"),
    "throttle": ("429 Too Many Requests", "TooManyRequests"),
    "error": ("500 Internal Server Error", "InternalError"),
    "conflict": ("409 Conflict", "ConditionalRequestConflict"),
}
REFUSALS: Mapping[Fault, tuple[str, str]] = {
    "forbidden": ("403 Forbidden", "AccessDenied"),
    "no_bucket": ("404 Not Found", "NoSuchBucket"),
    "wrong_region": ("301 Moved Permanently", "PermanentRedirect"),
}
LONGEST_DELAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for; `number` counts all requests of the proxy from 0."""

    number: int
    method: str
    path: str
    head: bytes
    body: bytes


Decide = Callable[[Request], Fault | None]


def no_faults(request: Request) -> Fault | None:
    """Break nothing."""
    return None


def draw_faults(seed: int, rates: Mapping[Fault, float]) -> Decide:
    """Break each request with these probabilities; the same seed draws the same for the same request number."""

    def decide(request: Request) -> Fault | None:
        draw = random.Random(f"{seed}-{request.number}").random()
        for fault, rate in rates.items():
            if draw < rate:
                return fault
            draw -= rate
        return None

    return decide


def break_first(count: int, fault: Fault, method: str = "", contains: str = "") -> Decide:
    """Break the first requests with this method and this in their path."""
    left = [count]

    def decide(request: Request) -> Fault | None:
        if left[0] and method in ("", request.method) and contains in request.path:
            left[0] -= 1
            return fault
        return None

    return decide


@dataclass
class FaultyProxy:
    """A running proxy: `decide` may be changed at any time; the counts grow."""

    endpoint: str
    upstream: tuple[str, int]
    decide: Decide = no_faults
    requests: int = 0
    injected: Counter[Fault] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    written: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By path: checksums of the bodies that clients tried to put there."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one client's requests until it leaves or is broken."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._carry(reader, writer):
                pass
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await self._read_request(reader, writer)
        fault = self.decide(request)
        if fault:
            self.injected[fault] += 1
        if fault in _BUSY or fault in REFUSALS:
            writer.write(_refusal(*(_BUSY | REFUSALS)[fault], request.method))
            await writer.drain()
            return True
        if fault == "reset_before":
            return _reset(writer)
        if fault == "delay":
            await asyncio.sleep(random.Random(request.number).uniform(0, LONGEST_DELAY_SECONDS))
        head, body = await self._forward(request)
        if fault == "reset_after":
            return _reset(writer)
        if fault == "truncate":
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.01)  # or the reset would overtake the bytes before it
            return _reset(writer)
        writer.write(head + body)
        await writer.drain()
        return True

    async def _read_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = _headers(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = await _read_body(reader, headers)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        request = Request(self.requests, method, unquote(target), head, body)
        self.requests += 1
        self.methods[method] += 1
        if method == "PUT":
            self.written[request.path.partition("?")[0]].add(hashlib.sha256(body).hexdigest())
        return request

    async def _forward(self, request: Request) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection(*self.upstream, limit=1 << 20)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            empty = request.method == "HEAD" or status in (204, 304)
            return head, b"" if empty else await _read_body(reader, _headers(head))
        finally:
            writer.close()


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """Read a body as it is on the wire, chunk marks included."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    pieces = []
    while True:
        size = await reader.readuntil(b"\r\n")
        pieces += [size, await reader.readexactly(int(size.split(b";")[0], 16) + 2)]
        if int(size.split(b";")[0], 16) == 0:
            return b"".join(pieces)


def _headers(head: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _refusal(status: str, code: str, method: str) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made up by a test</Message></Error>'.encode()
    region = "x-amz-bucket-region: eu-west-1\r\n" if code == "PermanentRedirect" else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n{region}Content-Length: {len(body)}\r\n\r\n".encode()
    return head if method == "HEAD" else head + body


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break the connection with a reset, not with an orderly end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


@contextmanager
def run_faulty_proxy(endpoint: str) -> Iterator[FaultyProxy]:
    """Start a proxy for this server on a free local port, in a thread of its own."""
    target = urlsplit(endpoint)
    assert target.hostname and target.port, endpoint
    loop = asyncio.new_event_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = FaultyProxy(f"http://127.0.0.1:{listener.getsockname()[1]}", (target.hostname, target.port))
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, sock=listener, limit=1 << 20))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    serving = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
