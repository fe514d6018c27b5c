"""The runs whose results are golden: settings and spaces, a stored table, and tables made anew.

python -m tests.golden.scenario {settings,spaces,stored,runs} OUT.json
python -m tests.golden.scenario make      writes tables.zip and golden.json anew, after a change that is meant to show in them
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.golden import corpus
from tests.golden.facts import describe, flatten, lay_out, read_flags, read_log, read_table
from tests.golden.models import FAMILIES
from tests.golden.place import MODIFIED, PLACE, Done, locked_place, pack, run, set_times, unpack

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden.json"
CALIBRATION = f"--embedding.calibration={PLACE}/calibration"
COLUMNS = ("topic", "year", "score", "flag", "tags", "when", "meta.url", "info")
FULL = (
    f"--source.uri={PLACE}/corpus", "--source.id_column=id", "--source.text_columns", "title", "text", "--source.metadata_columns",
    *COLUMNS, '--source.metadata_types={"when": timestamp, "year": int64}', "--source.rows_per_unit=10",
    f"--embedding.model={PLACE}/models/run", "--embedding.pooling=mean", "--chunking.max_tokens=24", "--chunking.overlap_tokens=4",
    "--compute.dtype=float32", "--compute.backend=torch", "--compute.actors=1", "--compute.num_cpus=1",
)  # fmt: skip
"""A table of every format and of several types."""
TEXTS = (
    f"--source.uri={PLACE}/texts", "--source.format=text", f"--embedding.model={PLACE}/models/run", "--embedding.depth=1",
    "--embedding.dim=8", "--embedding.quantization=int8", "--embedding.rotate=true", CALIBRATION, "--chunking.max_tokens=24",
    "--compute.dtype=float32", "--compute.backend=torch", "--compute.actors=1", "--compute.num_cpus=1", "--output.store_text=false",
)  # fmt: skip
"""A table of whole files, with a calibrated exit, turned, in int8."""
CONFIGS = {
    "quickstart": (),
    "nightly": (),
    "mxbai-2d-s3": ("--source.format=jsonl", "--embedding.model=./bert", "--embedding.depth=3", "--embedding.dim=32"),
    "nomic-gcs": ("--embedding.model=./nomic_bert", "--embedding.dim=32", "--chunking.max_tokens=64", "--chunking.overlap_tokens=8"),
}
"""Every file in configs/embed, with a tiny model where its own is on a hub."""
VARIATIONS = {
    "layout": ("layout",),
    "layout, pooling": ("layout", "--embedding.pooling=last", "--embedding.dim=16"),
    "layout, no prompts": ("layout", "--embedding.prompt=", "--embedding.query_prompt="),
    "depth": ("bert", "--embedding.depth=2"),
    "dim": ("bert", "--embedding.dim=8"),
    "cls": ("bert", "--embedding.pooling=cls"),
    "prompt": ("bert", "--embedding.prompt=passage: ", "--embedding.query_prompt=query: "),
    "layer_norm": ("bert", "--embedding.layer_norm=true"),
    "unnormalized": ("bert", "--embedding.normalize=false"),
    "whole documents": ("bert", "--chunking.enabled=false"),
    "overlap": ("bert", "--chunking.max_tokens=32", "--chunking.overlap_tokens=8"),
    "float8": ("modernbert", "--embedding.float8=true"),
    "final_norm": ("qwen3", "--embedding.final_norm=skip", "--embedding.depth=2"),
    "no layer_norm": ("nomic_bert", "--embedding.layer_norm=false"),
    "binary": ("bert", "--embedding.quantization=binary", "--embedding.dim=16"),
    "int8": ("run", "--chunking.max_tokens=24", "--embedding.quantization=int8", CALIBRATION),
    "rotated": ("run", "--chunking.max_tokens=24", "--embedding.rotate=true", "--embedding.dim=8", CALIBRATION),
    "calibrated exit": ("run", "--chunking.max_tokens=24", "--embedding.depth=1", CALIBRATION),
}


def settings() -> dict[str, Any]:
    """Read the jobs, their flags and the settings of every kind of config, with their defaults."""
    jobs = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")
    configs = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name == "load" or path.stem == "quickstart")
    flags = {job: read_flags(run(job, "--help").out) for job in jobs}
    printed = {f"{path.parent.name}/{path.stem}": flatten(run(path.parent.name, str(path), "--print-config").out) for path in configs}
    gate = run("embed", str(ROOT / "configs/embed/quickstart.yaml"), "--gate.report=report.json", "--print-config")
    return {"flags": flags, "configs": printed, "gate": {name: value for name, value in flatten(gate.out).items() if "gate." in name}}


def spaces() -> dict[str, Any]:
    """Resolve the spec and its space of every config, family and variation."""
    unpack()
    os.chdir(PLACE / "models")
    document = dict.fromkeys(("id", "title", "text", "body", "language", "module", "kind", "url"), "river") | {"meta": {"url": "river"}}
    Path("documents.jsonl").write_text(json.dumps(document))
    asked: dict[str, tuple[str, ...]] = {f"config {name}": (str(ROOT / f"configs/embed/{name}.yaml"), *CONFIGS[name]) for name in CONFIGS}
    asked |= {f"family {name}": (f"--embedding.model=./{name}",) for name in FAMILIES}
    asked |= {name: (f"--embedding.model=./{model}", *flags) for name, (model, *flags) in VARIATIONS.items()}
    where = ("--source.uri=documents.jsonl", "--output.uri=table", "--dry-run", "--json")
    with patch("embedder.model.loading.check_weights"):  # they are one tensor, so that no library has a say in a checksum
        return {name: _outcome(run("embed", *flags, *where), "space_id", "spec") for name, flags in asked.items()}


def stored() -> dict[str, Any]:
    """Run the jobs that read or update a table on those of the archive; none needs Ray, because nothing has changed."""
    unpack()
    full = PLACE / "old/full"
    found: dict[str, Any] = {
        "full": _use_table(full, FULL, "Title 40 copper whale the 40."),
        "texts": _use_table(PLACE / "old/texts", TEXTS, (PLACE / "texts/one.txt").read_text()),
    }
    for name, flag in (("another space", "depth=1"), ("too deep", "depth=9"), ("unknown key", "depht=1")):
        found[name] = run("embed", *FULL, f"--output.uri={full}", f"--embedding.{flag}").code
    cut = run("recut", f"--parent.uri={full}", f"--output.uri={PLACE}/cut", "--output.dim=8", "--output.quantization=binary")
    table = read_table(PLACE / "cut")
    codes = table.pop("vectors")
    del table["rows"]  # those of the table that it was cut from
    return found | {"recut": {"code": cut.code, "codes": codes, **table}}


def _use_table(table: Path, flags: tuple[str, ...], question: str) -> dict[str, Any]:
    embed = ("embed", *flags, f"--output.uri={table}", "--json")
    before, checked = read_log(table), run("maintain", str(table), "--check", "--deep")
    return {
        "dry run": _outcome(run(*embed, "--dry-run")),
        "run": _outcome(run(*embed)),
        "log is unchanged": read_log(table) == before,
        "check": checked.code,
        "parts without a checksum": "parts without a checksum" in checked.out,
        "history": _outcome(run("history", str(table), "--json")),
        "nearest": [hit["doc_id"] for hit in json.loads(run("search", str(table), question, "--top=1", "--json").out)],
    }


def runs() -> dict[str, Any]:
    """Make tables anew, run again, run after a document was edited and a shard removed, and run beside a shard that cannot be read."""
    unpack()
    table, texts = PLACE / "new/full", PLACE / "new/texts"
    embed = ("embed", *FULL, f"--output.uri={table}", "--json")
    found: dict[str, Any] = {"first": _outcome(run(*embed)) | {"table": read_table(table)}, "again": _outcome(run(*embed))}
    edited = PLACE / "corpus/a.jsonl"
    edited.write_bytes(edited.read_bytes().replace(b"Title 2", b"Heading"))
    (PLACE / "corpus/f.ndjson.bz2").unlink()
    os.utime(edited, (MODIFIED + 60, MODIFIED + 60))
    found["preview"] = _outcome(run(*embed, "--dry-run"), "parts_kept", "parts_removed", "rows_kept", "rows_removed")
    found["refresh"] = _outcome(run(*embed)) | {"log": read_log(table)[1:]}
    found["diff"] = _outcome(run("diff", str(table), "--from_version=0", "--json"))
    corpus.write_broken(PLACE / "texts/broken.txt.gz")
    found["one shard fails"] = _outcome(run("embed", *TEXTS, f"--output.uri={texts}", "--json")) | {"table": read_table(texts)}
    return found


def _outcome(done: Done, *names: str) -> dict[str, Any]:
    """Describe a job's exit code and the JSON it printed, or those of its values that are named."""
    try:
        printed = json.loads(done.out)
    except ValueError:
        return {"code": done.code, "out": done.out, "err": done.err[-2000:]}
    return {"code": done.code, "out": describe({name: printed[name] for name in names} if names else printed)}


