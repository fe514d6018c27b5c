"""What a sweep found → one HTML page that needs nothing else, for whoever decides: what to run, what it costs, what is lost."""

import html
from collections.abc import Sequence

from embedder.sweep.charts import Axis, Point, draw_front, draw_heat
from embedder.sweep.config import Precision
from embedder.sweep.cost import Cost
from embedder.sweep.datasets import Retrieval, Similarity
from embedder.sweep.evaluate import NUM_NEIGHBOURS
from embedder.sweep.grid import Setting
from embedder.sweep.number_format import show_bytes, show_seconds, show_share, show_usd
from embedder.sweep.recommend import Row, find_front
from embedder.sweep.run import Swept
from embedder.sweep.style import STYLE

PRECISION_NAMES: dict[Precision, str] = {
    "float32": "float32",
    "int8": "int8",
    "binary": "binary",
    "binary_rescored": "binary, rescored",
}


EMULATED = (
    "Layers in float8 were emulated on this CPU: what they keep of the quality is about what a GPU would, their speed here says "
    "nothing of its, and is neither shown nor compared. Sweep on a GPU with float8 before choosing them."
)


def render_page(swept: Swept, embed_yaml: str) -> str:
    """Write the page."""
    title = f"Which depth and size? {swept.reference.model}"
    body = [
        f"<header><h1>Which depth and size?</h1><p>{html.escape(_subject(swept))}</p></header>",
        _recommendation(swept),
        _fronts(swept),
        _heat_maps(swept),
        _config(embed_yaml),
        _all_rows(swept),
        _method(swept),
    ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    meta += '<meta name="color-scheme" content="light dark">'
    head = f"<head>{meta}<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}<body><main>{"".join(body)}</main></body></html>\n'


def _subject(swept: Swept) -> str:
    corpus = swept.corpus
    about = "about " if corpus.is_estimate else ""
    source = swept.study.config.source
    where = f" at {source.uri}" if source else ""
    return f"{swept.reference.model} on {about}{corpus.documents:,} documents{where}: {corpus.chunks:,} chunks, {corpus.tokens:,} tokens."


def _recommendation(swept: Swept) -> str:
    row, full = swept.choice.row, swept.full
    if row is None or row.kept is None:
        return f'<section class="card"><h2>No setting fits</h2><p>{html.escape(swept.choice.why)}.</p></section>'
    cost, kept = row.cost, row.kept
    bounds = f"{show_share(kept.low)} to {show_share(kept.high)}" if kept.low is not None and kept.high is not None else "unknown"
    price = (
        [("costs", show_usd(cost.usd), f"full model {show_usd(full.cost.usd)}")]
        if cost.usd is not None and full.cost.usd is not None
        else []
    )
    tiles = [
        ("keeps", show_share(row.kept.share), f"95% interval {bounds}"),
        (
            "speed",
            f"{cost.speedup or 1:.2f} ×",
            f"{show_seconds(cost.seconds)} for the corpus, full model {show_seconds(full.cost.seconds)}",
        ),
        (
            "index",
            show_bytes(cost.index_bytes),
            _smaller(cost.index_bytes, full.cost.index_bytes),
        ),
        *price,
    ]
    noise = " The difference to the full model is within noise." if row.kept.within_noise and row is not full else ""
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><p>{html.escape(note)}</p></div>" for name, value, note in tiles)
    return (
        f'<section class="card"><p class="eyebrow">Recommended</p><h2>{html.escape(_describe(row))}</h2>'
        f"<dl>{figures}</dl><p>It is {html.escape(swept.choice.why)}.{noise}</p></section>"
    )


def _smaller(size: float, full: float) -> str:
    return f"{_times(full / size)} smaller than {show_bytes(full)}" if size < full else "as the full model's"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×"


def _describe(row: Row) -> str:
    setting = row.setting
    depth = f"depth {setting.depth}{_how(setting)}, " if setting.depth else ""
    return f"{depth}dim {setting.dim}, {PRECISION_NAMES[setting.precision]}"


def _how(setting: Setting) -> str:
    return (", calibrated" if setting.exit == "calibrated" else "") + _how_else(setting)


def _how_else(setting: Setting) -> str:
    return (", rotated" if setting.rotated else "") + (", layers in float8" if setting.float8 else "")


def is_emulated(swept: Swept) -> bool:
    """Whether some rows are of float8 on a CPU."""
    return any(row.cost.is_emulated for row in swept.rows)


def show_rate(cost: Cost) -> str:
    """Give tokens a second, where they mean something."""
    return "emulated" if cost.is_emulated else f"{cost.tokens_per_second:,.0f}"


def show_time(cost: Cost) -> str:
    """Give the time of the corpus, where it means something."""
    return "emulated" if cost.is_emulated else show_seconds(cost.seconds)


def _fronts(swept: Swept) -> str:
    rows = [row for row in swept.rows if row.kept and row.competes]
    if not rows:
        return ""
    front = find_front(rows, swept.full)
    charts = [
        (
            "Quality against the time to embed the corpus",
            Axis("time of one device, logarithmic", show_seconds),
            [row.cost.seconds for row in rows],
        )
    ]
    if all(row.cost.usd is not None for row in rows):
        charts[0] = ("Quality against cost", Axis("cost of the corpus, logarithmic", show_usd), [row.cost.usd or 0.0 for row in rows])
    charts.append(
        ("Quality against the size of the index", Axis("bytes of vectors, logarithmic", show_bytes), [row.cost.index_bytes for row in rows])
    )
    figures = "".join(
        f"<figure><figcaption>{title}</figcaption>{draw_front(_points(rows, xs, front, swept), axis)}</figure>"
        for title, axis, xs in charts
    )
    kinds = [("chosen", "recommended"), ("full", "full model"), ("front", "cheapest for its quality"), ("other", "other settings")]
    kinds += [("rival", "other models")] if any(row.setting.model != swept.reference.model for row in rows) else []
    legend = "".join(
        f'<span><svg viewBox="0 0 12 12"><circle class="{kind}" cx="6" cy="6" r="4.5"/></svg>{name}</span>' for kind, name in kinds
    )
    note = "Each point is a setting; the line joins those that none beats at the same cost. Point at one to read it."
    return f'<section><h2>What quality costs</h2><p>{note}</p><div class="charts">{figures}</div><p class="legend">{legend}</p></section>'


def _points(rows: Sequence[Row], xs: Sequence[float], front: Sequence[Row], swept: Swept) -> list[Point]:
    points = []
    for row, x in zip(rows, xs, strict=True):
        assert row.kept is not None
        kind = "front" if row in front else "other"
        if row.setting.model != swept.reference.model:
            kind = "rival"
        if row == swept.full:
            kind = "full"
        if row == swept.choice.row:
            kind = "chosen"
        model = f"{row.setting.model}, " if row.setting.model != swept.reference.model else ""
        figures = (show_share(row.kept.share), show_seconds(row.cost.seconds), show_bytes(row.cost.index_bytes))
        title = f"{model}{_describe(row)}: keeps {', '.join(figures)}"
        label = _describe(row) if kind == "chosen" else row.setting.model.rpartition("/")[2] if kind == "rival" else ""
        points.append(Point(max(x, 1e-9), row.kept.share, title, kind, label))
    return points


def _heat_maps(swept: Swept) -> str:
    mine = [row for row in swept.rows if row.setting.model == swept.reference.model and row.can_be_embedded]
    kinds = sorted({_how(row.setting) for row in mine})
    maps = "".join(each for how in kinds for each in _maps_of([row for row in mine if _how(row.setting) == how], how))
    note = "Rows are layers run, columns components kept; figures times 100, the stronger the colour the better. "
    note += "Metrics are those of float32 vectors."
    if any(row.setting.rotated for row in mine):
        note += " Rotated: vectors are turned onto the principal axes of the corpus before the cut."
    return f'<section><h2>Depth × size</h2><p>{note}</p><div class="maps">{maps}</div></section>'


def _maps_of(rows: Sequence[Row], which: str) -> list[str]:
    maps = []
    for precision, name in PRECISION_NAMES.items():
        kept = {_place(row): row.kept.share for row in rows if row.setting.precision == precision and row.kept}
        if kept:
            maps.append(draw_heat(f"quality kept, {name}{which}", kept, max(1.0, *kept.values())))
    stored = [row for row in rows if row.setting.precision == "float32"]
    for dataset, metric in {(dataset, metric): None for row in stored for dataset, each in row.metrics.items() for metric in each}:
        values = {_place(row): row.metrics[dataset][metric] for row in stored if metric in row.metrics.get(dataset, {})}
        maps.append(draw_heat(f"{dataset}: {metric}{which}", values, max(values.values())))
    return maps


def _place(row: Row) -> tuple[int, int]:
    return row.setting.depth, row.setting.dim


def _config(embed_yaml: str) -> str:
    if not embed_yaml:
        return ""
    note = "Save it as a file, check <code>output.uri</code>, and run <code>python -m jobs.embed FILE</code>."
    if "calibration:" in embed_yaml:
        note += " It needs what <code>python -m jobs.calibrate</code> fits on the corpus, at <code>embedding.calibration</code>."
    if "rescored: true" in embed_yaml:
        note += " Searches have to rescore: <code>jobs.search</code> over the table does, a store needs <code>--rescore</code>."
    return f"<section><h2>The config to run</h2><p>{note}</p><pre>{html.escape(embed_yaml)}</pre></section>"


def _all_rows(swept: Swept) -> str:
    datasets = {(dataset, metric): None for row in swept.rows for dataset, each in row.metrics.items() for metric in each}
    names = ["model", "depth", "dim", "precision", "exit", "queries", "kept", "95%", "tokens/s", "time", "index"]
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in [*names, *(f"{dataset} {metric}" for dataset, metric in datasets)])
    lines = []
    for row in sorted(swept.rows, key=lambda row: -(row.kept.share if row.kept else -1)):
        setting, cost, kept = row.setting, row.cost, row.kept
        bounds = f"{100 * kept.low:.1f}–{100 * kept.high:.1f}" if kept and kept.low is not None and kept.high is not None else ""
        cells = [
            setting.model, str(setting.depth or "–"), str(setting.dim), PRECISION_NAMES[setting.precision],
            setting.exit + _how_else(setting), setting.query_side, show_share(kept.share) if kept else "–", bounds,
            show_rate(cost), show_time(cost), show_bytes(cost.index_bytes),
        ]  # fmt: skip
        cells += [f"{row.metrics[dataset][metric]:.4f}" if metric in row.metrics.get(dataset, {}) else "" for dataset, metric in datasets]
        chosen = ' class="picked"' if row == swept.choice.row else ""
        lines.append(f"<tr{chosen}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    table = f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<section><details><summary>All {len(swept.rows)} settings</summary>{table}</details></section>"


def _method(swept: Swept) -> str:
    machine, config = swept.machine, swept.study.config
    measured = [_describe_dataset(each) for each in swept.study.datasets] + [f"{task} (mteb)" for task in config.quality.mteb]
    points = [
        f"Quality is measured on {', '.join(measured)}; with several sets it is the mean of their main metrics (nDCG@10, Spearman). "
        "“Kept” divides it by the full model's, at float32 and full width.",
        "Intervals are of that share, over 500 resamples of the queries, the same for every setting: two settings whose intervals overlap "
        "may be equally good, and one whose interval holds 100% may be as good as the full model.",
        f"“Fidelity” needs no labels: the share of the full model's {NUM_NEIGHBOURS} nearest documents that a setting finds too, "
        "and the cosine to its vectors.",
        "Queries: “same” are embedded as the documents are, “full” by the full model; none in float8.",
        "int8 and binary are of stored vectors. int8 is searched by float queries; binary by the queries' own bits; “rescored” orders the "
        "best four times as many by the float query.",
        f"Speed is the encoder's, of models really cut at each depth, on this machine ({machine.device}, dtype {machine.dtype}, "
        f"{machine.token_budget:,} tokens a pass), on chunks of the sample, in alternation. Reading and writing come on top.",
        EMULATED if is_emulated(swept) else "",
        "How many documents and tokens the corpus has is estimated from the sample and the bytes of the listing."
        if swept.corpus.is_estimate
        else "",
    ]
    return (
        f"<section><h2>How it was measured</h2><ul>{''.join(f'<li>{html.escape(point)}</li>' for point in points if point)}</ul></section>"
    )


def _describe_dataset(dataset: Retrieval | Similarity) -> str:
    if isinstance(dataset, Similarity):
        return f"{dataset.name} ({len(dataset.scores):,} pairs)"
    return f"{dataset.name} ({len(dataset.queries):,} queries over {len(dataset.documents):,} documents)"
