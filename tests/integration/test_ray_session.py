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
    assert run_alone(code).stdout == "has ended\n"


def test_a_ray_begun_beside_the_imports_of_a_model_outlives_its_thread() -> None:
    code = (
        "import sys, time, ray\n"
        "from embedder.config import EmbedConfig\n"
        "from embedder.run import begin_run\n"
        "assert 'transformers' not in sys.modules\n"
        "begin_run(EmbedConfig.model_validate({'source': {'uri': 'corpus'}, 'embedding': {'model': 'm'}, 'output': {'uri': 't'}}))\n"
        "assert 'transformers.models.auto.tokenization_auto' in sys.modules\n"
        "time.sleep(1)  # a node that ends with a thread has ended by now\n"
        "print(ray.get(ray.remote(lambda: 'works').remote(), timeout=60))"
    )
    assert run_alone(code).stdout == "works\n"


def test_only_rays_announcement_is_kept_from_stderr_while_it_starts() -> None:
    code = (
        "import os, threading\n"
        "from embedder.pipeline import start_ray\n"
        "started = threading.Event()\n"
        "def count():\n"
        "    number = 0\n"
        "    while not started.wait(0.01):\n"
        "        os.write(2, f'{number}\\n'.encode())\n"
        "        number += 1\n"
        "    print(number)\n"
        "counting = threading.Thread(target=count)\n"
        "counting.start()\n"
        "start_ray()\n"
        "started.set()\n"
        "counting.join()"
    )
    done = run_alone(code)
    assert done.stderr.split() == [str(number) for number in range(int(done.stdout))]
    assert int(done.stdout) > 10


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the Ray of other tests."""
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)
