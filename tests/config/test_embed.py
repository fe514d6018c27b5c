"""Settings without effect on an API, or only with effect on one, are refused by name when the file is loaded."""

import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from embedder.calibrate.config import CalibrateConfig
from embedder.config.embed import EmbedConfig
from embedder.sweep.config import SweepConfig


def config(**sections: dict[str, Any]) -> EmbedConfig:
    values: dict[str, Any] = {"source": {"uri": "in"}, "embedding": {"model": "openai:m"}, "output": {"uri": "out"}}
    return EmbedConfig.model_validate(values | sections)


def test_a_model_behind_an_api_needs_only_its_name() -> None:
    assert config().embedding.is_api
    assert not config(embedding={"model": "some/model"}).embedding.is_api


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("depth", 3),
        ("final_norm", "skip"),
        ("pooling", "cls"),
        ("layer_norm", True),
        ("revision", "main"),
        ("exit", "native"),
        ("calibration", "c"),
        ("float8", True),
    ],
)
def test_an_api_refuses_settings_that_need_the_weights(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"{setting}={value!r}: 'openai:m' runs behind an API, which has no setting for it"):
        config(embedding={"model": "openai:m", setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("device", "cuda"),
        ("dtype", "float32"),
        ("layout", "packed"),
        ("token_budget", 9),
        ("num_gpus", 1.0),
        ("price_per_device_hour_usd", 2.0),
    ],
)
def test_an_api_refuses_settings_of_devices(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"compute.{setting}={value!r}: has no effect on 'openai:m'"):
        config(compute={setting: value})


def test_a_local_model_refuses_settings_of_an_api() -> None:
    here = {"model": "some/model"}
    with pytest.raises(ValidationError, match="base_url='http://x/v1': is for models named openai:NAME"):
        config(embedding=here | {"base_url": "http://x/v1"})
    with pytest.raises(ValidationError, match=r"compute.price_per_million_tokens_usd=1.0: is for models named openai:NAME"):
        config(embedding=here, compute={"price_per_million_tokens_usd": 1.0})
    with pytest.raises(ValidationError, match=r"chunking.late=true: 'openai:m' runs behind an API, which gives no token states"):
        config(embedding={"model": "openai:m"}, chunking={"late": True})
    with pytest.raises(ValidationError, match=r"chunking.tokenizer='t': is for models named openai:NAME"):
        config(embedding=here, chunking={"tokenizer": "t"})


def test_an_api_refuses_int8_an_empty_name_and_a_password() -> None:
    with pytest.raises(ValidationError, match=r"int8.*need the weights of 'openai:m'; choose none or binary"):
        config(embedding={"model": "openai:m", "quantization": "int8"})
    with pytest.raises(ValidationError, match="has no name"):
        config(embedding={"model": "openai:"})
    with pytest.raises(ValidationError, match="holds a password"):
        config(embedding={"model": "openai:m", "base_url": "https://me:pass@x/v1"})
    with pytest.raises(ValidationError, match="the layers of an API cannot be read"):
        CalibrateConfig.model_validate({"source": {"uri": "in"}, "embedding": {"model": "openai:m"}, "output": {"uri": "out"}})


@pytest.mark.parametrize("config_type", [CalibrateConfig, SweepConfig])
def test_jobs_that_embed_chunks_alone_refuse_late_chunking(config_type: type[BaseModel]) -> None:
    sections = {"source": {"uri": "in"}, "embedding": {"model": "m"}, "output": {"uri": "out"}, "chunking": {"late": True}}
    with pytest.raises(ValidationError, match=r"chunking.late=true: .*; leave it out"):
        config_type.model_validate(sections)


def test_html_has_an_effect_without_boundaries_or_chunks() -> None:
    assert config(chunking={"text_format": "html", "enabled": False}).chunking.reads_format


@pytest.mark.parametrize(
    ("chunking", "problem"),
    [
        ({"template": "{title}"}, "holds {chunk} 0 times"),
        ({"context_tokens": 9}, "context_tokens=9: has no effect without a template"),
        ({"boundaries": ["word", "sentence"]}, "name some of heading, paragraph, sentence, word, each once, in this order, word last"),
        ({"boundaries": ["sentence"]}, "word last"),
        ({"boundaries": ["sentence", "word"], "enabled": False}, "has no effect with enabled=false"),
        ({"min_tokens": 8, "enabled": False}, "min_tokens=8: has no effect with enabled=false"),
        ({"template": "{headings} {chunk}", "enabled": False}, "all chunks start their document, before any {headings}"),
        ({"boundaries": ["heading", "word"], "text_format": "plain"}, "text_format='plain': has no headings"),
        ({"late": True, "enabled": False}, "late=true: has no effect with enabled=false"),
        ({"late": True, "template": "{headings} {chunk}"}, "late=true: a pass holds the headings' own text"),
        ({"text_format": "markdown"}, "text_format='markdown': has no effect without boundaries"),
    ],
)
def test_chunking_without_effect_or_sense_is_refused(chunking: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        config(chunking=chunking)
