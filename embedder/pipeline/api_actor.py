"""What asks an API for the vectors of units: one request in flight an actor, no torch, no GPU. Knows no Ray."""

import json
import logging
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.core.errors import ModelError
from embedder.core.quantization import quantize
from embedder.core.schema import Reason
from embedder.core.units import Stats
from embedder.model.api_encoder import ApiEncoded, ApiEncoder
from embedder.pipeline.actors import Actor
from embedder.pipeline.rows import Row, StageContext, from_ipc, to_ipc
from embedder.pipeline.stages import check_probe
from embedder.text.byte_estimate import slice_chunks

MOST_SHOWN = 3
"""Refusals of a unit that are logged; all are in the quarantine."""
MOST_REFUSED = 16
"""Documents of a unit, none of which is taken: beyond, it is the settings that do not fit and not the documents."""

logger = logging.getLogger("embedder")


class ApiActor(Actor):
    """Holds a connection; stands where the encoder of a model that runs here would."""

    def setup(self, context: StageContext) -> None:
        """Ask the server for a first vector, and see that it is the table's."""
        self.spec, self.encoder = context.spec, ApiEncoder(context.spec)
        self.probe = self.encoder.probe()
        check_probe(self.probe, context.probe, "the model behind the API is another one than before")

    def process(self, row: Row) -> dict[str, Any]:
        """Add the vectors of the unit's chunks. A document of which the API refuses a chunk goes to the quarantine."""
        nothing: dict[str, Any] = {"codes": None, "given_up": [], "reasons": [], "attempt": 0}
        encoded: dict[str, Any] = dict(row) | nothing | {"probe": self.probe.tobytes()}
        if row["chunks"] is None:
            return encoded
        started = time.perf_counter()
        chunks = from_ipc(row["chunks"])
        texts = slice_chunks(from_ipc(row["documents"])["text"].to_pylist(), chunks, self.spec.prompt)
        result = self.encoder.encode(texts)
        refused = self.find_refused(row["name"], chunks, result)
        keep_N = ~np.isin(chunks["document"].to_numpy(), refused)
        stats = Stats(**json.loads(row["stats"]))
        tokens = stats.tokens if result.tokens is None else result.tokens
        stats = replace(stats, tokens=tokens, padded_tokens=tokens, encode_seconds=time.perf_counter() - started)
        return encoded | {
            "chunks": to_ipc(chunks.filter(pa.array(keep_N)).drop_columns(["token_ids"])),
            "codes": quantize(result.vectors_ND[keep_N], self.spec.quantization, None).tobytes(),
            "stats": json.dumps(asdict(stats)),
            "given_up": refused,
            "reasons": [str(Reason.REFUSED_BY_API)] * len(refused),
        }

    def find_refused(self, name: str, chunks: pa.Table, result: ApiEncoded) -> list[int]:
        """Give the documents with a chunk that was refused, and say why; refusing all of many ends the run."""
        document = chunks["document"].to_numpy()
        refused = np.unique(document[sorted(result.refused)]).tolist() if result.refused else []
        reasons = list(result.refused.values())
        if len(refused) >= MOST_REFUSED and len(refused) == len(np.unique(document)):
            raise ModelError(f"{reasons[0]}; all {len(refused)} documents of a unit were refused so; lower chunking.max_tokens")
        for reason in reasons[:MOST_SHOWN]:
            logger.warning("%s: %s; the document goes to the quarantine", name, reason)
        return refused
