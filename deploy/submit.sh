#!/usr/bin/env bash
# Run a job on an existing Ray cluster with this checkout as its code, and exit with the job's own code:
#
#   RAY_ADDRESS=http://head:8265 RAY_AUTH_TOKEN=… deploy/submit.sh jobs.embed configs/embed/mxbai-2d-s3.yaml --embedding.dim 128
#
# Without RAY_AUTH_TOKEN the token is read from RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Without authentication: RAY_AUTH_MODE=disabled.
# `ray job submit` alone exits 1 for any failure. Here 2 (wrong settings) stays 2, so that a scheduler does not retry.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${RAY_ADDRESS:?the dashboard of the cluster, such as http://head:8265}"
: "${1:?a job and its arguments, such as jobs.embed configs/embed/quickstart.yaml}"
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
PYTHON="${PYTHON:-python}"

id="embedder-$(date -u +%Y%m%d-%H%M%S)-$$"
revision="$(git rev-parse HEAD 2>/dev/null || true)"
environment="$(EMBEDDER_REVISION="$revision" "$PYTHON" -c '
import json, os
variables = {name: os.environ[name] for name in ("EMBEDDER_REVISION", "EMBEDDER_LOG") if os.environ.get(name)}
print(json.dumps({"env_vars": variables, "excludes": ["/tests", "/deploy", "/.ci"]}))')"

job="$1"
shift
"$PYTHON" -m ray.scripts.scripts job submit --address "$RAY_ADDRESS" --submission-id "$id" --working-dir . \
    --runtime-env-json "$environment" -- python -m "$job" "$@" || true
# the log may break off while the job continues, so the job's own status decides
"$PYTHON" -c '
import sys
from ray.job_submission import JobSubmissionClient
job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
code = 0 if job.status == "SUCCEEDED" else job.driver_exit_code
sys.exit(f"{sys.argv[2]}: {job.status.lower()}; ray job logs {sys.argv[2]}" if code is None else code if code >= 0 else 128 - code)
' "$RAY_ADDRESS" "$id"
