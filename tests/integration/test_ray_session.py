"""The Ray that other tests stand on: its workers see what this process sees."""

import os
import subprocess
import sys

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


def test_a_ray_of_its_own_is_ended_by_the_job_and_not_by_rays_slower_way_out() -> None:
    code = (
        "import atexit, ray\n"
        "from embedder.pipeline import start_ray\n"
        "atexit.register(lambda: print('is up' if ray.is_initialized() else 'has ended'))  # goes between the two\n"
        "start_ray()\n"
        "assert ray.is_initialized()"
    )
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone).stdout == "has ended\n"
