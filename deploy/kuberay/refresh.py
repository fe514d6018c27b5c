"""Create a RayJob and wait for its end, or wait for one that still runs; exit 0 if it succeeded. Needs only a pod's service account.

python deploy/kuberay/refresh.py rayjob.yaml
"""

import json
import os
import ssl
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDENTITY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABELS = "app.kubernetes.io/name=embedder"
ENDED = ("Complete", "Failed", "ValidationFailed")
POLL_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
"""Retry an API server that does not answer for this long: upgrades replace it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The API server and the namespace of a pod."""

    url: str
    identity: Path

    def call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Return RayJobs of the namespace, or create one from YAML."""
        namespace = (self.identity / "namespace").read_text().strip()
        url = f"{self.url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}"
        # read for each call, since the platform rotates the token hourly
        headers = {"Authorization": f"Bearer {(self.identity / 'token').read_text().strip()}", "Content-Type": "application/yaml"}
        context = ssl.create_default_context(cafile=str(self.identity / "ca.crt")) if url.startswith("https:") else None
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return dict(json.load(answer))


def find_running(cluster: Cluster) -> str | None:
    """Return the name of a RayJob of this project that has not ended."""
    listed = cluster.call(f"?labelSelector={urllib.parse.quote(LABELS)}")["items"]
    return next((each["metadata"]["name"] for each in listed if status_of(each) not in ENDED), None)


def status_of(job: dict[str, Any]) -> str:
    """Return the deployment status of a RayJob; empty before KubeRay sets it."""
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def wait(cluster: Cluster, name: str, poll_seconds: float) -> int:
    """Wait for a RayJob's end and print each change; return 0 if it succeeded."""
    seen, deadline = None, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            job = cluster.call(f"/{name}")
        except (TimeoutError, ConnectionError, urllib.error.URLError) as error:
            if (isinstance(error, urllib.error.HTTPError) and error.code < 500) or time.monotonic() > deadline:
                print(f"{name}: status is unknown ({error}); it may still run, and the next refresh waits for it", flush=True)
                return 1
            time.sleep(poll_seconds)
            continue
        deadline = time.monotonic() + PATIENCE_SECONDS
        status = status_of(job)
        if status != seen:
            print(f"{name}: {status or 'created'} {job.get('status', {}).get('message', '')}".rstrip(), flush=True)
            seen = status
        if status in ENDED:
            return 0 if status == "Complete" and job["status"].get("jobStatus") == "SUCCEEDED" else 1
        time.sleep(poll_seconds)


def refresh(cluster: Cluster, manifest: bytes, poll_seconds: float = POLL_SECONDS) -> int:
    """Wait for a running refresh, or create one and wait for it."""
    running = find_running(cluster)
    if running:
        print(f"{running} still runs; waiting for it instead of creating another one", flush=True)
    return wait(cluster, running or cluster.call("", manifest)["metadata"]["name"], poll_seconds)


if __name__ == "__main__":
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    sys.exit(refresh(Cluster(f"https://{host}:{port}", IDENTITY), Path(sys.argv[1]).read_bytes()))
