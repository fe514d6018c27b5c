"""The S3 server of other tests: put-if-absent, listing and the environment."""

import os

import pytest

from embedder.core.storage import Store
from embedder.demo.s3_server import S3Server

pytestmark = pytest.mark.s3


def test_the_first_writer_wins(bucket: str) -> None:
    uri = f"{bucket}/folder/part.bin"
    assert Store(uri).write_once(b"first")
    assert not Store(uri).write_once(b"second, and longer")
    with Store(uri).open_input() as file:
        assert file.read() == b"first"


def test_a_listing_has_every_object_below_with_a_version(bucket: str) -> None:
    for name in ("b/2.txt", "a.txt"):
        Store(f"{bucket}/{name}").write_once(name.encode())
    found = Store(bucket).list_files()
    assert [each.uri for each in found] == [f"{bucket}/a.txt", f"{bucket}/b/2.txt"]
    assert [each.size_bytes for each in found] == [5, 7]
    assert len({each.version for each in found}) == 2


def test_each_test_has_an_empty_prefix(bucket: str) -> None:
    assert Store(bucket).list_files() == []


def test_the_environment_names_the_server(s3_server: S3Server) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == s3_server.endpoint


def test_a_location_can_be_written(location: str) -> None:
    assert Store(f"{location}/x").write_once(b"x")
