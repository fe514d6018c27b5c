"""Options of fsspec → those of the Delta and Lance readers and writers."""

import os
from collections.abc import Mapping

from embedder.core.retry import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS
from embedder.core.storage import Options

_DELTA_RETRIES: Mapping[str, str] = {
    "max_retries": "100",
    "retry_timeout": f"{PATIENCE_SECONDS / 2:.0f}s",
    "backoff_config.init_backoff": "200ms",
    "backoff_config.max_backoff": f"{LONGEST_PAUSE_SECONDS:.0f}s",
    "connect_timeout": "10s",
    "timeout": "60s",
}
"""delta-rs retries a busy server, but not a commit whose connection broke or a truncated response."""


def delta_options(uri: str, options: Options) -> dict[str, str]:
    """Return fsspec's s3 options as options of the Delta writer; credentials stay in the environment for both."""
    if "://" not in uri:
        return {}
    if not uri.startswith(("s3://", "s3a://")):
        return dict(_DELTA_RETRIES)
    client = options.get("client_kwargs") or {}
    environ = os.environ
    endpoint = options.get("endpoint_url") or client.get("endpoint_url")
    given = {
        "aws_endpoint_url": endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
        "aws_region": client.get("region_name") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
        "aws_access_key_id": options.get("key"),
        "aws_secret_access_key": options.get("secret"),
        "aws_session_token": options.get("token"),
        "aws_skip_signature": "true" if options.get("anon") else None,
    }
    named = dict(_DELTA_RETRIES) | {name: str(value) for name, value in given.items() if value}
    if named.get("aws_endpoint_url", "").startswith("http://"):
        named["aws_allow_http"] = "true"
    if "aws_endpoint_url" in named:
        named.setdefault("aws_region", "us-east-1")
    return named
