"""How the page looks, on a screen and on paper."""

CSS = """
:root { --ink: #1d1d1f; --soft: #62626a; --line: #dcdce0; --tint: #f6f6f8; --accent: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
header { border-bottom: 2px solid var(--ink); padding-bottom: 1rem; }
.kind { margin: 0; color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: .15rem 0 0; font-size: 2.1rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 1rem; font-size: 1.3rem; letter-spacing: -.005em; }
h3 { margin: 1.8rem 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
.warning { margin: 1rem 0 0; padding: .5rem .8rem; border-left: 3px solid #d55e00; background: #fdf3ec; font-size: .92rem; }
.note, figcaption { color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .36rem 1.1rem .36rem 0; text-align: left; vertical-align: top; overflow-wrap: break-word; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 500; }
thead th { font-weight: 600; font-size: .82rem; vertical-align: bottom; }
.facts, .settings { width: 100%; }
.facts tbody th, .settings tbody th { width: 1%; white-space: nowrap; padding-right: 2rem; color: var(--soft); }
.settings { font-size: .84rem; }
.results { min-width: 70%; }
.results td, .results thead th { text-align: right; white-space: nowrap; padding: .36rem 0 .36rem 1.6rem; }
.results thead tr:last-child th { color: var(--soft); font-weight: 400; padding-top: 0; }
.results .metric th { font-weight: 600; padding-top: .9rem; }
.results .metric + tr { border-top: 0; }
.results tbody:last-child tr:last-child { border-bottom: 1px solid var(--line); }
.results tr:not(.metric) th { max-width: 26rem; }
figure { margin: 0 0 2.6rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
figcaption b { color: var(--ink); font-weight: 600; }
pre { margin: 0; padding: .9rem 1.1rem; background: var(--tint); border-radius: 6px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 40rem) { figure img { width: 100% !important; } main { padding: 2rem 1rem; } }
@media print {
  @page { margin: 16mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 2rem; break-after: avoid; }
  h3 { break-after: avoid; }
  figure, tr, header { break-inside: avoid; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
  .scroll { overflow: visible; }
}
"""
