"""The result of a sweep → one self-contained HTML page: the recommended setting, its cost, and the quality lost."""

import html
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from embedder.sweep.charts import KINDS, STYLE, Point, draw_front, draw_heat
from embedder.sweep.cost import show_bytes, show_seconds, show_usd
from embedder.sweep.evaluate import NUM_NEIGHBORS
from embedder.sweep.recommend import Row, find_front
from embedder.sweep.run import SweepResult

EMULATED = (
    "Layers in float8 were emulated on this CPU: the quality they keep is close to a GPU's, but their speed here does not predict "
    "a GPU's, and is neither shown nor compared. Sweep on a GPU with float8 before choosing them."
)


def render_page(result: SweepResult, embed_yaml: str) -> str:
    """Return the page."""
    title = html.escape(f"Which depth and size? {result.full.setting.model}")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    sections = [_recommendation(result), _fronts(result), _heat_maps(result), _config(embed_yaml), _all_rows(result), _method(result)]
    return (
        f'<!doctype html>\n<html lang="en"><head>{meta}<title>{title}</title><style>{STYLE}</style></head><body><main>'
        f"<header><h1>Which depth and size?</h1><p>{html.escape(_subject(result))}</p></header>{''.join(sections)}</main></body></html>\n"
    )


def show_corpus(result: SweepResult) -> str:
    """Return the size of the corpus in words."""
    corpus, about = result.corpus, "about " if result.corpus.is_estimate else ""
    return f"{about}{corpus.documents:,} documents, {corpus.chunks:,} chunks, {corpus.tokens:,} tokens"


def show_fitted(count: int, total: int) -> str:
    """Return in words how many of the documents measured a calibration was fitted on."""
    advice = "; unseen documents keep less: calibrate on some shards, and sweep the others" if count else ""
    return f"fitted on {count:,} of the {total:,} documents that quality is measured on{advice}"


def _subject(result: SweepResult) -> str:
    source, fitted_on = result.plan.config.source, result.plan.fitted_on
    calibration = f" Its calibration was {show_fitted(*fitted_on)}." if fitted_on else ""
    return f"{result.full.setting.model} on {source.uri if source else 'labeled sets'}: {show_corpus(result)}.{calibration}"


def show_name(row: Row, result: SweepResult) -> str:
    """Return a row's label, with its model if it is another one."""
    return row.setting.label if row.setting.model == result.full.setting.model else f"{row.setting.model} {row.setting.label}"


def show_figures(row: Row) -> list[str]:
    """Return a row's share kept, 95% interval, tokens a second, time and index size; speeds only if they were measured."""
    kept, cost = row.kept, row.cost
    bounds = f"{100 * kept.low:.1f}–{100 * kept.high:.1f}" if kept and kept.low is not None and kept.high is not None else ""
    speeds = ["emulated"] * 2 if cost.is_emulated else [f"{cost.tokens_per_second:,.0f}", show_seconds(cost.seconds)]
    return [f"{kept.share:.1%}" if kept else "–", bounds, *speeds, show_bytes(cost.index_bytes)]


PER_DOCUMENT = ("chunks/doc", "tokens/doc")


def show_sizes(row: Row) -> tuple[str, str]:
    """Return a row's chunks and tokens per document."""
    return f"{row.cost.chunks_per_document:.2f}", f"{row.cost.tokens_per_document:.0f}"


def is_full(row: Row, result: SweepResult) -> bool:
    """Return whether a row is of the full model, with any chunking."""
    return replace(row.setting, chunking=result.full.setting.chunking) == result.full.setting


