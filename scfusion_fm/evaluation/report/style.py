"""The look that all pages share: colours, letters, tables."""

STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --accent: #0072b2; --warn: #b04a00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, ul { max-width: 48rem; }
.lead, figcaption, .note { color: var(--soft); }
.findings { list-style: none; padding: 0; }
.findings li { margin: .45rem 0; padding: .45rem .8rem; background: #f6f8fa;
  border-left: 4px solid var(--line); }
.findings li.ahead { border-color: var(--accent); }
.findings li.behind { border-color: var(--warn); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
tr.group > td { border-top: 2px solid var(--soft); }
tr.model { background: #e9f3fa; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { font-size: .9rem; max-width: 48rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .8rem 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
details pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2, h3 { break-after: avoid; }
  figure, tr, .findings li { break-inside: avoid; } tr.model { print-color-adjust: exact; } }
"""
