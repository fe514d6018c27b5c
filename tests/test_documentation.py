"""The READMEs: links, names, commands, settings and code blocks agree with the code."""

import argparse
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from embedder.config.load import load_config
from tests.settings_tables import FILE, MODELS, TABLE, list_sections, rewrite
from tests.tables import MadeTable

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
READMES = [README, *(ROOT / name / "README.md" for name in ("configs", "jobs", "embedder", "deploy", "tests"))]
TEXTS = {path: path.read_text() for path in READMES}
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.name != "__init__.py")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SETTINGS = {f"{path}.{name}" for model in MODELS.values() for path, section in list_sections(model) for name in section.model_fields}
EXTRA = re.compile(r"""pip install ['"]?\.\[(\w+)\]""")


class ParsedError(Exception):
    """A job read its command line; the rest of it is not run."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(path: Path, language: str) -> list[str]:
    return [code for found, code in FENCED.findall(TEXTS[path]) if found == language]


def commands_of(path: Path) -> Iterator[list[str]]:
    """Yield each command of the blocks without a language: one a line, or several joined by && or |."""
    for block in blocks_of(path, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words or "|" in words:
                end = min(words.index(mark) for mark in ("&&", "|") if mark in words)
                yield words[:end]
                words = words[end + 1 :]
            if words and not words[0].endswith(":"):  # not an error message
                yield words
    for inline in re.findall(r"`(python -m jobs[^`]*)`", FENCED.sub("", TEXTS[path])):
        if not re.search(r"\b(CONFIG|URI|FOLDER|NAME)\b", inline):
            yield shlex.split(inline)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", TEXTS.get(path) or path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parse_only(read: Callable[..., Any]) -> Callable[..., Any]:
    def parse(*args: Any, **kwargs: Any) -> Any:
        read(*args, **kwargs)
        raise ParsedError

    return parse


def run_job(monkeypatch: pytest.MonkeyPatch, name: str, args: list[str]) -> None:
    """Call a job's main up to where its command line is read."""
    job = importlib.import_module(f"jobs.{name}")
    monkeypatch.setattr(sys, "argv", [name, *args])
    monkeypatch.setattr(job, "load_config", parse_only(load_config), raising=False)
    if "--help" not in args:
        monkeypatch.setattr(tyro, "cli", parse_only(tyro.cli))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only(argparse.ArgumentParser.parse_args))
    job.main(*[args][: len(inspect.signature(job.main).parameters)])


def check_job(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Parse `jobs.NAME ARGS`, with an example in place of a config of the reader's own."""
    name, args = words[0].removeprefix("jobs."), list(words[1:])
    if args and args[0] == "mine.yaml":
        args[0] = "configs/embed/quickstart.yaml"
    with monkeypatch.context() as patch, pytest.raises((ParsedError, SystemExit)) as ended:
        run_job(patch, name, args)
    assert ended.type is ParsedError or ended.value.code == 0, words


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_first_page_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 200


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", FENCED.sub("", TEXTS[path]))
    assert links
    for target, anchor in links:
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), f"{target}#{anchor}"


def test_every_test_of_the_fault_table_exists() -> None:
    named = re.findall(r"\[`(test_\w+)`\]\(([\w/]+\.py)\)", TEXTS[ROOT / "tests/README.md"])
    assert len(named) > 15
    for test, file in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}: {test}"


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_files_modules_and_settings_that_are_named_exist(path: Path) -> None:
    text = TEXTS[path]
    for file in re.findall(r"(?<![\w/.])(?:configs|deploy|embedder|jobs|tests)/[\w/.-]*\w", text):
        assert (ROOT / file).exists(), file
    for job in re.findall(r"\bjobs\.([a-z]\w*)", text):
        assert job in JOBS, job
    for module, name in re.findall(r"\bembedder((?:\.[a-z_]+)+)(?:\.|`| import )(\w*)", text):
        *folders, last = module.removeprefix(".").split(".")
        file, attribute = ROOT / "embedder" / "/".join([*folders, f"{last}.py"]), name
        if not file.exists():
            file, attribute = ROOT / "embedder" / f"{'/'.join(folders)}.py", last
        assert re.search(rf"^(def|class) {attribute}\b", file.read_text(), re.MULTILINE), f"embedder{module} {name}"
    sections = "|".join(sorted({setting.split(".")[0] for setting in SETTINGS}))
    for setting in re.findall(rf"(?:`|--)((?:{sections})(?:\.[a-z0-9_]+)+)", text):
        known = setting in SETTINGS or any(f"{setting}." in each for each in SETTINGS)
        assert known or (ROOT / "embedder" / setting.replace(".", "/")).exists(), setting


