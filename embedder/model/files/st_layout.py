"""A folder in sentence-transformers layout → pooling, prompts, lengths and the modules after pooling.

Every key that can change a vector is either used or raises a ModelError that names it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedder.core.errors import ModelError
from embedder.core.spec import Pooling, Route
from embedder.model.files.json_files import file_errors, read_json
from embedder.model.files.router import expand_routers

ACTIVATIONS = ["torch.nn.modules.linear.Identity"]
ACTIVATIONS += [f"torch.nn.modules.activation.{name}" for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")]
"""Classes of torch.nn, by the full name that Dense modules store."""

POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
    "weightedmean": "weightedmean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DOCUMENT_PROMPTS = ("document", "passage", "corpus", "retrieval.passage")
_QUERY_PROMPTS = ("query", "retrieval.query")
_WIDTH_KEYS = {"embedding_dimension", "word_embedding_dimension"}
_CONFIG_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TRANSFORMER_CONFIGS = [f"sentence_{name}_config.json" for name in _CONFIG_FAMILIES]
_HARMLESS_ARGUMENTS = {"dtype", "torch_dtype", "attn_implementation", "padding_side", "use_fast", "trust_remote_code", "use_cache"}
_HARMLESS_ARGUMENTS |= {"safe_serialization", "add_pooling_layer"}
REMOTE_MODULE = "custom_st.Transformer"
"""Module of jina-embeddings, a Transformer that merges an adapter; without others, it pools the last token and normalizes."""
_FIRST = {"Transformer", "Pooling", "StaticEmbedding"}
STATIC_TOKENS = 512
"""Default length of a chunk for a static embedding, which has no limit."""
_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True, slots=True)
class Step:
    """One module between pooling and truncation."""

    kind: Literal["dense", "layer_norm", "normalize"]
    folder: Path
    in_features: int = 0
    out_features: int = 0
    bias: bool = True
    activation: str = "Identity"
    weight_names: tuple[str, ...] = ()
    """Names that the weight may have if it is one of the transformer's."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a model's files."""

    document: str = ""
    query: str = ""
    names: tuple[str, ...] = ()
    """Names of all prompts that are not empty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Settings of a model's folder."""

    transformer_folder: Path
    """Folder of config, tokenizer and weights; the model's own folder without modules.json."""
    pooling: Pooling
    is_static: bool = False
    """Whether a table of token vectors takes the transformer's place."""
    has_remote_module: bool = False
    """Whether the transformer's module is jina's own."""
    include_prompt: bool = True
    max_seq_length: int | None = None
    lower_case: bool = False
    """Whether texts are lower-cased before the tokenizer's own normalizer."""
    steps: tuple[Step, ...] = ()
    """Modules between pooling and truncation, in order."""
    module_folders: tuple[Path, ...] = ()
    routers: tuple[Path, ...] = ()
    """Configs of Routers, of which there is one if documents and queries take different modules."""
    is_bare: bool = False
    """Whether there is no modules.json, so that pooling is a guess."""
    ends_normalized: bool = False
    """Whether the last module is Normalize."""
    similarity: str | None = None
    """similarity_fn_name: cosine, dot, euclidean or manhattan."""
    prompts: Prompts = field(default_factory=Prompts)
    truncate_dim: int | None = None


