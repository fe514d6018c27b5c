"""The page's style sheet: light and dark by the reader's system, narrow and wide."""

STYLE = """
:root {
  --ground: #fbfaf8; --surface: #ffffff; --ink: #1c1b19; --quiet: #66625a;
  --rule: #e4e0d8; --accent: #0b7a75; --warm: #b4481f; --grey: #b9b3a7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #161614; --surface: #1f1f1c; --ink: #eeece6; --quiet: #a29d92;
    --rule: #34332f; --accent: #4cc2b8; --warm: #ff9d6b; --grey: #5d594f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: clamp(26px, 5vw, 38px); line-height: 1.15; margin: 0 0 8px; letter-spacing: -0.02em; }
h2 { font-size: 21px; margin: 0 0 6px; letter-spacing: -0.01em; }
header p, section > p { color: var(--quiet); margin: 0 0 14px; max-width: 74ch; overflow-wrap: anywhere; }
section { margin-top: 44px; }
.card { background: var(--surface); border: 1px solid var(--rule); border-radius: 12px; padding: 24px; margin-top: 28px; }
.card h2 { font-size: clamp(22px, 4vw, 30px); }
.card > p { margin: 0; }
.eyebrow { text-transform: uppercase; letter-spacing: 0.08em; font-size: 12px; font-weight: 600; color: var(--accent) !important; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 20px; margin: 18px 0; }
dt { color: var(--quiet); font-size: 14px; }
dd { margin: 0; font-size: 30px; font-weight: 650; font-variant-numeric: tabular-nums; letter-spacing: -0.02em; }
dl p { margin: 0; color: var(--quiet); font-size: 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; }
figure { margin: 0; background: var(--surface); border: 1px solid var(--rule); border-radius: 12px; padding: 16px; }
figcaption { font-weight: 600; margin-bottom: 8px; }
figure svg { display: block; width: 100%; height: auto; }
.rule { stroke: var(--rule); }
.tick, .axis { fill: var(--quiet); font-size: 12px; }
.label { fill: var(--ink); font-size: 12px; font-weight: 600; paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
.front-line { fill: none; stroke: var(--accent); stroke-width: 1.5; opacity: 0.6; }
circle.front { fill: var(--accent); }
circle.other { fill: var(--grey); opacity: 0.75; }
circle.full { fill: var(--ink); }
circle.rival { fill: none; stroke: var(--warm); stroke-width: 2; }
circle.chosen { fill: var(--warm); stroke: var(--surface); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 14px; margin-top: 12px; }
.legend svg { width: 12px; height: 12px; margin-right: 6px; vertical-align: -1px; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 20px; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: 14px; }
.heat {
  width: 100%; background: var(--surface); border: 1px solid var(--rule);
  border-radius: 12px; padding: 12px; border-spacing: 2px; table-layout: fixed;
}
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
.heat th { color: var(--quiet); font-weight: 500; padding: 3px 2px; }
.heat .corner { font-size: 11px; text-align: left; }
.heat td {
  text-align: center; padding: 6px 2px;
  border-radius: 4px; background: color-mix(in srgb, var(--accent) calc(var(--heat, 0%) * 0.5), var(--surface));
}
pre {
  background: var(--surface); border: 1px solid var(--rule); border-radius: 12px;
  padding: 18px; overflow-x: auto; font-size: 14px; line-height: 1.5;
}
code { font-size: 0.92em; }
summary { cursor: pointer; font-weight: 600; font-size: 18px; }
.scroll { overflow-x: auto; margin-top: 12px; border: 1px solid var(--rule); border-radius: 12px; background: var(--surface); }
.rows th, .rows td { padding: 6px 12px; white-space: nowrap; text-align: right; border-bottom: 1px solid var(--rule); }
.rows th { color: var(--quiet); font-weight: 500; }
.rows th:first-child, .rows td:first-child, .rows td:nth-child(4), .rows th:nth-child(4) { text-align: left; }
.rows .picked td { background: color-mix(in srgb, var(--warm) 16%, var(--surface)); font-weight: 600; }
ul { padding-left: 20px; color: var(--quiet); max-width: 84ch; }
li { margin-bottom: 6px; }
"""