def make() -> None:
    """Write the archive and the golden values by the code as it is."""
    with locked_place():
        corpus.write_corpus(PLACE / "corpus")
        corpus.write_texts(PLACE / "texts")
        corpus.write_sample(PLACE / "sample")
        set_times()
        model = (f"--embedding.model={PLACE}/models/run", "--chunking.max_tokens=24", f"--source.uri={PLACE}/sample")
        fit = ("--calibrate.depths", "1", "2", "--calibrate.dims", "8", "16", "--calibrate.attention.chunks=0")
        done = [run("calibrate", *model, *fit, f"--output.uri={PLACE}/calibration")]
        for name, flags in (("full", FULL), ("texts", TEXTS)):
            done.append(run("embed", *flags, f"--output.uri={PLACE}/old/{name}"))
        assert not any(each.code for each in done), done
        pack()
        golden = {name: part() for name, part in PARTS.items()}
        GOLDEN.write_text(lay_out(golden) + "\n", encoding="utf-8")


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"settings": settings, "spaces": spaces, "stored": stored, "runs": runs}

if __name__ == "__main__":
    if sys.argv[1] == "make":
        make()
    else:
        with locked_place():
            found_parts = {name: PARTS[name]() for name in sys.argv[1:-1]}
        Path(sys.argv[-1]).write_text(json.dumps(found_parts), encoding="utf-8")
