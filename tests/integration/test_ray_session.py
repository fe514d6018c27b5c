"""The Ray of other tests, whose workers see this process's environment, and the start of Ray beside imports."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.s3
def test_workers_find_the_s3_server(ray_session: None, bucket: str) -> None:
    import ray

    from embedder.core.storage import Store

    write = ray.remote(lambda uri: Store(uri).write_once(b"from a worker"))
    assert ray.get(write.remote(f"{bucket}/part")) is True
    assert [each.uri for each in Store(bucket).list_files()] == [f"{bucket}/part"]


def test_workers_are_other_processes(ray_session: None) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()


@pytest.fixture(scope="module")
def output() -> subprocess.CompletedProcess[str]:
    """Output of a process that starts a run without the Ray of other tests, while one of its threads counts on stderr."""
    code = (
        "import atexit, os, ray, sys, threading, time\n"
        "from embedder.config.embed import EmbedConfig\n"
        "from embedder.run.embed import warm_up\n"
        "atexit.register(lambda: print('is up' if ray.is_initialized() else 'has ended'))  # runs between ours and Ray's\n"
        "warmed = threading.Event()\n"
        "def count():\n"
        "    number = 0\n"
        "    while not warmed.wait(0.01):\n"
        "        os.write(2, f'{number}\\n'.encode())\n"
        "        number += 1\n"
        "    print(number)\n"
        "counting = threading.Thread(target=count)\n"
        "counting.start()\n"
        "assert 'transformers' not in sys.modules\n"
        "warm_up(EmbedConfig.model_validate({'source': {'uri': 'corpus'}, 'embedding': {'model': 'm'}, 'output': {'uri': 't'}}))\n"
        "warmed.set()\n"
        "counting.join()\n"
        "assert 'transformers.models.auto.tokenization_auto' in sys.modules\n"
        "time.sleep(1)  # a node that ends with the thread that started it has ended by now\n"
        "print(ray.get(ray.remote(lambda: 'works').remote(), timeout=60))"
    )
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)


def test_a_ray_started_beside_imports_outlives_their_thread(output: subprocess.CompletedProcess[str]) -> None:
    assert output.stdout.split("\n")[1] == "works"


def test_the_job_shuts_its_ray_down_before_rays_slower_handler(output: subprocess.CompletedProcess[str]) -> None:
    assert output.stdout.endswith("has ended\n")


def test_only_rays_announcement_is_hidden_from_stderr_while_it_starts(output: subprocess.CompletedProcess[str]) -> None:
    written = int(output.stdout.split("\n")[0])
    assert written > 10
    assert sorted(map(int, output.stderr.split())) == list(range(written))
