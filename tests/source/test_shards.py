import os
from typing import get_args

import pytest

from embedder.config.source import TABLES, Format, SourceConfig
from embedder.core.errors import ConfigError, SourceError, StorageError
from embedder.core.storage import Store
from embedder.source.file_kinds import Ignored
from embedder.source.formats.registry import FORMATS, Encoding, find_encoding
from embedder.source.shards import list_shards


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("name", "format_"), [("a.jsonl", "jsonl"), ("a.NDJSON", "jsonl"), ("a.json", "jsonl"), ("a.csv", "csv"), ("a.b.txt", "text")]
)
def test_the_suffix_names_format_and_compression(name, format_, suffix):
    assert find_encoding(f"s3://bucket/v1.2/{name}{suffix}") == Encoding(FORMATS[format_], suffix[1:] or None)


def test_every_format_of_the_config_is_registered():
    assert {"auto", *TABLES, *FORMATS} == set(get_args(Format))


def test_parquet_is_not_compressed_as_a_whole():
    assert find_encoding("a.parquet") == Encoding(FORMATS["parquet"])
    assert find_encoding("a.parquet.gz") is None


@pytest.mark.parametrize("name", ["README.md", "a.docx", "Makefile", ".gz", "a.gz"])
def test_other_suffixes_have_no_encoding(name):
    assert find_encoding(name) is None


def test_a_set_format_overrides_the_suffix():
    assert find_encoding("README.md", "text") == Encoding(FORMATS["text"])
    assert find_encoding("dump.gz", "jsonl") == Encoding(FORMATS["jsonl"], "gz")
    assert find_encoding("part-0000", "parquet") == Encoding(FORMATS["parquet"])


def test_a_folder_is_listed_in_order_without_hidden_and_unknown_files(write_file, tmp_path):
    for name in ("b.jsonl", "a/2.csv", "a/1.txt.gz", "README.md", "_SUCCESS", ".a.jsonl.crc", "_temporary/0/c.jsonl", "a/.cache/d.jsonl"):
        write_file(name, "x")
    listing = list_shards(SourceConfig(uri=str(tmp_path)))
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/a/1.txt.gz", f"{tmp_path}/a/2.csv", f"{tmp_path}/b.jsonl"]
    assert listing.ignored == {
        "job marker": Ignored(2, (f"{tmp_path}/.a.jsonl.crc", f"{tmp_path}/_SUCCESS")),
        "unknown suffix": Ignored(1, (f"{tmp_path}/README.md",)),
        "hidden": Ignored(2, (f"{tmp_path}/_temporary/0/c.jsonl", f"{tmp_path}/a/.cache/d.jsonl")),
    }
    assert listing.shards[2].size_bytes == 1
    assert len({shard.version for shard in listing.shards}) == 3


def test_a_folder_inside_a_hidden_one_is_not_hidden(write_file, tmp_path):
    write_file("_data/.v1/a.jsonl", [])
    assert len(list_shards(SourceConfig(uri=str(tmp_path / "_data" / ".v1"))).shards) == 1
    assert len(list_shards(SourceConfig(uri=f"{tmp_path}/_data/.v1/*.jsonl")).shards) == 1


def test_a_set_format_applies_to_every_file_that_is_not_hidden(write_file, tmp_path):
    for name in ("a.md", "b", "c.jsonl.gz", "_d"):
        write_file(name, "x")
    listing = list_shards(SourceConfig(uri=str(tmp_path), format="text"))
    assert [shard.uri.rpartition("/")[2] for shard in listing.shards] == ["a.md", "b", "c.jsonl.gz"]
    assert listing.ignored == {"hidden": Ignored(1, (f"{tmp_path}/_d",))}


def test_a_single_file_and_a_glob_are_listed(write_file, tmp_path):
    path = write_file("_a.jsonl", [])
    assert [shard.uri for shard in list_shards(SourceConfig(uri=str(path))).shards] == [str(path)]
    write_file("b.jsonl", [])
    write_file("c.csv", "text\n")
    assert [shard.uri for shard in list_shards(SourceConfig(uri=f"{tmp_path}/*.jsonl")).shards] == [f"{tmp_path}/b.jsonl"]


def test_an_existing_path_is_not_a_glob(write_file, tmp_path):
    for name in (
        "data [2024]/a.jsonl",
        "data [2024]/b?.jsonl",
        "data [2024]/_c.jsonl",
        "data [2024]/README",
        "data 2/d.jsonl",
        "[e].jsonl",
    ):
        write_file(name, [])

    def listed(uri):
        return [shard.uri.removeprefix(f"{tmp_path}/") for shard in list_shards(SourceConfig(uri=f"{tmp_path}/{uri}")).shards]

    assert listed("data [2024]") == ["data [2024]/a.jsonl", "data [2024]/b?.jsonl"]
    assert listed("[e].jsonl") == ["[e].jsonl"]
    assert listed("data ?/*") == ["data 2/d.jsonl"]


