#!/usr/bin/env bash
# Run a job on a Ray cluster that is there already, with this checkout as its code, and end with the job's own exit code:
#
#   RAY_ADDRESS=http://head:8265 RAY_AUTH_TOKEN=… deploy/submit.sh jobs.embed configs/embed/mxbai-2d-s3.yaml --embedding.dim 128
#
# Without RAY_AUTH_TOKEN the token is read from RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; RAY_AUTH_MODE=disabled: the cluster asks for none.
# `ray job submit` alone ends with 1 for any failure; here 2 (wrong settings) stays 2, so that a scheduler knows not to try again.
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
# the log may have broken off while the job goes on: only its own word counts
"$PYTHON" -c '
import sys
from ray.job_submission import JobSubmissionClient
job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
code = 0 if job.status == "SUCCEEDED" else job.driver_exit_code
sys.exit(f"{sys.argv[2]}: {job.status.lower()}; ray job logs {sys.argv[2]}" if code is None else code if code >= 0 else 128 - code)
' "$RAY_ADDRESS" "$id"
