"""A real HTTP server of the /v1/embeddings protocol, in front of the real MiniLM."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from embedder.config import ChunkingConfig, EmbeddingConfig
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.study.candidates import tokenize


@dataclass
class ApiServer:
    """What the server was asked, and how often it has yet to refuse."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Status codes answered first, before any vectors."""


@contextmanager
def run_api_server(model: str) -> Iterator[ApiServer]:
    """Serve on a free port: vectors cut to `dimensions` and normalised, tokens counted."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    encoder = Encoder.load(resolved.spec, dtype="float32")
    spec = resolved.spec.model_copy(update={"chunking": False})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/embeddings" or self.headers["Authorization"] != "Bearer secret":
                self.answer(401, {"error": {"message": "not here"}})
            elif served.refusals:
                self.answer(served.refusals.pop(0), {"error": {"message": "slow down"}})
            else:
                served.requests.append(body)
                token_ids = tokenize(body["input"], resolved, spec)
                vectors = encoder.encode(token_ids, 4096).vectors_ND[:, : body["dimensions"]]
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                data = [{"object": "embedding", "index": index, "embedding": row.tolist()} for index, row in enumerate(vectors)]
                tokens = len(token_ids.flatten())
                usage = {"prompt_tokens": tokens, "total_tokens": tokens}
                self.answer(200, {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage})

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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
