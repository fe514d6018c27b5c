"""The pipeline without Ray: the pool for a cluster's nodes, and the encoder actor after a unit killed its worker."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from embedder.config.compute import Backend, ComputeConfig
from embedder.core.errors import ClusterError, ConfigError, ModelError
from embedder.core.storage import Location
from embedder.core.units import Stats
from embedder.model.encoder import Encoder
from embedder.model.results import Encoded
from embedder.observe.metrics import Sample
from embedder.pipeline.actors import BusyClock, Concurrency, choose_token_budget
from embedder.pipeline.cluster import Reporter, start_ray
from embedder.pipeline.graph import EncoderActor, actor_options, iterate
from embedder.pipeline.pool import Pool, choose_units, lay_out_pool
from embedder.pipeline.rows import EncodedUnit, PreparedRow, from_ipc, to_ipc
from embedder.pipeline.stages import check_probe
from embedder.table.attempts import Attempts


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run beside these has attempts that a pause could let end."""
    monkeypatch.setattr("embedder.table.attempts.PAUSE_SECONDS", 0.0)


class DeathError(Exception):
    """Stands for the death of the worker."""


class DoomedActor(EncoderActor):
    """Dies of certain documents."""

    def __init__(self, folder: Location, deadly: set[int]) -> None:
        self.folder, self.deadly, self.max_attempts, self.token_budget = folder, deadly, 2, 64
        self.encoder = type("Encoder", (), {"dim": 1})

    def encode(self, chunks: pa.Table) -> Encoded:
        if self.deadly.intersection(chunks["document"].to_pylist()):
            raise DeathError
        return Encoded(chunks["document"].to_numpy().astype(np.float32)[:, None], chunks.num_rows, 64)


def set_up(actor: DoomedActor, calls: int = 1) -> DoomedActor:
    actor.concurrency, actor.clock, actor.attempts = Concurrency(calls), BusyClock(), Attempts.listed(actor.folder)
    actor.probe, actor.spec, actor.ranges, actor.context = np.zeros(1, np.float32), SimpleNamespace(quantization="none"), None, None
    return actor


def encode(actor: DoomedActor, documents: list[int], name: str = "unit", tokenless: Sequence[int] = ()) -> EncodedUnit:
    """Send a unit of these documents, one chunk each, through an actor."""
    token_ids = [[] if document in tokenless else [1] for document in documents]
    columns = {"document": pa.array(documents, pa.int32()), "token_ids": pa.array(token_ids, pa.list_(pa.int32()))}
    chunks = pa.table(columns | {"num_tokens": pa.array(list(map(len, token_ids)), pa.int32())})
    row: PreparedRow = {"key": "key", "name": name, "error": None, "broken": [], "unit": {
        "documents": b"", "chunks": to_ipc(chunks), "reused": b"", "quarantined": b"", "stats": asdict(Stats())}}  # fmt: skip
    unit = actor(row)["unit"]
    assert unit is not None
    return unit


@pytest.fixture
def chunks() -> pa.Table:
    """Chunks of 40 documents, one to three each."""
    return pa.table({"document": pa.array(np.repeat(np.arange(40, dtype=np.int32), np.arange(40) % 3 + 1))})


def encode_over_deaths(folder: Location, deadly: set[int], chunks: pa.Table) -> tuple[pa.Table, Encoded, list[int]]:
    while True:
        try:
            return DoomedActor(folder, deadly).encode_carefully("unit", chunks)
        except DeathError:
            continue


def test_chunks_and_vectors_stay_together_when_documents_are_quarantined(tmp_path: Path, chunks: pa.Table) -> None:
    kept, encoded, poison_documents = encode_over_deaths(Location(str(tmp_path)), {0, 17}, chunks)
    assert poison_documents == [0, 17]
    assert kept["document"].to_pylist() == [number for number in chunks["document"].to_pylist() if number not in (0, 17)]
    assert encoded.vectors_ND[:, 0].tolist() == kept["document"].to_pylist()
    assert encoded.padded_tokens == kept.num_rows


@pytest.mark.slow
def test_a_machine_on_which_every_document_kills_the_encoder_ends_the_run(tmp_path: Path, chunks: pa.Table) -> None:
    with pytest.raises(ModelError, match=r"died on each of 4 documents of one unit \(unit\).*the machine or its software is at fault"):
        encode_over_deaths(Location(str(tmp_path)), set(range(40)), chunks)


