"""Run peer encoders on demand: a script for an environment in which embedder is not installed.

python peer_server.py MODEL_FOLDER TEXTS_JSON

Prints the names of the peers as a JSON list. For each name read from stdin, that peer encodes all texts, and a line is
printed. Needs sentence-transformers[openvino,onnx].
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

Run = Callable[[], object]

MOST_TOKENS_ENTRY = "max_seq_length"
BATCH_ROWS = 32
"""Default of sentence-transformers."""


def load_peers(folder: str, texts: list[str]) -> dict[str, Run]:
    """Load every peer."""
    from sentence_transformers import SentenceTransformer

    peers: dict[str, Run] = {}
    for backend in ("torch", "onnx", "openvino"):
        model = SentenceTransformer(folder, device="cpu", backend=backend, model_kwargs={} if backend == "torch" else {"export": True})
        peers[f"sentence-transformers, {backend}"] = partial(model.encode, texts, show_progress_bar=False)
    peers["openvino, a plain loop"] = partial(PlainLoop(folder).encode, texts)
    return peers


class PlainLoop:
    """OpenVINO as in its documentation: default precision, throughput hint."""

    def __init__(self, folder: str) -> None:
        import openvino
        from transformers import AutoModel, AutoTokenizer

        settings = [json.loads(path.read_text()) for path in Path(folder).glob("sentence_*_config.json")]
        self.most_tokens = int(settings[0][MOST_TOKENS_ENTRY])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
        example = dict(self.tokenizer(["two words", "three more words"], padding=True, return_tensors="pt"))
        converted = openvino.convert_model(model, example_input=example)
        compiled = openvino.compile_model(converted, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
        self.queue = openvino.AsyncInferQueue(compiled)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode batches of similar lengths asynchronously; mean pooling and L2."""
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        vectors: dict[int, np.ndarray] = {}

        def finish(request: object, batch_info: tuple[list[int], np.ndarray]) -> None:
            rows, mask_BL = batch_info
            hidden_BLH = request.get_output_tensor(0).data  # type: ignore[attr-defined]
            pooled_BH = (hidden_BLH * mask_BL[..., None]).sum(axis=1) / mask_BL.sum(axis=1, keepdims=True)
            vectors.update(zip(rows, pooled_BH / np.linalg.norm(pooled_BH, axis=1, keepdims=True), strict=True))

        self.queue.set_callback(finish)
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            batch = self.tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=self.most_tokens, return_tensors="np"
            )
            self.queue.start_async(dict(batch), (rows, batch["attention_mask"]))
        self.queue.wait_all()
        return np.stack([vectors[number] for number in range(len(texts))])


def serve(peers: Mapping[str, Run], write_line: Callable[[str], None]) -> None:
    """Run the peer that each line of stdin names."""
    write_line(json.dumps(list(peers)))
    for line in sys.stdin:
        peers[line.strip()]()
        write_line("done")


def main() -> None:
    """Serve on stdout, and send what libraries print there to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    folder, texts = sys.argv[1:]
    serve(load_peers(folder, json.loads(Path(texts).read_text())), partial(print, file=answers, flush=True))


if __name__ == "__main__":
    main()
