"""Run peer encoders on demand: a script for an environment in which embedder is not installed.

python peer_server.py MODEL_FOLDER TEXTS_JSON

Prints the names of the peers as a JSON list. For each name read from stdin, that peer encodes all texts, its vectors are
saved beside the texts, and a line is printed. Needs sentence-transformers[openvino,onnx], datasets and fastembed.
"""

import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], np.ndarray]

MOST_TOKENS_ENTRY = "max_seq_length"
BATCH_ROWS = 32
"""Default of sentence-transformers."""
LIBRARIES = ("torch", "onnx", "openvino")
NUM_CALIBRATION_TEXTS = 64
"""Texts that OpenVINO's static int8 is calibrated on, each padded to 384 tokens."""


def load_peers(folder: str, texts: list[str], scratch: Path) -> dict[str, Run]:
    """Load every peer; the scratch folder holds converted models."""
    from sentence_transformers import SentenceTransformer

    load: Callable[..., Any] = partial(SentenceTransformer, device="cpu")
    models = {name: load(folder, backend=name, model_kwargs={} if name == "torch" else {"export": True}) for name in LIBRARIES}
    quantize(models, texts[:NUM_CALIBRATION_TEXTS], scratch)
    models["openvino"] = load(folder, backend="openvino", model_kwargs={"export": True})  # the static export changed it
    for name, kind in (("onnx", "dynamic"), ("openvino", "static")):
        (file,) = (path for path in scratch.glob(f"{name}/{name}/*int8*") if path.suffix in (".onnx", ".xml"))
        models[f"{name}, int8 ({kind})"] = load(str(scratch / name), backend=name, model_kwargs={"file_name": file.name})
    peers: dict[str, Run] = {
        f"sentence-transformers, {name}": partial(model.encode, texts, show_progress_bar=False) for name, model in models.items()
    }
    dim = models["torch"].get_sentence_embedding_dimension()
    peers["fastembed"] = partial(load_fastembed(scratch / "onnx", dim), texts)
    peers["openvino, a plain loop"] = partial(PlainLoop(folder).encode, texts)
    return peers


def quantize(models: Mapping[str, Any], texts: list[str], scratch: Path) -> None:
    """Save the ONNX and OpenVINO models with int8 ones beside them, OpenVINO's calibrated on the texts."""
    from sentence_transformers import export_dynamic_quantized_onnx_model, export_static_quantized_openvino_model

    for name in ("onnx", "openvino"):
        models[name].save_pretrained(str(scratch / name))
    export_dynamic_quantized_onnx_model(models["onnx"], choose_quantization(), str(scratch / "onnx"))
    calibration = scratch / "calibration"
    calibration.mkdir()
    (calibration / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    export_static_quantized_openvino_model(
        models["openvino"],
        None,  # its defaults
        str(scratch / "openvino"),
        dataset_name=str(calibration),
        dataset_config_name="default",
        dataset_split="train",
        column_name="text",
    )


def choose_quantization() -> str:
    """Return the name that sentence-transformers has for this processor's int8."""
    if platform.machine() in ("aarch64", "arm64"):
        return "arm64"
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512" if "avx512f" in flags else "avx2"


def load_fastembed(folder: Path, dim: int) -> Callable[[list[str]], np.ndarray]:
    """Load an exported ONNX model with mean pooling and L2."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        "local",
        PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="https://localhost/none"),
        dim=dim,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("local", specific_model_path=str(folder))
    return lambda texts: np.stack(list(model.embed(texts)))


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


def serve(peers: Mapping[str, Run], vectors_path: Path, write_line: Callable[[str], None]) -> None:
    """Run the peer that each line of stdin names, and save its vectors."""
    write_line(json.dumps(list(peers)))
    for line in sys.stdin:
        np.save(vectors_path, peers[line.strip()]())
        write_line("done")


def main() -> None:
    """Serve on stdout, and send what libraries print there to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    folder, path = sys.argv[1], Path(sys.argv[2])
    peers = load_peers(folder, json.loads(path.read_text()), path.parent)
    serve(peers, path.with_suffix(".npy"), partial(print, file=answers, flush=True))


if __name__ == "__main__":
    main()