def test_a_careful_attempt_leaves_marks_of_poison_documents_only(tmp_path: Path, chunks: pa.Table) -> None:
    folder = Location(str(tmp_path))
    encode_over_deaths(folder, {5}, chunks)
    assert Attempts.listed(folder).failed("unit.5-6") == 2
    assert Attempts.listed(folder).failed("unit.6-7") == 0


@pytest.mark.parametrize(
    ("device", "actors", "gigabytes", "rows", "units"),
    [("cuda", 32, 100_000, 8192, 1), ("cuda", 64, 1_000, 8192, 4), ("cuda", 1_000, 100_000, 8192, 16), ("cuda", 64, 10, 8192, 1),
     ("cuda", 128, 600, 8192, 8), ("cuda", 128, 600, 1000, 8), ("cuda", 128, 600, 16_384, 4), ("cuda", 128, 600, 65_536, 1),
     ("cuda", 256, 600, 8192, 12), ("cuda", 256, 0, 8192, 4), ("cpu", 256, 100_000, 8192, 1)],
)  # fmt: skip
def test_a_row_holds_several_units_for_many_gpus_with_much_to_do(device: str, actors: int, gigabytes: int, rows: int, units: int) -> None:
    pool = lay_out_pool(ComputeConfig(device=device, actors=actors), [{"CPU": 8.0, "GPU": 8.0}])
    assert choose_units(pool, gigabytes << 30, rows) == units


HEAD = {"memory": 1e9}


def test_a_head_without_cpus_does_not_shrink_the_workers() -> None:
    pool = lay_out_pool(ComputeConfig(), [HEAD, {"CPU": 8.0}, {"CPU": 8.0}])
    assert (pool.device, pool.actors, pool.num_cpus, pool.threads, pool.reader_cpus) == ("cpu", (2, 2), 6.5, 8, 0.99)


@pytest.mark.parametrize("cpus", [1.0, 2.0, 3.0, 4.0, 16.0])
def test_no_node_has_room_for_a_second_actor_in_place_of_its_readers(cpus: float) -> None:
    pool = lay_out_pool(ComputeConfig(), [HEAD, {"CPU": cpus}, {"CPU": cpus}])
    assert 2 * pool.num_cpus > cpus
    assert pool.num_cpus + pool.reader_cpus + pool.reader_cpus / 4 <= cpus


def test_gpus_of_a_growing_cluster_are_requested() -> None:
    pool = lay_out_pool(ComputeConfig(device="cuda", actors=(1, 8)), [HEAD])
    assert (pool.device, pool.actors, pool.num_gpus, pool.num_cpus, pool.reader_cpus) == ("cuda", (1, 8), 1.0, 1.0, 0.99)


@pytest.mark.parametrize(("asked", "num_gpus", "initial"), [(None, 4.0, 4), ((1, 8), 4.0, 4), ((2, 2), 4.0, 2), ((1, 8), 0.0, 1)])
def test_every_present_gpu_gets_its_actor_at_once(asked: tuple[int, int] | None, num_gpus: float, initial: int) -> None:
    pool = lay_out_pool(ComputeConfig(device="cuda", actors=asked), [HEAD, {"CPU": 16.0, "GPU": num_gpus}])
    assert pool.initial == initial
    assert actor_options(pool)["compute"].initial_size == initial


def test_an_actor_takes_two_units_at_a_time_on_a_gpu_and_one_on_a_cpu() -> None:
    on_gpu, on_cpu = (lay_out_pool(ComputeConfig(device=device), [HEAD, {"CPU": 16.0, "GPU": 1.0}]) for device in ("cuda", "cpu"))
    assert (on_gpu.calls, on_cpu.calls) == (2, 1)
    asked = actor_options(on_gpu)["compute"]
    assert (asked.max_concurrent_calls_per_actor, asked.enable_true_multi_threading) == (2, True)


@pytest.mark.parametrize(
    ("asked", "source_bytes", "backend"), [("auto", 249_999, "torch"), ("auto", 250_000, "auto"), ("openvino", 1, "openvino")]
)
def test_a_model_is_not_converted_for_a_corpus_too_small_for_it_to_pay(asked: Backend, source_bytes: int, backend: Backend) -> None:
    assert lay_out_pool(ComputeConfig(backend=asked), [{"CPU": 2.0}]).suited_to(source_bytes).backend == backend


