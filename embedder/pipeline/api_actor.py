"""Encodes units through an embeddings API: one request in flight for each actor, without torch or a GPU. Does not import Ray."""

import logging
import time
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from embedder.core.context import read_contexts
from embedder.core.errors import ModelError
from embedder.core.quantization import quantize
from embedder.core.schema import Reason
from embedder.core.units import Stats
from embedder.model.api_encoder import ApiEncoded, ApiEncoder
from embedder.pipeline.actors import UnitActor, count_copies
from embedder.pipeline.rows import EncodedUnit, PreparedUnit, StageContext, from_ipc, to_ipc
from embedder.pipeline.stages import check_probe
from embedder.text.byte_estimate import make_chunker
from embedder.text.chunking import drop_tokenless

MOST_SHOWN = 3
"""Refusals of a unit that are logged; the quarantine holds all."""
MOST_REFUSED = 16
"""If all documents of a unit are refused, and there are at least this many, the settings are at fault."""

logger = logging.getLogger("embedder")


class ApiActor(UnitActor):
    """Holds a connection, in place of a local encoder."""

    def setup(self, context: StageContext) -> None:
        """Request the probe vector, and check that it is the table's."""
        self.spec, self.encoder = context.spec, ApiEncoder(context.spec)
        self.chunker = make_chunker(context.tokenizer_json, context.spec)
        self.probe = self.encoder.probe()
        check_probe(self.probe, context.probe, "the model behind the API is another one than before")

    def encode_unit(self, name: str, unit: PreparedUnit) -> EncodedUnit:
        """Return the unit with its vectors. If the API refuses a chunk, its document is quarantined."""
        started = time.perf_counter()
        chunks, tokenless = drop_tokenless(from_ipc(unit["chunks"]))
        documents = from_ipc(unit["documents"])
        texts = self.chunker.write_chunks(documents["text"].to_pylist(), chunks, read_contexts(documents, self.spec))
        first = {text: row for row, text in reversed([*enumerate(texts)])}
        distinct = sorted(first.values())
        place_N = np.searchsorted(distinct, [first[text] for text in texts])
        result = self.encoder.encode([texts[row] for row in distinct]).spread(place_N)
        refused = find_refused(name, chunks, result)
        keep_N = ~np.isin(chunks["document"].to_numpy(), refused)
        num_tokens = chunks["num_tokens"].to_numpy()
        stats = count_copies(Stats(**unit["stats"]), len(texts) - len(distinct), (num_tokens.sum() - num_tokens[distinct].sum()).item())
        tokens = stats.tokens if result.tokens is None else result.tokens
        stats = replace(stats, tokens=tokens, padded_tokens=tokens, encode_seconds=time.perf_counter() - started)
        return {
            **unit,
            "chunks": to_ipc(chunks.filter(pa.array(keep_N)).drop_columns(["token_ids"])),
            "codes": quantize(result.vectors_ND[keep_N], self.spec.quantization, None).tobytes(),
            "sample": b"",
            "stats": asdict(stats),
            "rejected": [*tokenless, *refused],
            "reasons": [str(Reason.NO_TOKENS)] * len(tokenless) + [str(Reason.REFUSED_BY_API)] * len(refused),
            "attempt": 0,
        }


def find_refused(name: str, chunks: pa.Table, result: ApiEncoded) -> list[int]:
    """Return the documents with a refused chunk, and log why; ModelError if all of many are refused."""
    document = chunks["document"].to_numpy()
    refused = np.unique(document[sorted(result.refused)]).tolist() if result.refused else []
    reasons = list(result.refused.values())
    if len(refused) >= MOST_REFUSED and len(refused) == len(np.unique(document)):
        raise ModelError(f"{reasons[0]}; all {len(refused)} documents of a unit were refused so; lower chunking.max_tokens")
    for reason in reasons[:MOST_SHOWN]:
        logger.warning("%s: %s; the document goes to the quarantine", name, reason)
    return refused