def read_layout(folder: Path, route: Route = "document") -> Layout:
    """Read modules.json and the files it names; without it, return sentence-transformers' defaults for a bare transformer.

    The route chooses among the modules of a Router.
    """
    if not (folder / "modules.json").is_file():
        return Layout(folder, _bare_pooling(read_json(folder / "config.json")), is_bare=True)
    modules, has_remote_module, routers = _list_modules(folder, route)
    kinds = [kind for kind, _ in modules]
    is_static = kinds[:1] == ["StaticEmbedding"]
    own = 1 if is_static else 2
    if kinds[:own] != (["StaticEmbedding"] if is_static else ["Transformer", "Pooling"]) or not _FIRST.isdisjoint(kinds[own:]):
        raise ModelError(
            f"modules.json: {' → '.join(kinds) or 'no module'} is not supported; start with one Transformer and one Pooling, "
            "or with a StaticEmbedding"
        )
    transformer_folder = modules[0][1]
    pooling: Pooling = "mean"
    include_prompt = True
    if not is_static:
        pooling, include_prompt = _read_pooling(modules[1][1])
    if modules[1:] and modules[1][1].name == REMOTE_MODULE:
        pooling = "last"
    with file_errors("sentence_*_config.json"):
        max_seq_length, lower_case = (STATIC_TOKENS, False) if is_static else _read_transformer(transformer_folder)
    steps = [_read_step(kind, path) for kind, path in modules[own:] if kind != "Dropout"]
    # a final Normalize is the spec's `normalize`, which follows truncation
    ends_normalized = bool(steps) and steps[-1].kind == "normalize"
    while steps and steps[-1].kind == "normalize":
        steps.pop()
    with file_errors("config_sentence_transformers.json"):
        prompts, similarity, truncate_dim = _read_usage(folder)
    return Layout(
        transformer_folder=transformer_folder,
        pooling=pooling,
        is_static=is_static,
        has_remote_module=has_remote_module,
        include_prompt=include_prompt,
        max_seq_length=max_seq_length,
        lower_case=lower_case,
        steps=tuple(steps),
        routers=routers,
        module_folders=tuple(path for _, path in modules[1:] if path.is_dir()),
        ends_normalized=ends_normalized,
        similarity=similarity,
        prompts=prompts,
        truncate_dim=truncate_dim,
    )


def read_layouts(folder: Path) -> tuple[Layout, ...]:
    """Read the layout, or with a Router those of documents and of queries."""
    layout = read_layout(folder)
    return (layout, read_layout(folder, "query")) if layout.routers else (layout,)


def _bare_pooling(config: dict[str, Any]) -> Pooling:
    architectures = config.get("architectures") or [""]
    return "last" if architectures[0].endswith("ForCausalLM") and config.get("is_causal", True) else "mean"


def _list_modules(folder: Path, route: Route) -> tuple[list[tuple[str, Path]], bool, tuple[Path, ...]]:
    """Return each module's kind and folder, in order, whether the first is jina's own, and the configs of Routers."""
    try:
        entries = [(str(entry["type"]), str(entry["path"])) for entry in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"modules.json: expected a list of modules with type and path ({error!r})") from error
    entries, routers = expand_routers(folder, entries, route)
    has_remote_module = [full_name for full_name, _ in entries[:1]] == [REMOTE_MODULE]
    for full_name, path in entries:
        if not full_name.startswith("sentence_transformers.") and not (has_remote_module and full_name == REMOTE_MODULE):
            raise ModelError(f"modules.json: module {full_name!r} is not part of sentence_transformers; remote code is not run")
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"modules.json: path {path!r} is outside the model's folder")
    modules = [(full_name.rpartition(".")[2], folder / path) for full_name, path in entries]
    if has_remote_module and len(modules) == 1:
        modules += [("Pooling", folder / REMOTE_MODULE), ("Normalize", folder / REMOTE_MODULE)]
    return modules, has_remote_module, routers


def _refuse_unknown(name: str, config: dict[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ModelError(f"{name}: {', '.join(f'{key}={config[key]!r}' for key in unknown)} is not supported")


def _read_pooling(folder: Path) -> tuple[Pooling, bool]:
    name, config = f"{folder.name}/config.json", read_json(folder / "config.json")
    _refuse_unknown(name, config, {"pooling_mode", "include_prompt", *_OLD_POOLING_KEYS, *_WIDTH_KEYS})
    modes = config.get("pooling_mode", [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)] or "mean")
    modes = list(modes) if isinstance(modes, list | tuple) else [modes]
    if not modes or not all(mode in POOLINGS for mode in modes):
        raise ModelError(f"{name}: pooling {' + '.join(map(str, modes))} is not supported; choose among {', '.join(POOLINGS)}")
    return "+".join(POOLINGS[mode] for mode in modes), bool(config.get("include_prompt", True))


def _read_transformer(folder: Path) -> tuple[int | None, bool]:
    """Read max_seq_length and do_lower_case from the first sentence_*_config.json with content."""
    name, config = next(((name, found) for name in _TRANSFORMER_CONFIGS if (found := read_json(folder / name))), ("", {}))
    arguments = {key: config.pop(key, None) or {} for key in list(config) if key.endswith(("_args", "_kwargs"))}
    length = config.pop("max_seq_length", None)
    for key, values in arguments.items():
        length = values.pop("model_max_length", length) if key in ("tokenizer_args", "processor_kwargs") else length
        _refuse_unknown(f"{name}: {key}", values, _HARMLESS_ARGUMENTS)
    if config.pop("transformer_task", "feature-extraction") != "feature-extraction":
        raise ModelError(f"{name}: only transformer_task='feature-extraction' is supported")
    # a chat template would change every text
    modalities = config.pop("modality_config", {"text": _PLAIN_TEXT})
    output = config.pop("module_output_name", "token_embeddings")
    if "message" in modalities:
        raise ModelError(f"{name}: modality_config has 'message': a chat template around every text is not supported; only plain text is")
    if _PLAIN_TEXT.items() - modalities.get("text", {}).items() or output != "token_embeddings":
        raise ModelError(f"{name}: modality_config={modalities!r} with output {output!r} is not supported; only plain text is")
    lower_case = bool(config.pop("do_lower_case", False))
    config.pop("unpad_inputs", None)
    _refuse_unknown(name, {key: value for key, value in config.items() if value is not None}, ())
    return length if length is None else _check_size(name, "max_seq_length", length), lower_case


def _check_size(name: str, key: str, size: Any) -> int:
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"{name}: {key}={size!r}: expected a whole number of at least 1")
    return size


