"""The Ray that other tests stand on: its workers see what this process sees."""

import os

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.s3
def test_workers_find_the_s3_server(ray_session: None, bucket: str) -> None:
    import ray

    from embedder.storage import Store

    write = ray.remote(lambda uri: Store(uri).write_once(b"from a worker"))
    assert ray.get(write.remote(f"{bucket}/part")) is True
    assert [each.uri for each in Store(bucket).list_files()] == [f"{bucket}/part"]


def test_workers_are_other_processes(ray_session: None) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
