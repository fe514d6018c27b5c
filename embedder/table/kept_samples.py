"""Samples of the chunks of parts that a refusal left unpublished: a later run that adopts the parts measures the same chunks.

One Arrow file a run, in the table's folder. A vacuum deletes old ones.
"""

import re

import pyarrow as pa

from embedder.core.errors import StorageError
from embedder.core.storage import Location

SAMPLES_FOLDER = "_samples"
SAMPLE_FILE = re.compile(r"[0-9a-f]{12}\.arrow")


def keep_sample(sample: bytes, run_id: str, table: Location) -> None:
    """Write a run's sample, an Arrow IPC stream."""
    table.child(f"{SAMPLES_FOLDER}/{run_id}.arrow").open().write_once(sample)


def read_samples(table: Location) -> list[pa.Table]:
    """Read the samples of all runs that were refused; StorageError for a damaged file."""
    samples = []
    for found in table.child(SAMPLES_FOLDER).open().list_folder():
        store = Location(found.uri, table.options).open()
        try:
            with store.open_input() as file, pa.ipc.open_stream(file.read()) as reader:
                samples.append(reader.read_all())
        except pa.ArrowInvalid as error:
            raise StorageError(f"{store.uri}: a damaged sample of a run that was refused ({error}); delete it") from error
    return samples