def _read_step(kind: str, folder: Path) -> Step:
    name, config = f"{folder.name}/config.json", read_json(folder / "config.json")
    key = config.pop("module_input_name", "sentence_embedding")
    if key != "sentence_embedding" or (config.pop("module_output_name", None) or key) != key:
        raise ModelError(f"{name}: only modules from sentence_embedding to sentence_embedding are supported")
    if kind == "Normalize":
        _refuse_unknown(name, config, ())
        return Step("normalize", folder)
    if kind == "LayerNorm":
        _refuse_unknown(name, config, {"dimension"})
        dimension = _check_size(name, "dimension", config.get("dimension"))
        return Step("layer_norm", folder, dimension, dimension)
    if kind != "Dense":
        raise ModelError(f"modules.json: module {kind!r} is not supported; after pooling, use Dense, LayerNorm, Normalize or Dropout")
    if not config.get("use_residual"):
        config.pop("use_residual", None)
    _refuse_unknown(name, config, {"in_features", "out_features", "bias", "activation_function"})
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{name}: activation_function={activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    in_features, out_features = (_check_size(name, key, config.get(key)) for key in ("in_features", "out_features"))
    return Step("dense", folder, in_features, out_features, config.get("bias", True), activation.rpartition(".")[2])


def _read_usage(folder: Path) -> tuple[Prompts, str | None, int | None]:
    """Read prompts, similarity_fn_name and truncate_dim; no other key of this file changes a vector."""
    name = "config_sentence_transformers.json"
    config = read_json(folder / name)
    kind = config.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ModelError(f"{name}: model_type={kind!r} is not supported; only a SentenceTransformer gives one vector a text")
    dim = config.get("truncate_dim")
    prompts = choose_prompts(config.get("prompts") or {}, config.get("default_prompt_name"))
    return prompts, config.get("similarity_fn_name"), dim if dim is None else _check_size(name, "truncate_dim", dim)


def choose_prompts(prompts: dict[str, str | None], default_name: str | None) -> Prompts:
    """Choose the prompts of documents and queries; ModelError if there is no prompt of the default's name.

    A file follows one of two conventions: prompts for documents (document, passage, corpus) and for queries (query), which encode_document
    and encode_query of sentence-transformers apply; or one default prompt for every text, which its encode applies. The default is
    therefore never the prompt of one side for the other.
    """
    if default_name and default_name not in (*prompts, "query", "document"):
        known = ", ".join(prompts) or "none"
        raise ModelError(f"config_sentence_transformers.json: default_prompt_name={default_name!r}: no such prompt (found: {known})")
    default = prompts.get(default_name or "") if default_name != "query" else None
    of_documents, of_queries = ([prompts[name] for name in names if name in prompts] for names in (DOCUMENT_PROMPTS, _QUERY_PROMPTS))
    document = of_documents[0] if of_documents else default
    query = of_queries[0] if of_queries else None if of_documents else default
    return Prompts(document or "", query or "", tuple(name for name, prompt in prompts.items() if prompt))
