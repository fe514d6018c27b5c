"""A real HTTP server of the /v1/embeddings protocol, in front of the real MiniLM."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.sweep.candidates import tokenize


@dataclass
class ApiServer:
    """Requests that the server received, and refusals left."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Status codes answered first, before any vectors."""
    most_requests: int | None = None
    """After so many the key is taken away."""
    before_refusing: threading.Event = field(default_factory=threading.Event)
    """The key is taken away only after this event, however slow the machine; set unless a test clears it."""
    refused_word: str | None = None
    """A request with a text that holds it is refused, as one that is too long would be."""
    key: str = "secret"
    delay_seconds: float = 0.0
    most_texts: int | None = None
    """A request of more texts is refused."""
    takes_dimensions: bool = True
    says_usage: bool = True

    def reset(self) -> None:
        """Forget what was asked, and refuse nothing any more."""
        self.requests.clear()
        self.refusals.clear()
        self.most_requests = self.refused_word = self.most_texts = None
        self.key, self.delay_seconds = "secret", 0.0
        self.takes_dimensions = self.says_usage = True
        self.before_refusing.set()

    def find_fault(self, body: dict[str, Any]) -> tuple[int, str] | None:
        """Return the fault of a request."""
        if self.most_requests is not None and len(self.requests) >= self.most_requests:
            assert self.before_refusing.wait(60)
            return 401, "the key was taken away"
        if self.most_texts is not None and len(body["input"]) > self.most_texts:
            return 422, f"at most {self.most_texts} inputs"
        if self.refused_word is not None and any(self.refused_word in text for text in body["input"]):
            return 400, "maximum context length exceeded"
        if not self.takes_dimensions and "dimensions" in body:
            return 400, "dimensions is not a parameter"
        return None


@contextmanager
def run_api_server(model: str) -> Iterator[ApiServer]:
    """Serve on a free port: vectors cut to `dimensions` and normalised, tokens counted."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    encoder = Encoder.load(resolved.spec, dtype="float32")
    spec = resolved.spec.model_copy(update={"chunking": False})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/embeddings" or self.headers["Authorization"] != f"Bearer {served.key}":
                self.answer(401, {"error": {"message": "not here"}})
            elif served.refusals:
                self.answer(served.refusals.pop(0), {"error": {"message": "slow down"}})
            elif fault := served.find_fault(body):
                self.answer(fault[0], {"error": {"message": fault[1]}})
            else:
                served.requests.append(body)
                time.sleep(served.delay_seconds)
                token_ids = tokenize(body["input"], resolved, spec)
                vectors = encoder.encode(token_ids, 4096).vectors_ND[:, : body.get("dimensions", 384)]
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                is_base64 = body.get("encoding_format") == "base64"
                rows = [base64.b64encode(row.tobytes()).decode() if is_base64 else row.tolist() for row in vectors]
                data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
                tokens = len(token_ids.flatten())
                usage = {"prompt_tokens": tokens, "total_tokens": tokens}
                answer = {"object": "list", "data": data[::-1], "model": body["model"]}
                self.answer(200, answer | ({"usage": usage} if served.says_usage else {}))

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = ApiServer(f"http://127.0.0.1:{server.server_port}/v1")
    served.before_refusing.set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
