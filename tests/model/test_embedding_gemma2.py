"""The part for texts of a model of several modalities gives the vectors of the whole model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from embedder.config.compute import Layout
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.model.encoder import Encoder
from embedder.model.files.model_config import load_config
from embedder.model.files.recipe import peek_model, read_recipe
from embedder.model.files.st_layout import read_layout
from embedder.model.model_report import describe_model
from embedder.search.code_snippet import write_snippet
from tests.model.conftest import CONFIGS, TinyModel
from tests.model.files.test_families import cosines
from tests.model.files.test_recipe import edit

FAMILY = "embedding_gemma2_text"
PLAIN = {"method": "forward", "method_output_name": "last_hidden_state"}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def whole(tiny_models: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model for texts and images; token 5 is an image's placeholder."""
    folder = Path(shutil.copytree(tiny_models(FAMILY).folder, tmp_path_factory.mktemp("whole") / "model"))
    text = transformers.EmbeddingGemma2TextConfig(**CONFIGS[FAMILY][1])
    config = transformers.EmbeddingGemma2Config(
        text_config=text.to_dict(), vision_config=dict(VISION), image_token_id=5, video_token_id=999, audio_token_id=None
    )
    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(folder)
    modalities = {"text": PLAIN, "image": PLAIN, "image+text": PLAIN}
    edit(folder / "sentence_bert_config.json", modality_config=modalities, module_output_name="token_embeddings")
    return TinyModel(folder, FAMILY)


@pytest.fixture
def edited(whole: TinyModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.folder, tmp_path / "model"))


def test_texts_have_the_vectors_of_the_whole_model(whole: TinyModel, texts: list[str]) -> None:
    ids, spec = whole.tokenize([*texts[:6], "the cat"]), whole.resolve().spec
    assert (spec.depth, spec.dim, spec.final_norm) == (4, 80, "apply")
    assert [5 in row for row in ids.to_pylist()].count(True) > 1, "placeholders among the texts"
    full = AutoModel.from_pretrained(whole.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = np.stack([full(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in ids.to_pylist()])
    for dtype, layout, least in (("float32", "padded", 0.99999), ("float32", "packed", 0.99999), ("bfloat16", "padded", 0.99)):
        encoder = Encoder.load(spec, dtype=dtype, layout=cast(Layout, layout))
        assert cosines(encoder.encode(ids, 512).vectors_ND, expected).min() >= least


def test_a_report_and_a_peek_hold_the_sizes_of_the_part_and_of_its_projection(whole: TinyModel) -> None:
    report = describe_model(str(whole.folder), None)
    assert (report["runs"], report["family"], report["layers"], report["hidden_size"]) == (True, FAMILY, 4, 64)
    assert (report["components"], report["modules"]) == (80, ["dense 64→80"])
    assert peek_model(str(whole.folder), None) == (4, 80)
    assert load_config(read_layout(whole.folder)).model_type == FAMILY


def test_the_snippet_names_the_layers_of_the_part(whole: TinyModel, tmp_path: Path) -> None:
    snippet = write_snippet(whole.resolve(depth=2, final_norm="skip").spec, Location(str(tmp_path)))
    assert "model[0].auto_model.language_model.layers = model[0].auto_model.language_model.layers[:2]" in snippet
    assert "model[0].auto_model.language_model.norm = torch.nn.Identity()" in snippet


@pytest.mark.parametrize(("pooling", "where"), [("max", "setting"), ("max", "files"), (["mean", "cls"], "files")])
def test_a_pooling_that_does_not_commute_with_the_projection_is_refused(edited: Path, pooling: Any, where: str) -> None:
    if where == "files":
        edit(edited / "1_Pooling" / "config.json", pooling_mode=pooling)
    settings = {"pooling": pooling} if where == "setting" else {}
    with pytest.raises(ConfigError, match=r"pooling.* project.*choose among mean, cls, last, weightedmean, mean_sqrt_len"):
        TinyModel(edited, FAMILY).resolve(**settings)


def test_a_chat_template_and_an_adapter_are_refused_by_name(edited: Path) -> None:
    (edited / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: not supported beside embedding_projection; merge it"):
        TinyModel(edited, FAMILY).resolve()
    edit(edited / "sentence_bert_config.json", modality_config={"text": PLAIN, "message": PLAIN | {"format": "structured"}})
    with pytest.raises(ConfigError, match=r"sentence_bert_config\.json: modality_config has 'message': a chat template"):
        TinyModel(edited, FAMILY).resolve()


def test_missing_and_unknown_weights_are_refused(edited: Path) -> None:
    tensors = load_file(edited / "model.safetensors")
    assert read_recipe(edited).steps[0].weight_names[1] in tensors
    save_file(tensors | {"language_model.extra.weight": torch.ones(1)}, edited / "model.safetensors")
    with pytest.raises(ConfigError, match=r"the weights hold extra\.weight"):
        TinyModel(edited, FAMILY).resolve()
    del tensors["language_model.embedding_projection.weight"]
    save_file(tensors, edited / "model.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit config\.json \(embedding_projection\.weight"):
        TinyModel(edited, FAMILY).resolve()
