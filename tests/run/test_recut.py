"""A table cut from another equals one embedded with its settings, and follows its parent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.config.embed import EmbedConfig
from embedder.config.output import CutTableConfig
from embedder.core.errors import ConfigError, TableDamagedError
from embedder.core.quantization import Ranges, to_int8
from embedder.core.rotation import digest_array, read_rotation
from embedder.core.storage import Location
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, RangeKey, fitted_for, load_calibration, write_calibration
from embedder.run.recut import RecutConfig, check_cuts, run_cuts, run_recut
from embedder.run.recut_vectors import plan_cut
from embedder.table.commits import open_delta
from embedder.table.compact import compact_table
from embedder.table.delta import read_table
from embedder.table.vectors import column_codes
from tests.core.test_spec import SPEC
from tests.tables import DIM, Corpus, MadeTable
from tests.tables import SPEC as PARENT_SPEC

CORPUS: Corpus = {
    "large-a": [("a1", "one two three", "x"), ("a2", "four", "y"), ("bad", "", "z")],
    "b": [("b1", "five six", None)],
}


@pytest.fixture
def parent(tmp_path: Path) -> MadeTable:
    table = MadeTable(str(tmp_path / "parent"))
    table.follow(CORPUS)
    return table


def recut(parent: MadeTable, **output: Any) -> Any:
    return run_recut(RecutConfig.model_validate({"parent": {"uri": parent.uri}, "output": {"uri": f"{parent.uri}-cut", **output}}))


def rows(uri: str) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["doc_id"], row["chunk"]): row for row in open_delta(Location(uri)).to_pyarrow_table().to_pylist()}


def test_every_row_has_the_normalized_prefix_of_its_vector(parent: MadeTable) -> None:
    made = recut(parent, dim=2)
    assert made.version == 0
    before, after = rows(parent.uri), rows(f"{parent.uri}-cut")
    assert before.keys() == after.keys()
    for key, row in after.items():
        prefix = np.array(before[key]["embedding"][:2])
        np.testing.assert_allclose(row["embedding"], prefix / np.linalg.norm(prefix), atol=1e-6)
        assert {**row, "embedding": None} == {**before[key], "embedding": None}
    quarantine = open_delta(Location(f"{parent.uri}-cut/_quarantine")).to_pyarrow_table()
    assert quarantine["doc_id"].to_pylist() == ["bad"]


def test_the_space_is_that_of_embedding_with_the_same_settings(parent: MadeTable) -> None:
    recut(parent, dim=2)
    state = read_table(Location(f"{parent.uri}-cut"))
    assert state is not None
    assert state.spec.space_id == SPEC.model_copy(update={"dim": 2}).space_id
    assert state.info["parent"] == {"uri": parent.uri, "version": 0}


def test_it_follows_its_parent_and_only_changed_parts_are_cut(parent: MadeTable) -> None:
    recut(parent, dim=2)
    assert recut(parent, dim=2).version is None
    parent.follow({**CORPUS, "b": [("b1", "five six", None), ("b2", "seven", None)]})
    made = recut(parent, dim=2)
    assert (made.version, made.parts_added, made.parts_removed) == (1, 1, 1)
    assert made.parts_kept > 0
    assert rows(f"{parent.uri}-cut").keys() == rows(parent.uri).keys()


def test_a_compaction_of_either_table_needs_no_recut(tmp_path: Path) -> None:
    parent = MadeTable(str(tmp_path / "parent"), rows_per_unit=1)
    parent.follow(CORPUS)
    recut(parent, dim=2)
    whole = rows(f"{parent.uri}-cut")
    assert compact_table(Location(f"{parent.uri}-cut"), 10_000_000).merges
    assert recut(parent, dim=2).version is None
    parent.follow({**CORPUS, "b": [("b1", "five six", None), ("b2", "seven", None)]})
    made = recut(parent, dim=2)
    assert (made.parts_added, made.parts_kept, made.parts_removed) == (2, 1, 1)
    parent.follow(CORPUS)
    assert compact_table(Location(parent.uri), 10_000_000).merges
    recut(parent, dim=2)
    assert recut(parent, dim=2).version is None
    assert rows(f"{parent.uri}-cut") == whole


def test_a_table_not_cut_from_this_parent_is_not_overwritten_by_default(parent: MadeTable, tmp_path: Path) -> None:
    recut(parent, dim=2)
    cut, other = f"{parent.uri}-cut", MadeTable(str(tmp_path / "other"))
    other.follow({"c": [("c1", "eight", None)]})
    before = rows(cut)

    def from_other(uri: str, **output: Any) -> Any:
        return run_recut(RecutConfig.model_validate({"parent": {"uri": other.uri}, "output": {"uri": uri, "dim": 2, **output}}))

    with pytest.raises(ConfigError, match=rf"is cut from '{parent.uri}', not from '{other.uri}'.*--output.replace true"):
        from_other(cut)
    assert rows(cut) == before
    from_other(cut, replace=True)
    assert rows(cut).keys() == {("c1", 0)}
    assert from_other(cut).version is None
    # an equal copy elsewhere becomes the parent, and no part is cut again
    Path(other.uri).rename(f"{other.uri}-moved")
    other = MadeTable(f"{other.uri}-moved")
    made = from_other(cut, replace=True)
    assert (made.version is None, made.parts_added, made.parts_removed) == (False, 0, 0)
    assert from_other(cut).version is None
    embedded = MadeTable(str(tmp_path / "embedded"))
    spec = PARENT_SPEC.model_copy(update={"dim": 2})
    embedded.follow(CORPUS, record={"spec": spec.model_dump(), "space_id": spec.space_id})
    with pytest.raises(ConfigError, match="the table there was embedded, not cut from"):
        from_other(embedded.uri)


def test_parts_of_a_recut_that_died_are_adopted(parent: MadeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.run.recut.commit_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        recut(parent, dim=2)
    monkeypatch.undo()
    written = {path: path.stat().st_mtime_ns for path in Path(f"{parent.uri}-cut").glob("*.parquet")}
    assert written
    recut(parent, dim=2)
    assert {path: path.stat().st_mtime_ns for path in Path(f"{parent.uri}-cut").glob("*.parquet")} == written
    assert rows(f"{parent.uri}-cut").keys() == rows(parent.uri).keys()


def test_int8_takes_its_ranges_from_an_artifact(parent: MadeTable, tmp_path: Path) -> None:
    ranges = Ranges(np.full(2, -0.5, np.float32), np.full(2, 0.5, np.float32))
    uri = str(tmp_path / "calibration")
    write_calibration(
        Calibration(fitted_for(SPEC), 6, start_attention_pooling(np.zeros(8, np.float32), 6, 4), {}, {RangeKey("native", 6, 2): ranges}),
        uri,
    )
    recut(parent, dim=2)
    made = MadeTable(parent.uri)
    run_recut(
        RecutConfig.model_validate(
            {"parent": {"uri": made.uri}, "output": {"uri": f"{made.uri}-int8", "dim": 2, "quantization": "int8", "calibration": uri}}
        )
    )
    order = [("doc_id", "ascending"), ("chunk", "ascending")]
    codes, floats = (open_delta(Location(each)).to_pyarrow_table().sort_by(order) for each in (f"{made.uri}-int8", f"{made.uri}-cut"))
    assert np.array_equal(column_codes(codes["embedding"]), to_int8(column_codes(floats["embedding"]), ranges))
    state = read_table(Location(f"{made.uri}-int8"))
    assert state is not None
    assert state.info["ranges"] == ranges.record()
    with pytest.raises(ConfigError, match=r"holds int8 codes, from which no other vectors can be made"):
        run_recut(RecutConfig.model_validate({"parent": {"uri": f"{made.uri}-int8"}, "output": {"uri": f"{made.uri}-x", "dim": 2}}))
    with pytest.raises(ConfigError, match=r"has no ranges of int8 for depth 6, native exit, dim 3"):
        recut(parent, dim=3, quantization="int8", calibration=uri)


def write_rotation(uri: str, **spec: Any) -> np.ndarray:
    rotation_WW = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
    fitted = fitted_for(SPEC.model_copy(update=spec))
    write_calibration(Calibration(fitted, 6, start_attention_pooling(np.zeros(8, np.float32), 6, 4), {}, {}, rotation_WW=rotation_WW), uri)
    return rotation_WW


def test_whole_vectors_are_rotated_before_the_cut_and_the_table_keeps_the_rotation(parent: MadeTable, tmp_path: Path) -> None:
    rotation_WW = write_rotation(str(tmp_path / "calibration"))
    recut(parent, dim=2, rotate=True, calibration=str(tmp_path / "calibration"))
    before, after = rows(parent.uri), rows(f"{parent.uri}-cut")
    for key, row in after.items():
        rotated = (np.array(before[key]["embedding"]) @ rotation_WW)[:2]
        np.testing.assert_allclose(row["embedding"], rotated / np.linalg.norm(rotated), atol=1e-5)
    state = read_table(Location(f"{parent.uri}-cut"))
    assert state is not None
    calibration = load_calibration(str(tmp_path / "calibration"))
    same = {"dim": 2, "rotation": digest_array(rotation_WW), "calibration": calibration.fingerprint}
    assert state.spec.space_id == SPEC.model_copy(update=same).space_id
    # a cut of a rotated table has the same rotation
    values = {"parent": {"uri": f"{parent.uri}-cut"}, "output": {"uri": f"{parent.uri}-smaller", "dim": 1}}
    run_recut(RecutConfig.model_validate(values))
    for uri in (f"{parent.uri}-cut", f"{parent.uri}-smaller"):
        found = read_rotation(state.spec, Location(uri))
        assert found is not None
        assert np.array_equal(found, rotation_WW)


def test_only_whole_vectors_of_the_full_model_are_rotated(parent: MadeTable, tmp_path: Path) -> None:
    uri = str(tmp_path / "calibration")
    write_rotation(uri)
    output = CutTableConfig(uri="x", dim=1, rotate=True, calibration=uri)
    for change, message in (
        ({"dim": 2}, "the parent's vectors have 2 of 4 components; give a table of whole ones"),
        ({"rotation": "r"}, "the parent's vectors are already rotated; leave it out"),
        ({"depth": 3}, "the parent's vectors are of depth 3 with a native exit"),
        ({"calibration": "c"}, r"is not the artifact that the parent was made with \(c\)"),
        ({"max_tokens": 9}, "was fitted for another model or recipe"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_cut(SPEC.model_copy(update={"dim": DIM} | change), output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"dim": 5}, r"output.dim=5: the parent's vectors have 4 components"),
        ({}, "the parent holds these very vectors; set a smaller dim, a quantization or rotate"),
        ({"dim": 3, "quantization": "binary"}, "output.dim=3: binary packs eight"),
        ({"quantization": "int8"}, "output.quantization=int8: needs an artifact of jobs.calibrate"),
        ({"dim": 2, "calibration": "x"}, "output.calibration='x': has no effect without quantization int8 or rotate"),
        ({"dim": 2, "rotate": True}, "output.rotate=true: needs an artifact of jobs.calibrate; set output.calibration"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(parent: MadeTable, output: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recut(parent, **output)


def test_another_cut_to_the_same_table_needs_replace(parent: MadeTable) -> None:
    recut(parent, dim=3)
    with pytest.raises(ConfigError, match=r"holds another space \(dim: 3 → 2\).*--output.replace true"):
        recut(parent, dim=2)
    recut(parent, dim=2, replace=True)
    assert {len(row["embedding"]) for row in rows(f"{parent.uri}-cut").values()} == {2}
    assert DIM > 3


def run_with_cuts(uri: str, *cuts: dict[str, Any], **output: Any) -> EmbedConfig:
    values = {"source": {"uri": "a"}, "embedding": {"model": "m"}, "output": {"uri": uri, "cuts": cuts, **output}}
    return EmbedConfig.model_validate(values)


def test_a_run_refuses_cuts_it_could_not_make_before_it_starts(parent: MadeTable) -> None:
    recut(parent, dim=3)
    cut = f"{parent.uri}-cut"
    cuts = [
        {"uri": "c", "dim": 999},
        {"uri": parent.uri, "dim": 2},
        {"uri": cut, "dim": 2},
        {"uri": "d", "dim": 2},
        {"uri": "d/", "dim": 1},
    ]
    with pytest.raises(ConfigError) as caught:
        check_cuts(run_with_cuts(f"{parent.uri}/", *cuts), PARENT_SPEC)
    for line, message in zip(
        str(caught.value).splitlines(),
        [
            "output.cuts[0].dim=999: the parent's vectors have 4 components",
            f"output.cuts[1].uri={parent.uri!r} is the parent itself",
            f"output.cuts[2].uri={cut!r}: the table holds another space (dim: 3 → 2); choose another output.cuts[2].uri, or swap",
            "output.cuts[4].uri='d/' is that of another cut",
        ],
        strict=True,
    ):
        assert line.startswith(message)
    with pytest.raises(ConfigError, match=r"output.cuts\[0\]: cannot be made from binary codes; set embedding.quantization to none"):
        check_cuts(run_with_cuts("b", {"uri": "c"}), SPEC.model_copy(update={"quantization": "binary"}))


def test_cuts_follow_a_run_that_replaces_its_table(parent: MadeTable) -> None:
    recut(parent, dim=3)
    cut = {"uri": f"{parent.uri}-cut", "dim": 2}
    with pytest.raises(ConfigError, match=r"swap all of it with --output.replace true"):
        run_cuts(run_with_cuts(parent.uri, cut))
    config = run_with_cuts(parent.uri, cut, replace=True)
    check_cuts(config, PARENT_SPEC)
    assert [each.version is None for each in run_cuts(config)] == [False]
    assert {len(row["embedding"]) for row in rows(cut["uri"]).values()} == {2}


def test_a_cut_into_the_parent_is_refused_however_its_uri_is_written(parent: MadeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(parent.uri).parent)
    Path("link").symlink_to("parent")
    before = rows(parent.uri)
    for name in (f"{parent.uri}/", "parent", "./parent/../parent", "link", f"file://{parent.uri}"):
        with pytest.raises(ConfigError, match=rf"output.uri='{name}' is the parent itself; choose another folder"):
            run_recut(RecutConfig.model_validate({"parent": {"uri": parent.uri}, "output": {"uri": name, "dim": 2, "replace": True}}))
    assert rows(parent.uri) == before


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no table there; make one with jobs\.embed"):
        recut(MadeTable(str(tmp_path / "none")), dim=2)


def test_a_damaged_part_of_the_parent_is_not_cut(parent: MadeTable) -> None:
    broken = max(Path(parent.uri).glob("*.parquet"), key=lambda path: path.stat().st_size)
    data = bytearray(broken.read_bytes())
    data[data.rindex(b"parquet-cpp")] ^= 1  # in the footer, which no page checksum covers
    broken.write_bytes(data)
    with pytest.raises(TableDamagedError, match=rf"{broken.name}: its bytes are not those that were written"):
        recut(parent, dim=2)
