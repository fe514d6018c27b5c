"""Files in deploy/ are valid, fit together, and name only existing files, modules and settings."""

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RAYJOB = DEPLOY / "kuberay/rayjob.yaml"
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
CLUSTERS = sorted(DEPLOY.glob("cluster-*.yaml"))
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".sh", ".py") or path.name == "Dockerfile")
KUBERNETES = "1.34"
PINS = dict(line.split("==") for line in (DEPLOY / "constraints.txt").read_text().splitlines() if "==" in line)
SPOT_TAINTS = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def rayjob() -> dict[str, Any]:
    return documents(RAYJOB)[0]


def groups() -> list[dict[str, Any]]:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_built_in_kinds_match_kubernetes_schemas(path: Path) -> None:
    for document in documents(path):
        if document["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pods_of_a_rayjob_match_kubernetes_schemas() -> None:
    for group in groups():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_rayjob_has_only_fields_of_kuberay() -> None:
    known = {
        "spec": {
            "entrypoint", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
        },
        "cluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"},
        "head": {"rayStartParams", "template"},
        "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    }  # fmt: skip
    job, cluster = rayjob(), rayjob()["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"], set(job)) == ("ray.io/v1", "RayJob", {"apiVersion", "kind", "metadata", "spec"})
    assert set(job["spec"]) <= known["spec"]
    assert set(cluster) <= known["cluster"]
    assert set(cluster["headGroupSpec"]) == known["head"]
    assert all(set(group) == known["worker"] for group in cluster["workerGroupSpecs"])
    assert all(isinstance(value, str) for group in groups() for value in group["rayStartParams"].values())
    assert set(cluster["autoscalerOptions"]) <= {"idleTimeoutSeconds", "resources"}
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_rayjob_retries_on_new_clusters_and_leaves_none_behind() -> None:
    spec = rayjob()["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["rayVersion"] == PINS["ray"]


def test_the_head_has_no_gpu_and_no_cpu_to_schedule_on() -> None:
    head = groups()[0]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in json.dumps(head)


def test_gpu_workers_scale_from_zero_to_the_actors_of_the_config() -> None:
    _, gpu, cpu = groups()
    assert rayjob()["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert [(group["replicas"], group["minReplicas"]) for group in (gpu, cpu)] == [(0, 0), (0, 0)]
    config = load_config(EmbedConfig, shlex.split(rayjob()["spec"]["entrypoint"])[3:]).config
    assert config.compute.device == "cuda"  # auto would inspect a cluster without GPUs
    assert config.compute.actors is not None
    assert config.compute.actors[1] == gpu["maxReplicas"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(cpu)


def test_workers_run_on_spot_machines_and_have_time_to_drain() -> None:
    for group in groups()[1:]:
        pod = group["template"]["spec"]
        assert {each["key"] for each in pod["tolerations"]} >= SPOT_TAINTS
        stop = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        grace = int(re.fullmatch(r"ray stop --grace-period (\d+)", stop)[1])  # type: ignore[index]
        assert pod["terminationGracePeriodSeconds"] >= grace + 15


def test_pods_run_without_root_and_without_keys() -> None:
    cron = documents(DEPLOY / "kuberay/cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]
    for pod in [cron["spec"], *(group["template"]["spec"] for group in groups())]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    accounts = {each["metadata"]["name"] for each in documents(DEPLOY / "kuberay/setup.yaml") if each["kind"] == "ServiceAccount"}
    assert accounts == {cron["spec"]["serviceAccountName"], *(group["template"]["spec"]["serviceAccountName"] for group in groups())}
    assert not re.search(r"secret_?key|access_key|password", "".join(path.read_text() for path in MANIFESTS + CLUSTERS), re.IGNORECASE)


def test_refreshes_do_not_overlap() -> None:
    spec = documents(DEPLOY / "kuberay/cronjob.yaml")[0]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    mounted = spec["jobTemplate"]["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert f"configmap {mounted} --from-file={name_of(RAYJOB)}" in (DEPLOY / "kuberay/cronjob.yaml").read_text()


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_clusters_match_rays_schema(path: Path) -> None:
    cluster = documents(path)[0]
    jsonschema.validate(cluster, json.loads((files("ray") / "autoscaler/ray-schema.json").read_text()))
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, cluster["max_workers"])
    assert re.search("spot", json.dumps(types["gpu"]), re.IGNORECASE)
    image = cluster["docker"]["image"].rpartition(":")[2]
    assert ["embedder", "AS", image] in [rest for word, rest in instructions("Dockerfile") if word == "FROM"]


def test_the_launchers_image_has_the_programs_that_ray_calls_on_the_head() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert {"openssh-client", "rsync"} <= set(text.split())
    assert "HOME=/home/embedder" in text  # Ray reads it from the image, and would take root's
    assert ".[gcs,azure,launcher]" in text


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_named_files_and_modules_exist(path: Path) -> None:
    text = path.read_text()
    for named in re.findall(r"(?<![\w/.])(?:configs|deploy|embedder|jobs|tests)/[\w/.-]*\w", text):
        assert (ROOT / named).exists(), f"{name_of(path)} names {named}"
    for module in re.findall(r"\bjobs\.[a-z]+", text):
        assert find_spec(module), f"{name_of(path)} names {module}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_settings_in_commands_load(path: Path) -> None:
    text = re.sub(r"\\\n[#\s]*", "", path.read_text())
    for line in re.findall(r"jobs\.embed (configs/\S+\.yaml[^\n#}\"]*)", text):
        load_config(EmbedConfig, shlex.split(line))


def test_scripts_parse() -> None:
    for script in DEPLOY.rglob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111
        assert "set -euo pipefail" in script.read_text()


def instructions(name: str) -> Iterator[tuple[str, list[str]]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / name).read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.split()


def test_the_image_is_pinned_runs_without_root_and_copies_existing_files() -> None:
    listed = list(instructions("Dockerfile"))
    stages = {rest[2] for word, rest in listed if word == "FROM"}
    outside = [rest[0] for word, rest in listed if word == "FROM" and rest[0] not in stages and "$" not in rest[0]]
    assert outside
    assert all(re.fullmatch(r"[\w/.]+:\d+\.\d+\.\d+-[\w-]+", image) for image in outside)
    assert stages >= {"torch-cuda", "torch-cpu"}
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for _, rest in (each for each in listed if each[0] == "COPY"):
        for source in rest[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), f"{source} is kept from docker"
    users = {rest[0] for word, rest in listed if word == "USER"}
    assert users == {"root", "1000"}
    assert [word for word, _ in listed[-2:]] == ["USER", "FROM"]  # of the launcher's stage, and of the default target
    assert (listed[-2][1], listed[-1][1][0]) == (["1000"], "embedder")
    assert {group["template"]["spec"]["securityContext"]["runAsUser"] for group in groups()} == {1000}


@dataclass
class ApiServer:
    """A Kubernetes API server for RayJobs that returns the given states, one a request."""

    states: list[dict[str, str]]
    running: str | None = None
    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        assert path.startswith("/apis/ray.io/v1/namespaces/night/rayjobs")
        if body:
            self.created.append(yaml.safe_load(body))
            return {"metadata": {"name": "embedder-refresh-new"}}
        if "labelSelector" in path:
            assert path.endswith("?labelSelector=app.kubernetes.io/name%3Dembedder")
            items = [{"metadata": {"name": "old"}, "status": {"jobDeploymentStatus": "Complete"}}]
            return {"items": items + ([{"metadata": {"name": self.running}}] if self.running else [])}
        return {"metadata": {"name": path.rsplit("/", 1)[-1]}, "status": self.states.pop(0)}


@contextmanager
def serve(server: ApiServer) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.tokens.add(self.headers["Authorization"])
            data = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield
        finally:
            http.shutdown()
            thread.join()


def run_refresh(server: ApiServer, identity: Path) -> int:
    spec = spec_from_file_location("refresh", DEPLOY / "kuberay/refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    (identity / "namespace").write_text("night\n")
    (identity / "token").write_text("a-token\n")
    with serve(server):
        return int(module.refresh(module.Cluster(server.url, identity), RAYJOB.read_bytes(), poll_seconds=0.01))


RUNNING, DONE = {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def test_a_refresh_creates_its_rayjob_and_ends_when_that_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = ApiServer([{}, RUNNING, RUNNING, DONE])
    assert run_refresh(server, tmp_path) == 0
    assert server.created == [rayjob()]
    assert server.tokens == {"Bearer a-token"}
    assert capsys.readouterr().out.splitlines() == [f"embedder-refresh-new: {word}" for word in ("created", "Running", "Complete")]


def test_a_refresh_waits_for_another_running_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = ApiServer([RUNNING, DONE], running="embedder-refresh-last-night")
    assert run_refresh(server, tmp_path) == 0
    assert server.created == []
    assert "embedder-refresh-last-night still runs" in capsys.readouterr().out


@pytest.mark.parametrize("end", [{"jobDeploymentStatus": "Failed", "message": "why"}, {**DONE, "jobStatus": "STOPPED"}])
def test_a_refresh_whose_rayjob_fails_ends_in_exit_1(tmp_path: Path, end: dict[str, str]) -> None:
    assert run_refresh(ApiServer([RUNNING, end]), tmp_path) == 1
