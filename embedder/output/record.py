"""The spec of a table, read from its log as plain JSON: what a query needs to know, without a Delta reader."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from embedder.errors import StorageError
from embedder.quantization import Ranges, read_ranges
from embedder.spec import EmbeddingSpec
from embedder.storage import Options, Store

INFO_KEY = "embedder"
"""Key of the run record in a commit's metadata. The newest one holds the spec of the table's vectors."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a table's vectors are."""

    spec: EmbeddingSpec
    ranges: Ranges | None
    """Of int8."""


def read_spec(uri: str, options: Options) -> EmbeddingSpec:
    """Give the spec of the newest version."""
    return read_record(uri, options).spec


def read_record(uri: str, options: Options) -> Record:
    """Read the newest run's record, or, where records were cleaned up, what the checkpoint keeps of it: the spec."""
    log = Store(Store(uri, options).child("_delta_log"), options)
    names = sorted((found.uri for found in log.list_folder()), reverse=True)
    if not names:
        raise StorageError(f"{uri}: no table there; make one with jobs.embed")
    for name in (each for each in names if each.endswith(".json") and each.rsplit("/", 1)[-1][:20].removesuffix(".json").isdigit()):
        info = _info_of_commit(Store(name, options))
        if info is not None:
            return Record(EmbeddingSpec.model_validate(info["spec"]), read_ranges(info.get("ranges")))
    for name in (each for each in names if ".checkpoint" in each and each.endswith(".parquet")):
        with Store(name, options).open_input() as file:
            actions = pq.read_table(file, columns=["metaData"])["metaData"].drop_null().to_pylist()
        for action in actions:
            return Record(EmbeddingSpec.model_validate_json(action["description"]), None)
    raise StorageError(f"{uri}: a Delta table that embedder did not write; give one that jobs.embed made")


def _info_of_commit(commit: Store) -> dict[str, Any] | None:
    with commit.open_input() as file:
        for line in file:
            info = json.loads(line).get("commitInfo", {}).get(INFO_KEY)
            if isinstance(info, dict) and "spec" in info:
                return dict(info)
    return None
