"""One YAML file is one run: flags override the file, and one error reports every problem with its place."""

from pathlib import Path

import pytest
import yaml

from embedder.calibrate.config import CalibrateConfig
from embedder.config.embed import EmbedConfig
from embedder.config.load import dump_config, load_config
from embedder.core.errors import ConfigError
from embedder.core.redaction import has_password, mask_secrets, mask_text
from embedder.run.recut import RecutConfig
from embedder.stores.config import LoadConfig
from embedder.sweep.config import SweepConfig

ACTIONS = ("dry-run", "json")
CONFIGS = Path(__file__).parents[2] / "configs"
NEEDED = ["--source.uri", "in", "--embedding.model", "m", "--output.uri", "out"]


def load(*args: str) -> EmbedConfig:
    return load_config(EmbedConfig, args, ACTIONS).config


def problems_of(*args: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args)
    return str(caught.value).split("\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "wiki.yaml"


def test_flags_override_the_file_and_the_file_overrides_defaults(file: Path) -> None:
    file.write_text("source: {uri: in}\nembedding: {model: m, depth: 6, dim: 64}\noutput: {uri: out}\n")
    config = load(str(file), "--embedding.depth", "4", "--output.store-text", "false")
    assert (config.embedding.depth, config.embedding.dim, config.embedding.normalize) == (4, 64, None)
    assert config.output.store_text is False


def test_every_problem_is_reported_at_once_with_its_place(file: Path) -> None:
    file.write_text(
        "source:\n  uri: in\nembedding:\n  model: m\n  depht: 6\n  depth: six\n"
        "output: {uri: out}\nchunking: {max_tokens: 8, overlap_tokens: 8}\n"
    )
    assert problems_of(str(file), "--embedding.dim", "0", "--dryrun") == [
        "--dryrun: unknown action; did you mean '--dry-run'?",
        f"{file}:8: chunking: overlap_tokens=8: must be smaller than max_tokens=8",
        f"{file}:6: embedding.depth='six': input should be a valid integer, unable to parse string as an integer",
        "--embedding.dim: embedding.dim='0': input should be greater than or equal to 1",
        f"{file}:5: unknown key 'embedding.depht'; did you mean 'depth'?",
    ]


def test_a_missing_setting_is_named_with_its_flag() -> None:
    assert "command line: 'embedding.model' is missing; set it in the file or with --embedding.model" in problems_of()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embedding.depth", "0"], "embedding.depth='0': input should be greater than or equal to 1"),
        (
            ["--source.format", "docx"],
            "source.format='docx': input should be 'auto', 'parquet', ",
        ),
        (["--compute.actors", "3", "1"], "the fewest come first, e.g. [1, 3]"),
        (["--compute.device", "cpu", "--compute.num_gpus", "1"], "has no effect on device cpu"),
        (["--compute.device", "cuda", "--compute.dtype", "float32", "--compute.layout", "packed"], "layout=packed needs bfloat16"),
        (["--compute.device", "cuda", "--compute.backend", "openvino"], "backend=openvino runs on device cpu, not cuda"),
        (["--compute.dtype", "float16", "--compute.backend", "openvino"], "backend=openvino computes in bfloat16 or float32"),
        (["--compute.layout", "packed", "--compute.backend", "openvino"], "backend=openvino takes padded batches"),
        (["--source.metadata_columns", "title", "text"], "text is a column of the table itself"),
        (["--source.metadata_types.year", "int64"], "metadata_types names year"),
        (["--source.metadata_columns", "Text"], "Text is a column of the table itself"),
        (["--source.metadata_columns", "kind", "Kind"], "kind and Kind are one column to a Delta table"),
        (["--source.metadata_columns", "a_b", "a.b"], "a_b and a.b would both be column a_b; name them apart, e.g. {a_b: a.b, a_b_2: a_b}"),
        (["--output.uri", "hf://datasets/acme/table"], "no Delta table can be on the Hugging Face hub"),
        (["--output.uri", "s3://b/a%20b"], "%20 in a table's address is read in different ways"),
        (["--output.uri", "run#1"], "# in a table's address"),
        (["--embedding.polling", "cls"], "did you mean 'pooling'?"),
        (["--embedding.pooling", "attention"], "input should be 'mean', 'cls', 'last', 'max', 'weightedmean' or 'mean_sqrt_len'"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(flags: list[str], message: str) -> None:
    assert message in "\n".join(problems_of(*NEEDED, *flags))


def test_flags_take_lists_mappings_nulls_and_values_with_dashes() -> None:
    config = load(
        *NEEDED, "--source.text_columns", "title", "body", "--source.metadata_columns", "meta.url", "--embedding.depth", "null",
        "--embedding.prompt=--query: ", "--compute.actors", "2", "--source.storage_options", "{anon: true}",
    )  # fmt: skip
    assert config.source.text_columns == ("title", "body")
    assert config.source.metadata_columns == {"meta_url": "meta.url"}
    assert config.embedding.depth is None
    assert config.embedding.prompt == "--query: "
    assert config.compute.actors == (2, 2)
    assert config.source.storage_options == {"anon": True}


@pytest.mark.parametrize(
    "flag",
    ["embedding.depth", "compute.actors", "output.max_removed_fraction", "output.uri", "source.storage_options.anon", "source.format"],
)
def test_a_flag_without_a_value_is_refused_unless_it_is_boolean(flag: str) -> None:
    assert problems_of(*NEEDED, f"--{flag}", "--embedding.rotate") == [f"--{flag}: no value given"]
    assert load(*NEEDED, "--output.replace", "--embedding.layer_norm").output.replace is True


def test_yes_is_not_a_number(file: Path) -> None:
    file.write_text(
        "source: {uri: in}\nembedding: {model: m, depth: yes}\noutput:\n  uri: out\n  max_removed_fraction: on\n"
        "compute:\n  actors: true\n  num_cpus: off\n"
    )
    why = "is not a number (YAML reads yes, no, on and off as true and false)"
    assert problems_of(str(file), "--output.cuts", "[{uri: b, dim: true}]") == [
        f"{file}:2: embedding.depth: true {why}",
        f"{file}:7: compute.actors: true {why}",
        f"{file}:8: compute.num_cpus: false {why}",
        f"--output.cuts: output.cuts.0.dim: true {why}",
        f"{file}:5: output.max_removed_fraction: true {why}",
    ]


@pytest.mark.parametrize("text", ["{chunk}", "{title|none}: {chunk}", "[{chunk}]", "{chunk} # one"])
def test_a_flag_of_a_setting_that_is_text_is_taken_as_it_is(text: str) -> None:
    assert load_config(EmbedConfig, [*NEEDED, "--chunking.template", text]).config.chunking.template == text
    assert load_config(EmbedConfig, [*NEEDED, "--embedding.prompt", f"{text}: "]).config.embedding.prompt == f"{text}: "
    assert load_config(EmbedConfig, [*NEEDED, "--chunking.template", "null"]).config.chunking.template is None


def test_a_flag_into_a_mapping_keeps_its_key_and_is_parsed_as_in_a_file() -> None:
    config = load(
        *NEEDED, "--source.metadata-columns.my-col", "my-key", "--source.metadata_types.my-col", "int64",
        "--source.storage-options.anon", "false", "--source.storage_options.client_kwargs.verify-all", "true",
        "--source.storage_options.max_pools", "3", "--source.storage_options.key", "a: b #1", "--source.storage_options.pin", '"0123"',
        "--source.storage_options.token", "null",
    )  # fmt: skip
    assert (config.source.metadata_columns, config.source.metadata_types) == ({"my-col": "my-key"}, {"my-col": "int64"})
    assert config.source.storage_options == {
        "anon": False, "client_kwargs": {"verify-all": True}, "max_pools": 3, "key": "a: b #1", "pin": "0123", "token": None
    }  # fmt: skip


def test_a_store_option_declared_as_text_stays_text() -> None:
    flags = ["--table.uri", "t", "--lance.uri", "l", "--lance.storage_options.allow_http", "true"]
    lance = load_config(LoadConfig, flags).config.lance
    assert lance is not None
    assert lance.storage_options == {"allow_http": "true"}


def test_a_key_inside_a_value_that_is_not_a_mapping_is_refused(file: Path) -> None:
    file.write_text("source:\n  uri: in\n  metadata_columns: [title]\nembedding: {model: m}\noutput: {uri: out}\n")
    options = ["--source.storage_options", "{a: 1}", "--source.storage_options.a.b", "2"]
    assert problems_of(str(file), "--source.metadata_columns.other", "url", "--output.uri.x", "y", *options) == [
        f"--source.metadata_columns.other: source.metadata_columns is not a mapping, so a key cannot be added (see {file}:3); "
        "give --source.metadata_columns whole",
        f"--output.uri.x: output.uri is not a mapping, so a key cannot be added (see {file}:5); give --output.uri whole",
        "--source.storage_options.a.b: source.storage_options.a is not a mapping, so a key cannot be added (see --source.storage_options); "
        "give --source.storage_options.a whole",
    ]


def test_a_key_given_twice_is_refused(file: Path) -> None:
    file.write_text("source: {uri: in}\nembedding:\n  model: m\n  dim: 1\n  dim: 2\noutput: {uri: out}\n")
    assert problems_of(str(file)) == [f"{file}:5: key 'embedding.dim' is given twice (first: {file}:4)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("a: &b\n  c: *b", "1: not YAML (found unconstructable recursive node)"),
        ("a: &b [*b]", "not YAML"),
        ("- a", "holds a list"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(file: Path, text: str | None, message: str) -> None:
    if text is not None:
        file.write_text(text)
    assert message in problems_of(str(file))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(8)),
            "more than",
        ),
        ("[" * 5000 + "]" * 5000, "nested more than 30 levels deep"),
        ("a: " + "{a: " * 5000, "nested more than 30 levels deep"),
        ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_would_exhaust_the_machine_is_refused_in_a_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    (problem,) = problems_of(str(file))
    assert message in problem
    assert len(problem) < 300


def test_a_value_of_many_characters_is_shortened_in_its_problem(file: Path) -> None:
    (problem,) = problems_of(*NEEDED, "--embedding.depth", "x" * 100_000)
    assert "(100,002 characters)" in problem
    assert len(problem) < 600


def test_a_printed_config_loads_to_the_same_run(file: Path) -> None:
    config = load(*NEEDED, "--source.metadata_columns", "meta.url", "--compute.actors", "1", "4")
    file.write_text(dump_config(config))
    assert load(str(file)) == config


def test_print_config_prints_the_whole_config_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(*NEEDED, "--embedding.depth", "3", "--print-config")
    assert caught.value.code == 0
    assert EmbedConfig.model_validate(yaml.safe_load(capsys.readouterr().out)) == load(*NEEDED, "--embedding.depth", "3")


def test_help_shows_every_setting_with_the_values_of_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("source: {uri: in}\nembedding: {model: m, depth: 17}\noutput: {uri: out}\n")
    with pytest.raises(SystemExit) as caught:
        load(str(file), "--help")
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--embedding.depth" in printed
    assert "(default: 17)" in printed
    assert "--dry-run" in printed


def test_credentials_in_storage_options_are_masked_in_the_record() -> None:
    config = load(
        *NEEDED, "--output.storage_options", "{key: AKIA, secret: abc, client_kwargs: {aws_session_token: t}, endpoint_url: http://x}"
    )
    masked = mask_secrets(config.model_dump(mode="json"))["output"]["storage_options"]
    assert masked == {"key": "***", "secret": "***", "client_kwargs": {"aws_session_token": "***"}, "endpoint_url": "http://x"}


SECRET_OPTIONS = {
    "connection_string": "AccountKey=hush",
    "client_kwargs": {"headers": [{"auth": "hush"}]},
    "timeout": 5,
    "anon": False,
    "pin_key": 1234,
    "endpoint_url": "http://me:hush@x",
}


def test_text_in_storage_options_is_masked_unless_known_to_be_harmless() -> None:
    masked = mask_secrets({"source": {"storage_options": SECRET_OPTIONS, "uri": "ftp://me:hush@host/in"}})["source"]
    assert masked["storage_options"] == {
        "connection_string": "***",
        "client_kwargs": {"headers": [{"auth": "***"}]},
        "timeout": 5,
        "anon": False,
        "pin_key": "***",
        "endpoint_url": "http://me:***@x",
    }
    assert masked["uri"] == "ftp://me:***@host/in"


@pytest.mark.parametrize(
    "broken",
    [
        {"rows_per_unit": 0},
        {"storage_options": "hush"},
        {"storage_options": ["hush"]},
        {"uri": ["ftp://me:hush@host"]},
        {"uri": "ftp://me:hush@host"},
        {"id_column": ""},
    ],
)
def test_no_output_prints_a_secret(file: Path, broken: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    source = {"uri": "in", "storage_options": SECRET_OPTIONS}
    sections = {"source": source, "embedding": {"model": "m"}, "output": {"uri": "out", "storage_options": {"secret": "hush"}}}
    file.write_text(yaml.safe_dump(sections))
    printed = dump_config(load(str(file)))
    with pytest.raises(SystemExit):
        load(str(file), "--help")
    file.write_text(yaml.safe_dump(sections | {"source": source | broken}))
    printed += capsys.readouterr().out + str(problems_of(str(file)))
    assert "***" in printed
    assert "hush" not in printed


SECRET_TEXTS = [
    "host=127.0.0.1 user=me password=hunter2 dbname=d",
    "host=h password = 'hunter2 \\'hunter2' dbname=d",
    "password=hunter2\\ hunter2&hunter2 host=h",
    "host=h password=forgotten quotes hunter2",
    "postgresql://u@h/d?sslmode=require&password=hunter2",
    "postgresql://u:p@hunter2@h/d",
    "https://h:6333/?api_key=hunter2#x",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
    "az://c/k?sv=2024&sig=hunter2",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_a_secret_in_an_address_or_a_connection_string_is_not_printed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--table.uri", "t", "--pgvector.dsn", text]
    printed = dump_config(load_config(LoadConfig, flags).config)
    with pytest.raises(SystemExit):
        load_config(LoadConfig, [*flags, "--help"])
    with pytest.raises(ConfigError) as refused:
        load_config(LoadConfig, ["--table.uri", "t", "--pgvector.name", text])
    printed += capsys.readouterr().out + str(refused.value)
    assert "***" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("uri", [text for text in SECRET_TEXTS if "://" in text])
def test_a_source_whose_address_holds_a_secret_is_refused_without_showing_it(uri: str) -> None:
    (problem,) = problems_of("--source.uri", uri, *NEEDED[2:])
    assert problem.startswith("--source.uri: source.uri: the address holds a password or key")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "text",
    ["s3://b/token=5/*.parquet", "https://h/v1?api-version=2&design=3", "s3://b/a@b/c:d", "host=h user=me", "Search: tokens of a key"],
)
def test_harmless_text_is_not_masked(text: str) -> None:
    assert mask_text(text) == text
    assert not has_password(text)


@pytest.mark.parametrize(
    ("folder", "model"), [("embed", EmbedConfig), ("sweep", SweepConfig), ("calibrate", CalibrateConfig), ("recut", RecutConfig)]
)
def test_every_shipped_config_loads(folder: str, model: type[EmbedConfig]) -> None:
    paths = sorted((CONFIGS / folder).glob("*.yaml"))
    assert paths
    for path in paths:
        assert load_config(model, [str(path)]).config.output.uri


@pytest.mark.parametrize("flag", [["--embedding.depth", "3"], ["--embedding.quantization", "int8"], ["--embedding.exit", "native"]])
def test_a_calibration_refuses_settings_of_a_part_of_the_model(flag: list[str]) -> None:
    path = str(CONFIGS / "calibrate/quickstart.yaml")
    with pytest.raises(ConfigError, match=rf"{flag[0][2:]}: a calibration is fitted on the whole model; set this in the embed run"):
        load_config(CalibrateConfig, [path, *flag])


@pytest.mark.parametrize("flags", [["--calibrate.method", "distill"], ["--calibrate.distill.epochs", "3"]], ids=lambda flags: flags[0])
def test_settings_of_the_removed_distillation_are_refused(flags: list[str]) -> None:
    message = f"{'.'.join(flags[0].split('.')[:2])}.*calibrate: .*: distillation was removed, a calibration always fits ridge maps; delete"
    path = str(CONFIGS / "calibrate/quickstart.yaml")
    with pytest.raises(ConfigError, match=message):
        load_config(CalibrateConfig, [path, *flags])


def test_short_flags_set_their_settings() -> None:
    sweep = str(CONFIGS / "sweep/quickstart.yaml")
    short = {"min-quality": "pick.min_quality"}
    for flags in (["--min-quality", "0.9"], ["--min-quality=0.9"], ["--pick.min_quality", "0.9"]):
        assert load_config(SweepConfig, [sweep, *flags], short=short).config.pick.min_quality == 0.9
    with pytest.raises(ConfigError, match=r"--pick.min_quality: pick.min_quality='2'"):
        load_config(SweepConfig, [sweep, "--min-quality", "2"], short=short)


def test_help_lists_the_short_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(SweepConfig, ["--help"], short={"min-quality": "pick.min_quality"})
    assert "short flags: --min-quality for --pick.min_quality\n" in capsys.readouterr().out
