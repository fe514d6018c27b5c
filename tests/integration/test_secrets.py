"""Credentials in the settings, against advice, are written nowhere."""

import json
import logging

import pytest

from embedder.core.errors import EmbedderError
from embedder.core.storage import Store
from embedder.demo.s3_server import S3Server
from embedder.table.parts import read_footer
from tests.integration.conftest import Site, documents

pytestmark = pytest.mark.s3


def test_a_secret_in_storage_options_is_in_no_log_error_record_or_footer(
    s3_server: S3Server, bucket: str, make_site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG, "embedder")
    monkeypatch.setattr(logging.getLogger("embedder"), "propagate", True)
    site: Site = make_site(bucket)
    site.corpus.put("a.jsonl", [*documents(0, 12), "{bad"])
    site.corpus.put_bytes("broken.parquet", b"PAR1 not really" + bytes(300_000))  # large, so that it shares no bucket
    secret = s3_server.secret_key
    options = {"storage_options": {"key": s3_server.access_key, "secret": secret, "endpoint_url": s3_server.endpoint}}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    summary = site.embed(source=options, output=options)
    assert summary.version == 0
    wrong = {"storage_options": {**options["storage_options"], "secret": f"{secret}-but-wrong"}}
    with pytest.raises(EmbedderError) as refused:
        site.embed(source=wrong, output=wrong)

    found = Store(site.table_uri, options["storage_options"]).list_files()
    stores = [Store(each.uri, options["storage_options"]) for each in found]
    logs = [store.fs.cat_file(store.path).decode() for store in stores if "_delta_log" in store.uri]
    footers = [str(read_footer(store)) for store in stores if store.uri.endswith(".parquet") and "/_" not in store.uri]
    assert any('"secret":"***"' in log.replace(" ", "") for log in logs)
    assert footers
    for text in (*logs, *footers, str(refused.value), caplog.text, summary.text(), json.dumps(summary.record())):
        assert secret not in text
