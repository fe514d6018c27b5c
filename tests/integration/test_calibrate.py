"""A calibration of a real corpus makes shallow depths usable, and tables that use it are searchable."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import Report, run_calibrate
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.core.quantization import restore, to_int8
from embedder.core.storage import Location
from embedder.demo.corpus import write_corpus
from embedder.model.calibration import Calibration, RangeKey, load_calibration, write_calibration
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.pipeline import in_process
from embedder.search.exact import open_table
from embedder.search.query_encoder import QueryEncoder
from embedder.table.vectors import column_codes
from tests.integration.conftest import Corpus, Site

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SOURCE = {"id_column": "id", "text_columns": ["title", "text"]}


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation")
    write_corpus(folder / "all")
    (folder / "corpus").mkdir()
    for path in sorted((folder / "all").glob("stdlib-3.*")):
        path.rename(folder / "corpus" / path.name)
    return folder


def calibrate(documentation: Path, minilm: str, name: str, **settings: Any) -> tuple[Calibration, Report]:
    config = CalibrateConfig.model_validate(
        {
            "source": SOURCE | {"uri": str(documentation / "corpus")},
            "chunking": {"max_tokens": 64, "enabled": False},
            "embedding": {"model": minilm},
            "calibrate": {"num_documents": 600, "depths": [3, 6], "dims": [128, 384], "held_out": 0.2, "synthetic": 3.0} | settings,
            "output": {"uri": str(documentation / name)},
        }
    )
    calibration, report = run_calibrate(config)
    write_calibration(calibration, config.output.uri)
    return calibration, report


@pytest.fixture(scope="module")
def calibrated(documentation: Path, minilm: str, ray_session: None) -> tuple[Calibration, Report]:
    return calibrate(documentation, minilm, "calibration", broad=SOURCE | {"uri": str(documentation / "all"), "num_documents": 50})


def test_a_calibrated_exit_of_a_small_sample_is_much_closer_than_the_raw_exit(
    calibrated: tuple[Calibration, Report], documentation: Path
) -> None:
    calibration, report = calibrated
    [depth_3] = report.exits
    assert (report.documents, report.chunks_fitted, report.chunks_synthetic, report.chunks_held_out) == (600, 480, 1440, 120)
    assert report.broad is not None
    assert (report.broad.documents, report.broad.chunks, report.broad.weight) == (50, 50, 0.1)
    assert calibration.record["broad"]["source"] == str(documentation / "all")
    assert calibration.fitted_texts is not None
    assert len(calibration.fitted_texts) == 530, "broad text flatters too"
    assert report.known_item is not None
    assert depth_3.known_item is not None
    assert 0.5 * report.known_item < depth_3.known_item <= report.known_item
    assert calibration.record["exits"][0]["calibrated"]["cosine"] == depth_3.calibrated.cosine
    assert depth_3.calibrated.cosine > depth_3.native.cosine + 0.2
    assert depth_3.calibrated.overlap > depth_3.native.overlap + 0.15


def test_a_calibration_in_one_process_is_that_of_ray(documentation: Path, minilm: str, ray_session: None) -> None:
    made = []
    for is_running in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(in_process, "is_ray_running", lambda running=is_running: running)
            settings = {"depths": [1, 2], "num_documents": 300, "attention": {"chunks": 200, "epochs": 1}, "synthetic": 1.0}
            made.append(calibrate(documentation, minilm, f"ran-{is_running}", **settings))
    (on_ray, ray_report), (alone, report) = made
    assert (report.chunks_fitted, report.chunks_synthetic, report.known_items) == (
        ray_report.chunks_fitted,
        ray_report.chunks_synthetic,
        ray_report.known_items,
    )
    for first, second in zip(report.exits, ray_report.exits, strict=True):
        assert first.calibrated.cosine == pytest.approx(second.calibrated.cosine, abs=2e-3)
    assert set(alone.ranges) == set(on_ray.ranges)


def test_exits_with_half_of_the_neurons_are_closer_than_half_the_depth_and_are_embedded(
    calibrated: tuple[Calibration, Report], documentation: Path, tmp_path: Path, minilm: str
) -> None:
    pruned, report = calibrate(documentation, minilm, "half", feed_forward=0.5)
    assert (report.neurons_kept, [each.depth for each in report.exits]) == (768, [3, 6])
    assert report.exits[1].calibrated.cosine > calibrated[1].exits[0].calibrated.cosine + 0.02
    assert {key.exit for key in pruned.ranges} == {"calibrated"}
    site = Site(Corpus(str(documentation / "corpus")), str(tmp_path / "table"), minilm)
    summary = site.embed(
        source=SOURCE | {"rows_per_unit": 1000, "metadata_columns": []},
        chunking={"max_tokens": 64, "enabled": False, "overlap_tokens": 0},
        embedding={"calibration": str(documentation / "half"), "quantization": "int8"},
    )
    assert summary.fidelity is not None
    assert summary.fidelity.cosine == pytest.approx(report.exits[1].calibrated.cosine, abs=0.03)
    query_D = QueryEncoder.from_table(site.table_uri, model=minilm).encode(["split a path into folder and file"])[0]
    assert "os.path.split" in [hit.row["doc_id"] for hit in open_table(Location(site.table_uri)).find(query_D, 20, None)]


def test_a_calibration_reads_its_template_and_belongs_to_it(documentation: Path, minilm: str, ray_session: None) -> None:
    chunkings: list[dict[str, Any]] = [{"max_tokens": 48}, {"max_tokens": 48, "template": "{module}: {chunk}"}]
    values = {"embedding": {"model": minilm}, "calibrate": {"num_documents": 120, "depths": [6], "dims": [128], "attention": {"chunks": 0}}}
    made = []
    for number, chunking in enumerate(chunkings):
        source, output = SOURCE | {"uri": str(documentation / "corpus")}, {"uri": str(documentation / f"axes-{number}")}
        config = CalibrateConfig.model_validate(values | {"source": source, "chunking": chunking, "output": output})
        calibration, report = run_calibrate(config)
        write_calibration(calibration, config.output.uri)
        made.append((calibration, report))
    (plain, plain_report), (titled, titled_report) = made
    assert titled_report.chunks_fitted > plain_report.chunks_fitted, "its context takes up to a third of each chunk"
    assert titled.fitted_for["template"] == "{module}: {chunk}"
    assert plain.rotation_WW is not None
    assert titled.rotation_WW is not None
    assert not np.allclose(np.abs(plain.rotation_WW[:, 0]), np.abs(titled.rotation_WW[:, 0]), atol=1e-3)
    embedding = EmbeddingConfig(model=minilm, dim=128, rotate=True, calibration=str(documentation / "axes-1"))
    assert resolve_model(embedding, ChunkingConfig(**chunkings[1])).spec.rotation
    with pytest.raises(ConfigError, match=r"was fitted for another model or recipe \(template: '{module}: {chunk}' → None"):
        resolve_model(embedding, ChunkingConfig(**chunkings[0]))


def test_small_dims_keep_more_neighbors_rotated_onto_axes_of_other_documents(calibrated: tuple[Calibration, Report]) -> None:
    [cut] = calibrated[1].cuts
    assert cut.dim == 128
    assert cut.rotated > cut.plain + 0.08


def test_a_rotated_table_is_searched_without_its_calibration(
    calibrated: tuple[Calibration, Report], documentation: Path, tmp_path: Path, minilm: str
) -> None:
    artifact = tmp_path / "calibration"
    shutil.copytree(documentation / "calibration", artifact)
    site = Site(Corpus(str(documentation / "corpus")), str(tmp_path / "table"), minilm)
    embedding = {"depth": 3, "dim": 128, "calibration": str(artifact), "rotate": True, "quantization": "int8"}
    chunking = {"max_tokens": 64, "enabled": False, "overlap_tokens": 0}
    summary = site.embed(source=SOURCE | {"rows_per_unit": 1000, "metadata_columns": []}, chunking=chunking, embedding=embedding)
    assert summary.fidelity is not None
    assert summary.fidelity.expected is not None
    assert not summary.fidelity.drifted, "the calibration is of these documents"
    shutil.rmtree(artifact)
    query_D = QueryEncoder.from_table(site.table_uri, model=minilm).encode(["split a path into folder and file"])[0]
    assert "os.path.split" in [hit.row["doc_id"] for hit in open_table(Location(site.table_uri)).find(query_D, 20, None)]
    rotated = Encoder.load(QueryEncoder.from_table(site.table_uri, model=minilm).spec.for_queries(), rotation_WW=calibrated[0].rotation_WW)
    assert rotated.dim == 128


def test_a_table_of_calibrated_int8_vectors_is_searched_by_the_full_model(
    calibrated: tuple[Calibration, Report], documentation: Path, tmp_path: Path, minilm: str
) -> None:
    site = Site(Corpus(str(documentation / "corpus")), str(tmp_path / "table"), minilm)
    uri = str(documentation / "calibration")
    sections = {
        "source": SOURCE | {"rows_per_unit": 1000, "metadata_columns": []},
        "chunking": {"max_tokens": 64, "enabled": False, "overlap_tokens": 0},
    }
    embedding = {"depth": 3, "dim": 128, "calibration": uri}
    site.embed(**sections, embedding=embedding | {"quantization": "int8"})
    floats = Site(site.corpus, str(tmp_path / "floats"), minilm)
    floats.embed(**sections, embedding=embedding)
    key = ["doc_id"]
    codes = site.delta().to_pyarrow_table().sort_by([(name, "ascending") for name in key])
    vectors = floats.delta().to_pyarrow_table().sort_by([(name, "ascending") for name in key])
    assert codes["doc_id"].equals(vectors["doc_id"])
    ranges = load_calibration(uri).ranges[RangeKey("calibrated", 3, 128)]
    vectors_ND = column_codes(vectors["embedding"])
    assert np.array_equal(column_codes(codes["embedding"]), to_int8(vectors_ND, ranges))
    restored_ND = restore(column_codes(codes["embedding"]), "int8", ranges)
    restored_ND /= np.linalg.norm(restored_ND, axis=1, keepdims=True)
    assert (restored_ND * vectors_ND).sum(axis=1).mean() > 0.999
    for table in (site, floats):
        query_D = QueryEncoder.from_table(table.table_uri, model=minilm).encode(["split a path into folder and file"])[0]
        assert "os.path.split" in [hit.row["doc_id"] for hit in open_table(Location(table.table_uri)).find(query_D, 20, None)]