@pytest.mark.parametrize("uri", ["notes.docx", "*.docx"])
def test_a_file_or_glob_of_unknown_format_is_refused(write_file, tmp_path, uri):
    write_file("notes.docx", "x")
    with pytest.raises(
        ConfigError, match=r"^source.uri='.*docx': unknown format '.docx'.*known are .parquet .* .jsonl .* set source.format$"
    ):
        list_shards(SourceConfig(uri=f"{tmp_path}/{uri}"))


def test_links_are_listed_as_their_targets_and_change_with_them(write_file, tmp_path):
    target = write_file("real/a.jsonl", [{"text": "x"}])
    write_file("src/b.jsonl", [])
    (tmp_path / "src" / "a.jsonl").symlink_to("../real/a.jsonl")
    (tmp_path / "src" / "dir").symlink_to("../real")

    def listed(uri="src"):
        return {shard.uri.removeprefix(f"{tmp_path}/src/"): shard for shard in list_shards(SourceConfig(uri=f"{tmp_path}/{uri}")).shards}

    before = listed()
    assert list(before) == ["a.jsonl", "b.jsonl", "dir/a.jsonl"]
    assert list(listed("src/*")) == ["a.jsonl", "b.jsonl"]
    assert list(listed("src/*/*.jsonl")) == ["dir/a.jsonl"]
    assert list(listed("src/a.jsonl")) == ["a.jsonl"]
    assert {before[name].version for name in ("a.jsonl", "dir/a.jsonl")} == {Store(str(target)).info().version}
    assert before["a.jsonl"].size_bytes == target.stat().st_size
    os.utime(target, (1, 1))
    after = listed()
    assert [name for name in after if after[name].version != before[name].version] == ["a.jsonl", "dir/a.jsonl"]


def test_symlink_cycles_are_not_followed(write_file, tmp_path):
    write_file("src/a/a.jsonl", [])
    write_file("src/b/b.jsonl", [])
    for link, target in (("up", ".."), ("a/self", "."), ("a/b", "../b"), ("b/a", "../a")):
        (tmp_path / "src" / link).symlink_to(target)
    names = [shard.uri.removeprefix(f"{tmp_path}/src/") for shard in list_shards(SourceConfig(uri=f"{tmp_path}/src")).shards]
    assert names == ["a/a.jsonl", "a/b/b.jsonl", "b/a/a.jsonl", "b/b.jsonl"]


def test_a_dangling_link_is_an_unreadable_shard_if_its_suffix_is_known(write_file, tmp_path, read):
    for name in ("a.jsonl", "dir", ".#b.jsonl"):
        (tmp_path / name).symlink_to("nowhere")
    write_file("c.jsonl", [{"text": "x"}])
    listing = list_shards(SourceConfig(uri=str(tmp_path)))
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/c.jsonl"]
    assert listing.ignored == {"hidden": Ignored(1, (f"{tmp_path}/.#b.jsonl",)), "broken link": Ignored(1, (f"{tmp_path}/dir",))}
    with pytest.raises(SourceError, match=r"a.jsonl: a link to nowhere, which does not exist; check the path"):
        read(tmp_path)


def test_a_name_that_is_not_utf_8_is_refused_if_its_suffix_is_known(write_file, tmp_path):
    write_file("a.jsonl", [])
    (tmp_path / os.fsdecode(b"caf\xe9.bak")).touch()
    assert list(list_shards(SourceConfig(uri=str(tmp_path))).ignored) == ["unknown suffix"]
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).touch()
    with pytest.raises(ConfigError, match=r"names that are not UTF-8, or .*; rename them: '.*/caf\\udce9.jsonl'$"):
        list_shards(SourceConfig(uri=str(tmp_path)))


def test_a_partition_that_starts_with_an_underscore_is_read(write_file, tmp_path):
    for name in ("_date=2024-01-01/a.jsonl", "_temporary/b.jsonl", "c.jsonl._COPYING_", "_d.jsonl"):
        write_file(name, [])
    listing = list_shards(SourceConfig(uri=str(tmp_path)))
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/_date=2024-01-01/a.jsonl"]
    assert listing.ignored["hidden"].count == 3


