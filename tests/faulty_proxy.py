"""A small HTTP proxy that breaks what it carries: in front of a real server, by a seed, and it counts what it broke.

The Host header goes through as the client signed it, so a signature is as good behind the proxy as before it.
"""

import asyncio
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = str
"""slow_down, throttle, error, conflict: answered in the server's place; reset_before, reset_after: the connection breaks before or
after the server did its work; truncate: half of the answer's body, then a reset; delay: later; and a key of REFUSALS."""

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
_CONTROL = "/-/"
"""Paths of the proxy itself; no bucket has such a name."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults to inject: each request with this method and this in its path, with these probabilities, until so many are broken."""

    rates: Mapping[Fault, float] = field(default_factory=dict)
    seed: int = 0
    most: int | None = None
    method: str = ""
    contains: str = ""

    def draw(self, number: int, method: str, path: str) -> Fault | None:
        """Draw for a request; the same seed gives the same for the same number, counted from when the faults were set."""
        if self.method not in ("", method) or self.contains not in path:
            return None
        draw = random.Random(f"{self.seed}-{number}").random()
        for fault, rate in self.rates.items():
            if draw < rate:
                return fault
            draw -= rate
        return None


NO_FAULTS = Faults()


def break_first(count: int, fault: Fault, method: str = "", contains: str = "") -> Faults:
    """Break the first requests with this method and this in their path."""
    return Faults({fault: 1.0}, most=count, method=method, contains=contains)


@dataclass
class Counts:
    """Requests and injected faults of a proxy since its start."""

    requests: int = 0
    injected: dict[Fault, int] = field(default_factory=dict)
    commits: int = 0
    """Puts of a Delta log entry, those that were broken included."""
    written: dict[str, list[str]] = field(default_factory=dict)
    """By path: the different checksums of bodies that clients tried to put there."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    head: bytes
    body: bytes


class _Server:
    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream, self.counts = upstream, Counts()
        self.faults, self.left, self.number = NO_FAULTS, 0, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one client's requests until it leaves or is broken."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._carry(reader, writer):
                pass
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await self._read_request(reader, writer)
        if request.path.startswith(_CONTROL):
            return await _answer(writer, self._control(request))
        self._count(request)
        fault = self._choose(request)
        if fault in _BUSY or fault in REFUSALS:
            return await _answer(writer, _refusal(*(_BUSY | REFUSALS)[fault], request.method))
        if fault == "reset_before":
            return _reset(writer)
        if fault == "delay":
            await asyncio.sleep(random.Random(self.number).uniform(0, LONGEST_DELAY_SECONDS))
        head, body = await self._forward(request)
        if fault == "reset_after":
            return _reset(writer)
        if fault == "truncate":
            await _answer(writer, head + body[: len(body) // 2])
            await asyncio.sleep(0.01)  # or the reset would overtake the bytes before it
            return _reset(writer)
        return await _answer(writer, head + body)

    def _control(self, request: _Request) -> bytes:
        if request.method == "PUT":
            self.faults = Faults(**json.loads(request.body))
            self.left, self.number = sys.maxsize if self.faults.most is None else self.faults.most, 0
        body = json.dumps(asdict(self.counts)).encode()
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def _count(self, request: _Request) -> None:
        self.counts.requests += 1
        if request.method == "PUT":
            checksums = self.counts.written.setdefault(request.path.partition("?")[0], [])
            checksum = hashlib.sha256(request.body).hexdigest()
            checksums += [checksum] if checksum not in checksums else []
            self.counts.commits += "/_delta_log/" in request.path

    def _choose(self, request: _Request) -> Fault | None:
        self.number += 1
        fault = self.faults.draw(self.number, request.method, request.path) if self.left else None
        if fault:
            self.left -= 1
            self.counts.injected[fault] = self.counts.injected.get(fault, 0) + 1
        return fault

    async def _read_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = _headers(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = await _read_body(reader, headers)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        return _Request(method, unquote(target), head, body)

    async def _forward(self, request: _Request) -> tuple[bytes, bytes]:
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


async def _answer(writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(data)
    await writer.drain()
    return True


async def _serve(upstream: str) -> None:
    target = urlsplit(upstream)
    server = await asyncio.start_server(_Server((str(target.hostname), int(target.port or 80))).serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass(frozen=True, slots=True)
class FaultyProxy:
    """A proxy that runs in a process of its own: some calls of delta-rs hold this one's lock on Python while they wait for it."""

    endpoint: str

    def inject(self, faults: Faults) -> None:
        """From now on, break these requests."""
        self._ask("PUT", json.dumps(asdict(faults)))

    def counts(self) -> Counts:
        """Ask what it has seen and done so far."""
        return Counts(**self._ask("GET"))

    def injected(self, fault: Fault) -> int:
        """Ask how often it has injected a fault."""
        return self.counts().injected.get(fault, 0)

    def _ask(self, method: str, body: str | None = None) -> dict[str, Any]:
        connection = HTTPConnection(self.endpoint.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, _CONTROL, body)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


@contextmanager
def run_faulty_proxy(endpoint: str) -> Iterator[FaultyProxy]:
    """Start a proxy for this server on a free local port, and kill it at the end."""
    process = subprocess.Popen([sys.executable, __file__, endpoint], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield FaultyProxy(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
