"""Invalid options are refused, all at once; a table is named by its uri or by the config that makes it."""

from pathlib import Path

import numpy as np
import pytest

from embedder.config.maintain import MaintainOptions
from embedder.core.errors import ConfigError
from embedder.core.rotation import digest_array, keep_rotation
from embedder.core.storage import Location
from embedder.run.recut import RecutConfig, run_recut
from embedder.table.delta import read_table
from jobs.maintain import main
from tests.table.conftest import CORPUS
from tests.tables import DIM, SPEC, MadeTable


def test_invalid_options_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError, match=r"no action; give.*\n.*go with --check\n--target-mb=0"):
        MaintainOptions("./out", deep=True, target_mb=0)
    with pytest.raises(ConfigError, match="no dry run"):
        MaintainOptions("./out", checkpoint=True, dry_run=True)


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_megabytes_and_hours_must_be_finite_and_positive(number: str) -> None:
    for flags in (["--compact", "--target-mb", number], ["--vacuum", "--insist", "--older-than-hours", number]):
        with pytest.raises(ConfigError, match=f"{flags[-2]}={number}: must be a number"):
            main(["./out", *flags])


def test_a_config_locates_the_table_it_makes(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: {uri: /corpus}\nembedding: {model: m}\noutput: {uri: s3://b/t, storage_options: {anon: true}}\n")
    assert MaintainOptions(str(file), check=True).locate() == Location("s3://b/t", {"anon": True})
    assert MaintainOptions("s3://b/t", check=True).locate() == Location("s3://b/t")


def test_the_job_prints_its_results_and_exits_1_only_on_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    assert main([table.uri, "--compact", "--vacuum", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "dry run: nothing was merged" in printed
    assert "dry run: nothing was" in printed
    assert read_table(Location(table.uri)).version == 0  # type: ignore[union-attr]
    assert main([table.uri, "--compact", "--vacuum", "--checkpoint", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "version 1, the same rows" in printed
    assert "checkpoint  of version 1" in printed
    assert "no fault" in printed
    broken = str(table.names()[0])
    Path(table.uri, broken).unlink()
    assert main([table.uri, "--check"]) == 1
    assert f"{broken}  not on storage" in capsys.readouterr().out
    assert main([table.uri, "--check", "--repair"]) == 0
    assert main([table.uri, "--check"]) == 0


def test_a_repair_that_leaves_a_fault_exits_1_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = SPEC.model_copy(update={"rotation": digest_array(np.eye(DIM, dtype=np.float32))})
    table = MadeTable(str(tmp_path / "table"), spec=turned)
    table.follow(CORPUS)
    assert main([table.uri, "--check", "--repair"]) == 1
    printed = capsys.readouterr().out
    assert "repair  0 parts removed from the table\n" in printed
    assert printed.count(f"_rotation/{turned.rotation}") == 4  # the fault and its file, before and after
    keep_rotation(np.eye(DIM, dtype=np.float32), Location(table.uri))
    assert main([table.uri, "--check", "--repair"]) == 0


def test_a_repaired_cut_names_the_job_that_restores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    cut = f"{table.uri}-cut"
    config = RecutConfig.model_validate({"parent": {"uri": table.uri}, "output": {"uri": cut, "dim": 2}})
    made = run_recut(config)
    next(Path(cut).glob("*.parquet")).unlink()
    assert main([cut, "--check", "--repair"]) == 0
    assert "removed from the table; run jobs.recut to make them again" in capsys.readouterr().out
    assert run_recut(config).rows == made.rows
    assert main([cut, "--check", "--deep"]) == 0