def _recommendation(result: SweepResult) -> str:
    row, full, why = result.chosen, result.full.cost, html.escape(result.why)
    if row is None:
        return f'<section class="card"><h2>No setting fits</h2><p>{why}.</p></section>'
    cost, (share, bounds, _, seconds, size) = row.cost, show_figures(row)
    smaller = f"{full.index_bytes / cost.index_bytes:,.1f} × smaller than {show_bytes(full.index_bytes)}"
    tiles = [
        ("keeps", share, f"95% interval {bounds or 'unknown'}"),
        ("speed", f"{cost.speedup or 1:.2f} ×", f"{seconds} for the corpus, full model {show_seconds(full.seconds)}"),
        ("index", size, smaller if cost.index_bytes < full.index_bytes else "same as the full model's"),
    ]
    if cost.usd is not None and full.usd is not None:
        tiles.append(("costs", show_usd(cost.usd), f"full model {show_usd(full.usd)}"))
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><p>{html.escape(note)}</p></div>" for name, value, note in tiles)
    is_noise = row.kept and row.kept.within_noise and row is not result.full
    noise = " The difference to the full model is within noise." if is_noise else ""
    return (
        f'<section class="card"><p>Recommended</p><h2>{html.escape(row.setting.label)}</h2>'
        f"<dl>{figures}</dl><p>It is {why}.{noise}</p></section>"
    )


def _fronts(result: SweepResult) -> str:
    rows = [row for row in result.rows if row.kept and row.competes]
    if not rows:
        return ""
    charts: dict[str, tuple[Callable[[float], str], list[float]]] = {}
    if all(row.cost.usd is not None for row in rows):
        charts["cost of the corpus"] = show_usd, [row.cost.usd or 0.0 for row in rows]
    else:
        charts["time of one device to embed the corpus"] = show_seconds, [row.cost.seconds for row in rows]
    charts["size of the index"] = show_bytes, [row.cost.index_bytes for row in rows]
    front, figures = find_front(rows, result.full), ""
    for axis, (show, xs) in charts.items():
        points = [_point(row, x, row in front, result) for row, x in zip(rows, xs, strict=True)]
        figures += f"<figure><figcaption>Quality against {axis}</figcaption>{draw_front(points, f'{axis}, logarithmic', show)}</figure>"
    has_rivals = any(row.setting.model != result.full.setting.model for row in rows)
    legend = "".join(
        f'<span><svg viewBox="0 0 12 12"><circle class="{kind}" cx="6" cy="6" r="4.5"/></svg>{name}</span>'
        for kind, name in reversed(KINDS.items())
        if kind != "rival" or has_rivals
    )
    note = "Each point is a setting; the line joins those that no other beats at the same cost. Hover over a point for its figures."
    return f'<section><h2>Quality and cost</h2><p>{note}</p><div class="charts">{figures}</div><p class="legend">{legend}</p></section>'


def _point(row: Row, x: float, on_front: bool, result: SweepResult) -> Point:
    kind, label = "front" if on_front else "other", ""
    if row.setting.model != result.full.setting.model:
        kind, label = "rival", row.setting.model.rpartition("/")[2]
    if row == result.full:
        kind = "full"
    if row == result.chosen:
        kind, label = "chosen", row.setting.label
    share, _, _, seconds, size = show_figures(row)
    return Point(max(x, 1e-9), row.share, f"{show_name(row, result)}: keeps {share}, {seconds}, {size}", kind, label)


def _heat_maps(result: SweepResult) -> str:
    model, chunking = result.full.setting.model, (result.chosen or result.full).setting.chunking
    mine = [row for row in result.rows if (row.setting.model, row.setting.chunking) == (model, chunking) and row.can_be_embedded]
    maps = []
    for variant in sorted({row.setting.variant for row in mine}):
        maps += _maps_of([row for row in mine if row.setting.variant == variant], variant)
    note = "Rows are layers run, columns components kept; values times 100, a stronger color is better. Metrics are of float32 vectors."
    if any(row.setting.rotated for row in mine):
        note += " Rotated: vectors are rotated onto the principal axes of the corpus before the cut."
    if chunking:
        note += html.escape(f" Chunking: {chunking}.")
    return f'<section><h2>Depth × size</h2><p>{note}</p><div class="maps">{"".join(maps)}</div></section>'


def _maps_of(rows: Sequence[Row], variant: str) -> list[str]:
    maps: defaultdict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in rows:
        values = {f"quality kept, {row.setting.precision.replace('_', ', ')}": row.share} if row.kept else {}
        if row.setting.precision == "float32":
            values |= {f"{dataset}: {metric}": value for dataset, each in row.metrics.items() for metric, value in each.items()}
        for title, value in values.items():
            maps[title][row.setting.depth, row.setting.dim] = value
    shares_first = sorted(maps.items(), key=lambda each: ": " in each[0])
    return [
        draw_heat(title + variant, each, max(each.values()) if ": " in title else max(1.0, *each.values())) for title, each in shares_first
    ]


