"""The settings of a study: a single value where a list is wanted is a list of one."""

from embedder.study.config import CalibrateSettings, GridConfig, QualityConfig


def test_one_value_is_a_list_of_one() -> None:
    assert GridConfig.model_validate({"depths": "6", "dims": 128, "precisions": "int8"}).depths == (6,)
    assert QualityConfig.model_validate({"mteb": "SciFact"}).mteb == ("SciFact",)
    assert CalibrateSettings.model_validate({"depths": "6"}).depths == (6,)
    assert CalibrateSettings.model_validate({"depths": None}).depths is None