@pytest.mark.real  # imports torch
@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands_of(path):
        while "=" in words[0]:  # variables of the environment
            words.pop(0)
        command = words[0]
        if words[:2] == ["python", "-m"]:
            check_job(monkeypatch, words[2:])
        elif command == "deploy/submit.sh":
            check_job(monkeypatch, words[1:])
        elif words[:3] == ["ray", "job", "submit"]:
            check_job(monkeypatch, words[words.index("--") + 3 :])
        elif command == "make":
            assert words[1] in targets, words
        else:
            assert command in {"pip", "pytest", "kubectl", "ray", "docker", "gzip", "head"}, words
    for target in re.findall(r"`make ([a-z-]+)", TEXTS[path]):
        assert target in targets, target
    for extra in EXTRA.findall(TEXTS[path]):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_examples_of_settings_load(path: Path, tmp_path: Path) -> None:
    for block in blocks_of(path, "yaml"):
        example = yaml.safe_load((ROOT / "configs/embed/quickstart.yaml").read_text()) | yaml.safe_load(block)
        (tmp_path / "example.yaml").write_text(yaml.safe_dump(example))
        load_config(MODELS["embed"], [str(tmp_path / "example.yaml")])


def test_settings_tables_are_as_the_settings_are() -> None:
    assert rewrite(TEXTS[FILE]) == TEXTS[FILE], "run: make docs"
    shown = {dict(list_sections(MODELS[job]))[path] for _, job, path in TABLE.findall(TEXTS[FILE])}
    missing = [f"{job} {path}" for job, model in MODELS.items() for path, section in list_sections(model) if section not in shown]
    assert not missing


def section_of(job: str) -> str:
    return TEXTS[ROOT / "jobs/README.md"].partition(f"\n## jobs.{job}\n")[2].partition("\n## ")[0]


@pytest.mark.real
@pytest.mark.parametrize("job", JOBS)
def test_every_job_is_described_with_all_its_flags(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"jobs.{job} " in TEXTS[README].replace("`", " ")
    assert section_of(job)
    with pytest.raises(SystemExit):
        run_job(monkeypatch, job, ["--help"])
    printed = capsys.readouterr().out
    found = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*(?![\w.-])", printed)} - {"--help"}
    flags = {flag for flag in found if not (flag.startswith("--no-") and f"--{flag[5:]}" in found)}
    short = {f"--{flag}" for flag in getattr(importlib.import_module(f"jobs.{job}"), "SHORT", {})}
    assert set(re.findall(r"`(--[a-z-]+)`", section_of(job))) - {"--help"} == flags | short


def test_the_table_of_the_first_page_is_read_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MadeTable(str(tmp_path / ".quickstart/table")).follow({"shard": [("d0", "one two", "x"), ("d1", "three", "y")]})
    monkeypatch.chdir(tmp_path)
    block, _ = blocks_of(README, "python")
    exec(block.replace("kind", "topic"), {})  # the metadata column of this table
    assert "chunks" in capsys.readouterr().out


def test_no_install_command_names_the_other_project_of_this_name() -> None:
    files = [
        ROOT / "Makefile",
        *READMES,
        *(path for name in ("configs", "deploy", "embedder", "jobs", "tests") for path in (ROOT / name).rglob("*")),
    ]
    wrong = re.compile(r"""install ['"]?embedder\b|['"`]embedder\[""")
    found = [
        name_of(path)
        for path in files
        if path.suffix in {".py", ".md", ".yaml", ".sh", ""} and path.is_file() and wrong.search(path.read_text())
    ]
    assert not [name for name in found if name != name_of(Path(__file__))]
