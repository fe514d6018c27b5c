"""A search over codes → one whose best rows are found anew among several times as many, by the float vectors of another table.

Bits alone keep about 7 of 10 nearest rows of 384-dim vectors; of ten times as many, ordered by float vectors, 9.5 and more.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from embedder.core.errors import ConfigError
from embedder.core.quantization import Floats, cut_vectors
from embedder.core.rotation import read_rotation
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.core.units import PartName, bucket_key, shard_key
from embedder.search.exact import Hit, Target, open_dataset
from embedder.search.filter import Filter
from embedder.table.delta import read_table
from embedder.table.vectors import column_codes

RESCORED = 10
"""Rows looked at for each one wanted."""

_OF_CUTS = ("dim", "quantization", "calibration")
"""What may differ between vectors and codes made from them."""

KEY = ("shard", "doc_id", "chunk")
"""What names a row in both tables."""
Key = tuple[str, str, int]


def rescored(target: Target, location: Location) -> Target:
    """Order what a target finds by the float vectors of the table at `uri`, which holds the same rows at the same dim or a larger one."""
    state, dataset = read_table(location), open_dataset(location)
    assert state is not None, location.uri
    spec, bucket_bits = state.spec, int(state.info["bucket_bits"])
    check_match(spec, target.spec, location.uri)
    turn_WW = read_rotation(target.spec, target.table) if spec.rotation is None else None

    def find(query_W: Floats, top: int, where: Filter | None) -> list[Hit]:
        turned_W = query_W if turn_WW is None else query_W @ turn_WW
        query_D = cut_vectors(turned_W[None], target.spec.dim, target.spec.normalize and target.spec.dim < turned_W.size)[0]
        hits = target.find(query_D, RESCORED * top, where)
        vectors = read_vectors(dataset, [hit.row for hit in hits], bucket_bits)
        if len(vectors) < len(hits):
            raise ConfigError(
                f"--rescore {location.uri}: {len(hits) - len(vectors)} of {len(hits)} rows found are not in it; bring both in step"
            )
        scored = [replace(hit, score=float(vectors[key_of(hit.row)] @ query_W)) for hit in hits]
        return sorted(scored, key=lambda hit: -hit.score)[:top]

    return Target(spec, target.schema, find, location)


def check_match(spec: EmbeddingSpec, codes: EmbeddingSpec, uri: str) -> None:
    """Refuse a table whose vectors are not what the codes were made from."""
    if spec.quantization != "none":
        raise ConfigError(f"--rescore {uri}: holds {spec.quantization} codes; give the table with float vectors that they were cut from")
    if spec.dim < codes.dim:
        raise ConfigError(f"--rescore {uri}: holds {spec.dim} components, fewer than the {codes.dim} searched; give the parent of both")
    same = {name: getattr(codes, name) for name in _OF_CUTS}
    if spec.rotation is None:  # which the codes' own may follow
        same["rotation"] = codes.rotation
    differences = spec.model_copy(update=same).differences(codes)
    if differences:
        raise ConfigError(f"--rescore {uri}: is of another space ({'; '.join(differences)}); give the table that the codes were cut from")


def read_vectors(dataset: Any, rows: Sequence[dict[str, Any]], bucket_bits: int) -> dict[Key, Floats]:
    """Read the vectors of rows by their keys, from no other files than those that can hold them."""
    wanted, shards = {key_of(row) for row in rows}, {str(row["shard"]) for row in rows}
    documents = pc.field("doc_id").isin([row["doc_id"] for row in rows])
    found: dict[Key, Floats] = {}
    for fragment in dataset.get_fragments():
        if not may_hold(fragment.path, shards, bucket_bits):
            continue
        table = fragment.to_table(schema=dataset.schema, columns=[*KEY, "embedding"], filter=documents)
        if table.num_rows:
            keys = map(key_of, table.drop_columns(["embedding"]).to_pylist())
            found |= {key: vector_D for key, vector_D in zip(keys, column_codes(table["embedding"]), strict=True) if key in wanted}
    return found


def may_hold(path: str, shards: set[str], bucket_bits: int) -> bool:
    """Tell by its name whether a part can hold rows of one of the shards; which of its rows they are, a store may not know any more."""
    name = PartName.parse(path.rsplit("/", 1)[-1])
    assert name is not None, path
    return any(name.key in (shard_key(shard), bucket_key(shard, bucket_bits)) for shard in shards)


def key_of(row: dict[str, Any]) -> Key:
    """Name a row."""
    return row["shard"], row["doc_id"], row["chunk"]