def _config(embed_yaml: str) -> str:
    if not embed_yaml:
        return ""
    note = "Save it as a file, check <code>output.uri</code>, and run <code>python -m jobs.embed FILE</code>."
    if "calibration:" in embed_yaml:
        note += " It needs the artifact of <code>python -m jobs.calibrate</code> at <code>embedding.calibration</code>."
    if "rescored: true" in embed_yaml:
        note += " Searches must rescore: <code>jobs.search</code> over the table does, a store needs <code>--rescore</code>."
    return f"<section><h2>The config to run</h2><p>{note}</p><pre>{html.escape(embed_yaml)}</pre></section>"


def _all_rows(result: SweepResult) -> str:
    metrics = dict.fromkeys((dataset, metric) for row in result.rows for dataset, each in row.metrics.items() for metric in each)
    names = ["model", "depth", "dim", "precision", "exit", "queries", "kept", "95%", "tokens/s", "time", "index"]
    chunked = bool(result.full.setting.chunking)
    names += ["chunking", *PER_DOCUMENT] if chunked else []
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in [*names, *map(" ".join, metrics)])
    lines = []
    for row in sorted(result.rows, key=lambda row: -row.share):
        setting = row.setting
        precision, exit_ = setting.precision.replace("_", ", "), setting.exit + setting.variant.removeprefix(", calibrated")
        cells = [setting.model, str(setting.depth or "–"), str(setting.dim), precision, exit_, setting.query_side]
        cells += show_figures(row) + ([setting.chunking, *show_sizes(row)] if chunked else [])
        cells += [f"{row.metrics[dataset][metric]:.4f}" if metric in row.metrics.get(dataset, {}) else "" for dataset, metric in metrics]
        chosen = ' class="picked"' if row == result.chosen else ""
        lines.append(f"<tr{chosen}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    table = f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<section><details><summary>All {len(result.rows)} settings</summary>{table}</details></section>"


def _method(result: SweepResult) -> str:
    machine, plan = result.machine, result.plan
    sizes = {each.name: ", ".join(f"{count:,} {name}" for name, count in each.sizes.items()) for each in plan.datasets}
    measured = [f"{name} ({size})" for name, size in (sizes | dict.fromkeys(plan.config.quality.mteb, "mteb")).items()]
    points = [
        f"Quality is measured on {', '.join(measured)}; over several sets it is the mean of their main metrics (nDCG@10, Spearman). "
        "“Kept” divides it by the full model's, at float32 and full width.",
        "Intervals are of that share, over 500 resamples of the queries that are the same for every setting. Settings whose intervals "
        "overlap may be equally good, and one whose interval holds 100% may be as good as the full model.",
        f"“Fidelity” needs no labels: the share of the full model's {NUM_NEIGHBORS} nearest documents that a setting also finds, "
        "and the cosine to its vectors.",
        "Queries: “same” are embedded like the documents, “full” by the full model; never in float8.",
        "int8 and binary describe stored vectors. int8 is searched by float queries, binary by the queries' bits; “rescored” reranks "
        "four times as many documents with the float query.",
        f"Speed is the encoder's alone, for models cut at each depth, on this machine ({machine.device}, dtype {machine.dtype}, "
        f"{machine.token_budget:,} tokens a pass), on chunks of the sample, in alternation; reading and writing are not included.",
    ]
    if result.full.setting.chunking:
        points.append(
            "A document ranks by its best chunk. “Kept” compares with the full model and the first chunking. “Fidelity” compares chunks "
            "with those of the full model and the same chunking."
        )
    if is_emulated(result):
        points.append(EMULATED)
    if result.corpus.is_estimate:
        points.append("The numbers of documents and tokens in the corpus are estimated from the sample and the bytes of the listing.")
    return f"<section><h2>How it was measured</h2><ul>{''.join(f'<li>{html.escape(point)}</li>' for point in points)}</ul></section>"


def is_emulated(result: SweepResult) -> bool:
    """Return whether some rows are of float8 on a CPU."""
    return any(row.cost.is_emulated for row in result.rows)
