"""A listing that is split by folders holds each file once, and its columns hold what its entries say."""

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.listing import Kind, find_version, mark_names, sort_entries, split_folders
from embedder.core.storage import Location

names = st.lists(st.text("ab/", min_size=1, max_size=8).filter(lambda name: not name.startswith("/")), max_size=30, unique=True)
NAMES = ["docs/a.jsonl", "docs/sub/", "docs/a?versionId=1", "docs//b", "docs/é", "docs/./c", "docs/..", "docs/d e+f,@.txt"]


def as_file(name: str) -> dict[str, Any]:
    return {"name": name, "type": "file", "size": len(name), "ETag": f'"{name}"'}


class Bucket:
    """A store of keys, listed as s3fs lists them."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = [f"docs/{key}" for key in keys]
        self.requests = 0

    def ls(self, path: str) -> list[dict[str, Any]]:
        self.requests += 1
        below = [key.removeprefix(f"{path}/") for key in self.keys if key.startswith(f"{path}/")]
        folders = {name.split("/")[0] for name in below if "/" in name}
        return [
            *({"name": f"{path}/{name}", "type": "directory", "size": 0} for name in sorted(folders)),
            *(as_file(f"{path}/{name}") for name in below if "/" not in name),
        ]

    def find(self, path: str) -> list[dict[str, Any]]:
        folder = path.rstrip("/")
        return [as_file(key) for key in self.keys if key.startswith(f"{folder}/")]


@settings(deadline=None)
@given(names)
def test_the_upper_entries_and_the_folders_below_hold_each_file_once(keys: list[str]) -> None:
    bucket = Bucket(keys)
    found, folders = split_folders("docs", bucket.ls, lambda function, items: [function(item) for item in items])
    assert len(folders) <= max(bucket.requests, len(keys), 1)
    found = [*found, *(info for folder in folders for info in bucket.find(folder))]
    assert sorted(info["name"] for info in found) == sorted(bucket.keys)


def test_a_folder_of_a_few_levels_takes_a_request_for_each_folder_above_the_split() -> None:
    bucket = Bucket([f"year=2024/month={month:02d}/{number}.jsonl" for month in range(1, 13) for number in range(3)])
    found, folders = split_folders("docs", bucket.ls, lambda function, items: [function(item) for item in items])
    assert (len(found), len(folders), bucket.requests) == (36, 0, 14)
    many = Bucket([f"{number}/a.jsonl" for number in range(40)])
    found, folders = split_folders("docs", many.ls, lambda function, items: [function(item) for item in items])
    assert (len(found), len(folders), many.requests) == (0, 40, 1)


def test_a_listing_is_not_split_into_more_folders_than_pages() -> None:
    wide = Bucket([f"{name}/{number}/x.jsonl" for name in "abc" for number in range(400)])
    found, folders = split_folders("docs", wide.ls, lambda function, items: [function(item) for item in items])
    assert (len(found), folders, wide.requests) == (0, ["docs/a", "docs/b", "docs/c"], 4)


def test_columns_hold_the_names_versions_and_sizes_of_files_and_other_entries_are_kept() -> None:
    infos = [*map(as_file, NAMES), {"name": "docs/folder", "type": "directory", "size": 0}, as_file("docs/\udce9")]
    sorted_ = sort_entries(mark_names(infos[:-1], lambda name: name.replace("/./", "/").rstrip("/")), "s3://")
    files = sorted_.files
    plain = ["docs/a.jsonl", "docs//b", "docs/é", "docs/..", "docs/d e+f,@.txt"]
    assert files.uris.to_pylist() == [f"s3://{name}" for name in plain]
    assert files.versions.to_pylist() == plain
    assert files.sizes.tolist() == list(map(len, plain))
    kinds = {each.uri: each.kind for each in sorted_.others}
    assert kinds == {
        "s3://docs/sub/": Kind.FOLDER_MARKER,
        "s3://docs/a?versionId=1": Kind.UNOPENABLE,
        "s3://docs/./c": Kind.UNOPENABLE,
        "s3://docs/folder": Kind.FOLDER,
    }
    assert [each.uri for each in sort_entries(infos, "").others] == ["docs/folder", "docs/\udce9"], "a name that is not UTF-8 has no column"


def test_versions_are_tags_without_quotes_or_sizes_and_times() -> None:
    infos = [
        as_file("a"),
        {"name": "b", "type": "file", "size": 7, "mtime": 1.5},
        {"name": "c", "type": "file", "size": 1, "generation": 3},
    ]
    for some in ([infos[0]], infos, infos[1:]):
        assert sort_entries(some, "").files.versions.to_pylist() == [find_version(info, info["size"])[0] for info in some]


def test_sizes_of_a_folder_are_those_of_its_files_and_of_the_targets_of_its_links(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    (tmp_path / "link.parquet").symlink_to("a.parquet")
    (tmp_path / "gone.parquet").symlink_to("nothing")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    (tmp_path / "folder").mkdir()
    assert Location(str(tmp_path)).open().list_sizes() == {"a.parquet": 5, "link.parquet": 5}
    assert Location(str(tmp_path / "missing")).open().list_sizes() == {}