def test_a_unit_that_killed_its_worker_too_often_is_split_while_no_other_is_encoded(tmp_path: Path) -> None:
    folder, alone = Location(str(tmp_path)), []

    class Watched(DoomedActor):
        def encode(self, chunks: pa.Table) -> Encoded:
            alone.append(self.concurrency._free._value == 0 and self.concurrency._excluding.locked())
            return super().encode(chunks)

    for _ in range(2):
        Attempts(folder).begin("suspect")
    actor = set_up(Watched(folder, set()), calls=2)
    sound, suspect = encode(actor, [0, 1], "sound"), encode(actor, [0, 1], "suspect")
    assert (sound["attempt"], suspect["attempt"]) == (1, 3)
    assert alone == [False, True, True], "a sound unit at once, a suspect one document by document"
    assert sound["codes"] == suspect["codes"]


def test_a_cluster_without_a_worker_needs_settings() -> None:
    with pytest.raises(ConfigError, match=r"compute\.actors: the cluster has no worker yet"):
        lay_out_pool(ComputeConfig(), [HEAD])


def test_replicas_share_a_gpu() -> None:
    pool = lay_out_pool(ComputeConfig(num_gpus=0.5), [HEAD, {"CPU": 16.0, "GPU": 2.0}])
    assert (pool.device, pool.actors, pool.num_gpus) == ("cuda", (1, 4), 0.5)


@pytest.mark.parametrize(("asked", "num_gpus", "found"), [(512, 1.0, 512), (None, 2.0, 1000), (None, 0.25, 250)])
def test_a_default_budget_fits_the_actors_share_of_the_gpu(asked: int | None, num_gpus: float, found: int) -> None:
    class Shared(Encoder):
        def __init__(self) -> None:
            """Hold no model."""

        def find_token_budget(self, share: float = 1.0) -> int:
            return int(1000 * share)

    assert choose_token_budget(Shared(), Pool("cuda", "auto", asked, (1, 1), num_gpus, 1.0, 1, 1.0)) == found


class BrokenActor(DoomedActor):
    """Computes NaN for certain documents."""

    def encode(self, chunks: pa.Table) -> Encoded:
        document = chunks["document"].to_numpy()
        vectors_ND = np.where(np.isin(document, list(self.deadly)), np.nan, document).astype(np.float32)[:, None]
        return Encoded(vectors_ND, chunks.num_rows, 64)


def test_a_document_with_a_non_finite_vector_is_quarantined_with_all_its_chunks(tmp_path: Path) -> None:
    unit = encode(set_up(BrokenActor(Location(str(tmp_path)), {1})), [0, 1, 1, 2])
    assert (unit["rejected"], unit["reasons"]) == ([1], ["not_finite"])
    assert from_ipc(unit["chunks"])["document"].to_pylist() == [0, 2]
    assert np.frombuffer(unit["codes"], np.float32).tolist() == [0.0, 2.0]


def test_a_document_without_tokens_is_quarantined_and_never_encoded(tmp_path: Path) -> None:
    unit = encode(set_up(BrokenActor(Location(str(tmp_path)), {1, 2})), [0, 1, 2, 3], tokenless=[1, 3])
    assert (unit["rejected"], unit["reasons"]) == ([1, 3, 2], ["no_tokens", "no_tokens", "not_finite"])
    assert from_ipc(unit["chunks"])["document"].to_pylist() == [0]
    only = encode(set_up(DoomedActor(Location(str(tmp_path)), set())), [0], "only", tokenless=[0])
    assert (only["rejected"], only["codes"], only["attempt"]) == ([0], b"", 0)


def test_a_model_with_only_non_finite_vectors_ends_the_run(tmp_path: Path) -> None:
    actor = set_up(BrokenActor(Location(str(tmp_path)), set(range(16))))
    with pytest.raises(ModelError, match=r"all 16 documents of one unit \(unit\) hold NaN or infinity"):
        encode(actor, list(range(16)))
    with pytest.raises(ModelError, match="the probe's vector holds NaN or infinity; advice"):
        check_probe(np.array([np.nan], np.float32), None, "advice")


def test_rays_messages_while_a_graph_runs_are_kept_from_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    class Graph:
        def iter_batches(self, **_: object) -> Iterator[pa.Table]:
            print("(raylet) A worker died")
            yield pa.table({"number": [1, 2]})

    assert [row["number"] for row in iterate(Graph())] == [1, 2]
    print("figures")
    assert capsys.readouterr() == ("figures\n", "(raylet) A worker died\n")


def test_a_uri_beyond_ascii_is_a_label_that_ray_accepts() -> None:
    Reporter({"table": "/home/müller/t#1", "run_id": "0"}).report([Sample("embedder_documents", 1.0)])


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_a_ray_that_does_not_start_is_reported_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("the node timed out")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        ClusterError, match=r"^Ray \(.*\): does not start \(the node timed out\); check RAY_ADDRESS, load, memory and disk$"
    ):
        start_ray()
