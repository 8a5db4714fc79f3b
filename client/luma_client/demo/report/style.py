"""The report's style sheet."""

CSS = """
:root { color-scheme: light dark; --bg: #f6f6f4; --card: #fff; --ink: #1c1d21; --soft: #62656e;
  --rule: #e3e3df; --s1: #3767c9; --s2: #d2581c; --s3: #1c8a6b; --s4: #8449b5;
  --good: #1d7f4e; --bad: #c42b2b; --band: #1d7f4e1c; }
@media (prefers-color-scheme: dark) { :root { --bg: #15161a; --card: #1e2026; --ink: #e9e9ec;
  --soft: #a2a6b1; --rule: #33363f; --s1: #7da2f5; --s2: #f59463; --s3: #56c9a4; --s4: #c393ee;
  --good: #5ccb8f; --bad: #ff7b7b; --band: #5ccb8f22; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.02em; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 13px; margin: 0 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 10px; } .quiet, .note { color: var(--soft); } .note { font-size: 13.5px; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px;
  margin: 24px 0 14px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 14px; margin-bottom: 14px; }
.grid3 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 18px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 18px 20px; min-width: 0; } section.card { margin-bottom: 14px; }
.grid2 section.card { margin: 0; }
.tile b { display: block; font-size: 27px; line-height: 1.25; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13.5px; }
.checks { list-style: none; margin: 8px 0 0; padding: 0; }
.checks li { display: grid; grid-template-columns: 20px 1fr auto; gap: 8px; padding: 6px 0;
  border-top: 1px solid var(--rule); align-items: baseline; }
.checks li:first-child { border-top: 0; } .checks .measured { color: var(--soft);
  font-variant-numeric: tabular-nums; text-align: right; }
.pass { color: var(--good); font-weight: 700; } .fail { color: var(--bad); font-weight: 700; }
.scroll { overflow-x: auto; } .scroll > svg { min-width: 400px; }
svg { display: block; width: 100%; height: auto; }
.tick { font-size: 12px; fill: var(--soft); } .label { font-size: 12.5px; fill: var(--soft); }
line.grid { stroke: var(--rule); } line.axis { stroke: var(--soft); }
.band { fill: var(--band); } .hit { fill: transparent; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.line.faint { stroke-width: 1.2; opacity: .45; } .line.dashed { stroke-dasharray: 5 4; }
.dot { fill: var(--c); } .dot.hollow { fill: var(--card); stroke: var(--c); stroke-width: 2; }
g:hover > .dot { stroke: var(--ink); stroke-width: 1.5; }
.bar { fill: var(--c); } .bar:hover { opacity: .7; }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); } .s4 { --c: var(--s4); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0;
  margin: 8px 0; font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 7px; } svg.key { width: 26px; flex: none; }
figure { margin: 0; } figcaption { margin-top: 6px; }
.bars { margin: 14px 0 4px; }
.row { display: grid; grid-template-columns: minmax(90px, 150px) 1fr 82px; gap: 10px;
  align-items: center; padding: 3px 0; font-size: 13.5px; }
.row .track { background: var(--rule); border-radius: 4px; height: 16px; overflow: hidden; }
.row .fill { display: block; height: 100%; background: var(--c); border-radius: 4px; }
.row .value { text-align: right; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-size: 13px; width: 100%; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 6px; text-align: right; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600;
  white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.wide table { font-size: 12px; } .wide th, .wide td { padding: 5px 4px; }
.wide td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 110px; }
tr.total td { font-weight: 700; border-bottom: 0; } tbody tr:hover { background: var(--bg); }
footer { color: var(--soft); font-size: 13px; margin-top: 22px; }
@media (max-width: 560px) { main { padding: 22px 12px; } .card { padding: 14px; }
  .checks li { grid-template-columns: 20px 1fr; } .checks .measured { grid-column: 2;
  text-align: left; } }
"""
