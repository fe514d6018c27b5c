"""Settings of a sweep and a calibration."""

import pytest

from embedder.calibrate.config import AttentionSettings, CalibrateConfig, CalibrateSettings
from embedder.sweep.config import GridConfig, QualityConfig, SweepConfig


def test_one_value_is_a_list_of_one() -> None:
    assert GridConfig.model_validate({"depths": "6", "dims": 128, "precisions": "int8"}).depths == (6,)
    assert QualityConfig.model_validate({"mteb": "SciFact"}).mteb == ("SciFact",)
    assert CalibrateSettings.model_validate({"depths": "6"}).depths == (6,)
    assert CalibrateSettings.model_validate({"depths": None}).depths is None


def test_too_few_chunks_for_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks=1: too few for one step; choose 0 to skip training, or at least 4"):
        AttentionSettings(chunks=1)
    assert AttentionSettings(chunks=0).chunks == 0
    assert AttentionSettings(chunks=4).chunks == 4


def test_a_counter_of_an_apis_tokens_is_refused_without_an_api() -> None:
    values = {"source": {"uri": "s"}, "embedding": {"model": "m"}, "chunking": {"tokenizer": "m"}, "output": {"uri": "o"}}
    for config in (CalibrateConfig, SweepConfig):
        with pytest.raises(ValueError, match=r"chunking\.tokenizer='m': is for models named openai:NAME; leave it out"):
            config.model_validate(values)


def test_so_few_documents_that_a_hundred_are_all_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 100"):
        QualityConfig(max_documents=100)


@pytest.mark.parametrize("output", ["corpus/sweep", "corpus", "corpus/"])
def test_a_report_is_not_written_among_the_documents(output: str) -> None:
    values = {"source": {"uri": "corpus/"}, "embedding": {"model": "m"}, "output": {"uri": output}}
    with pytest.raises(ValueError, match=r"is inside source.uri='corpus/', so report\.csv would become a shard"):
        SweepConfig.model_validate(values)
    SweepConfig.model_validate(values | {"output": {"uri": "corpus-sweep"}})


@pytest.mark.parametrize("quality", [{"qrels": "dev"}, {"max_documents": 500}])
def test_a_setting_of_beir_is_refused_without_beir(quality: dict[str, object]) -> None:
    values = {"source": {"uri": "corpus"}, "embedding": {"model": "m"}, "output": {"uri": "out"}}
    with pytest.raises(ValueError, match=rf"quality\.{next(iter(quality))}=.* has no effect without quality\.beir"):
        SweepConfig.model_validate(values | {"quality": quality})
    SweepConfig.model_validate(values | {"quality": quality | {"beir": ["folder"]}})