def test_special_files_and_link_cycles_are_counted_and_never_opened(write_file, tmp_path):
    write_file("src/a.jsonl", [])
    os.mkfifo(tmp_path / "src" / "pipe.jsonl")
    (tmp_path / "src" / "null.jsonl").symlink_to("/dev/null")
    (tmp_path / "src" / "up").symlink_to("..")
    listing = list_shards(SourceConfig(uri=str(tmp_path / "src"), format="jsonl"))
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/src/a.jsonl"]
    assert {reason: each.count for reason, each in listing.ignored.items()} == {"not a regular file": 2, "link to a folder above it": 1}
    with pytest.raises(ConfigError, match=r"no file there is read \(1 not a regular file\)"):
        list_shards(SourceConfig(uri=f"{tmp_path}/src/pipe.jsonl"))


def test_only_the_first_names_of_a_reason_are_kept(write_file, tmp_path):
    for number in range(5):
        write_file(f"{number}.md", "x")
    write_file("a.jsonl", [])
    ignored = list_shards(SourceConfig(uri=str(tmp_path))).ignored["unknown suffix"]
    assert ignored == Ignored(5, tuple(f"{tmp_path}/{number}.md" for number in range(3)))


def test_a_folder_that_cannot_be_listed_is_an_error(write_file, tmp_path, monkeypatch):
    for name in ("a/1.jsonl", "b/2.jsonl"):
        write_file(name, [])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for uri in (str(tmp_path), f"{tmp_path}/*/*.jsonl", f"{tmp_path}/**/*.jsonl"):
        with pytest.raises(StorageError, match=r"not allowed to list it .*Permission denied: '.*/b'"):
            list_shards(SourceConfig(uri=uri))


def test_a_pattern_matches_folder_by_folder_and_prefers_a_folder_of_its_name(write_file, tmp_path):
    for name in ("a/1.jsonl", "a/x/2.jsonl", "b/x/y/3.jsonl", "b/x/4.csv", "rep [2]/5.jsonl", "rep 2/6.jsonl", "_c/7.jsonl"):
        write_file(name, "text\n")

    def listed(uri):
        return "".join(shard.uri.rpartition("/")[2][0] for shard in list_shards(SourceConfig(uri=f"{tmp_path}/{uri}")).shards)

    found = {uri: listed(uri) for uri in ("*/*.jsonl", "*/x/*", "b/**/*.jsonl", "**/x/*", "?/**", "rep [2]/*", "[!a]/x/*.csv", "b/**")}
    assert found == {
        "*/*.jsonl": "165",
        "*/x/*": "24",
        "b/**/*.jsonl": "3",
        "**/x/*": "24",
        "?/**": "1243",
        "rep [2]/*": "5",
        "[!a]/x/*.csv": "4",
        "b/**": "43",
    }
    assert list_shards(SourceConfig(uri=f"{tmp_path}/a/*")).ignored == {"folder matched by the pattern": Ignored(1, (f"{tmp_path}/a/x",))}
    with pytest.raises(ConfigError, match=r"\*\* matches whole folders; write it between slashes"):
        list_shards(SourceConfig(uri=f"{tmp_path}/a/**.jsonl"))


NAMES = [
    "File::Spec.jsonl", "a?versionId.jsonl", "b*.jsonl", "c[1].jsonl", "d#1.jsonl", "e%20f.jsonl", " g h .jsonl", "i\nj.jsonl",
    "caf\u00e9.jsonl", "cafe\u0301.jsonl", "~k.jsonl", "l\\m.jsonl", "file:n.jsonl", "s3:/o.jsonl", "p [1]/q.jsonl",
]  # fmt: skip
"""Names that some layer could take for syntax."""


def test_listed_names_are_opened_as_they_are(write_file, tmp_path, read, monkeypatch):
    for name in NAMES:
        write_file(name, [{"text": name}])
    assert sorted(read(tmp_path).texts) == sorted(NAMES)
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        uri = name if ":" not in name else f"./{name}"
        assert [shard.uri for shard in list_shards(SourceConfig(uri=uri)).shards] == [f"{tmp_path}/{name}"]


def test_a_source_without_files_is_refused(tmp_path, write_file):
    with pytest.raises(ConfigError, match=r"source.uri='.*/nowhere': no file is there"):
        list_shards(SourceConfig(uri=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"/\[a\]': nothing matches the pattern; .* \[\[\] is a bracket"):
        list_shards(SourceConfig(uri=str(tmp_path / "[a]")))
    write_file("_SUCCESS", "")
    with pytest.raises(ConfigError, match=r"no file there is read \(1 job marker\); give one"):
        list_shards(SourceConfig(uri=str(tmp_path)))


def test_a_folder_of_only_ignored_files_is_refused_with_their_suffixes(write_file, tmp_path):
    for name in ("a.docx", "b.docx", "README"):
        write_file(name, "x")
    with pytest.raises(ConfigError, match=r"no file has a known suffix \(found: 2 × '.docx', 1 × 'README'\)"):
        list_shards(SourceConfig(uri=str(tmp_path)))
