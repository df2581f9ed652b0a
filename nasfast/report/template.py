# SPDX-License-Identifier: MIT
"""The page of a report: its style sheet and its Jinja2 template."""

from __future__ import annotations

STYLE_SHEET = """
:root { color-scheme: light; --ink: #1c1c1e; --soft: #5c6066; --rule: #d5d7da; --blue: #1d4f91; }
* { box-sizing: border-box; }
html { background: #fff; -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
.kicker { margin: 0 0 .4rem; color: var(--soft); font-size: .875rem; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; font-weight: 650;
  letter-spacing: -.012em; overflow-wrap: anywhere; }
.lede { margin: 0; max-width: 46rem; font-size: 1.125rem; line-height: 1.55;
  overflow-wrap: break-word; }
section { margin-top: 3.25rem; }
h2 { margin: 0 0 .35rem; font-size: 1.25rem; line-height: 1.3; font-weight: 650; }
.about { margin: 0 0 1.1rem; max-width: 46rem; color: var(--soft); font-size: .9375rem; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .5rem .65rem; text-align: right; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { vertical-align: bottom; color: var(--soft); font-size: .8125rem; font-weight: 500;
  line-height: 1.3; border-bottom: 1.5px solid var(--ink); }
.left, th.left { text-align: left; }
tbody th { font-weight: 500; }
small { display: block; color: var(--soft); font-size: .75rem; white-space: nowrap; }
thead small { white-space: normal; }
.agreement tbody tr { border-bottom: 1px solid var(--rule); }
.agreement .whisker { min-width: 8rem; }
.agreement td.whisker { padding-top: 0; padding-bottom: 0; vertical-align: middle; }
.whisker svg { display: block; width: 100%; height: 1.25rem; }
.metrics :is(td, th):not(:first-child) { padding-left: .35rem; width: 13%; }
.metrics :is(td, th):not(:last-child) { padding-right: .35rem; }
.metrics tbody th { min-width: 14rem; }
.metrics th small { white-space: normal; font-weight: 400; }
.metrics tr.counts { color: var(--soft); font-size: .8125rem; }
.metrics tr.counts > * { padding-top: .3rem; padding-bottom: .3rem; }
.wide + .wide { margin-top: 1.5rem; }
.scale { display: flex; justify-content: space-between; }
.undefined { color: var(--soft); font-style: italic; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 1.75rem 2rem; margin-top: 1.75rem; }
figure { margin: 0; max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    "Noto Sans", "Liberation Sans", Arial, sans-serif !important; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .8125rem; line-height: 1.45; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.6rem; margin: 0 0 1rem; padding: 0;
  list-style: none; font-size: .8125rem; }
.legend li { display: flex; align-items: center; gap: .55rem; }
.top tbody { border-bottom: 1px solid var(--rule); break-inside: avoid; }
.top td { vertical-align: middle; padding-bottom: .2rem; }
.top .rank { font-size: 1.0625rem; font-weight: 650; }
.top .cell svg { display: block; width: auto; height: auto; max-width: 100%; max-height: 6.5rem; }
.top td.arch { padding: 0 0 .7rem; text-align: left; color: var(--soft); font-size: .75rem;
  line-height: 1.5; overflow-wrap: anywhere;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.facts th, .facts td { text-align: left; padding: .35rem 1.5rem .35rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; white-space: pre-line; }
.facts th { width: 15rem; color: var(--soft); font-weight: 400; }
.notes { margin: 0; padding-left: 1.1rem; max-width: 46rem; font-size: .9375rem; }
.notes li { margin-bottom: .5rem; overflow-wrap: break-word; }
@media (max-width: 48rem) {
  main { padding-top: 2rem; }
  h1 { font-size: 1.625rem; }
  .top :is(th, td):not(:first-child), .agreement :is(th, td):not(:first-child) {
    padding-left: .35rem; }
  .top :is(th, td):not(:last-child), .agreement :is(th, td):not(:last-child) {
    padding-right: .35rem; }
  .top .cell svg { max-width: 11rem; }
  .agreement .whisker { display: none; }
  .metrics tbody th { min-width: 9rem; }
  .facts th { width: 10rem; }
}
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  section { margin-top: 1.75rem; }
  h2, .about, .legend { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  .wide { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; }
}
"""

PAGE = """{% macro measured(cell) %}
{% if cell is none %}
<td></td>
{% else %}
<td{% if cell.undefined %} class="undefined"{% endif %}>{{ cell.value }}
{%- if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}</td>
{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>{{ style_sheet }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">{{ report.space }}, {{ size }}</p>
<h1>{{ report.title }}</h1>
<p class="lede">{{ headline }}</p>
</header>

<section>
<h2>Agreement with the ground truth</h2>
{% if rows %}
<p class="about">Rank correlation of each score with {{ report.truth_name }}, over
{{ known }} of {{ size }}. Intervals are 95&nbsp;% percentile bootstrap over architectures.
Ties count the architectures that share their value with at least one other.</p>
<div class="wide">
<table class="agreement">
<thead><tr>
<th class="left" scope="col">Score</th>
<th class="whisker" scope="col">
<span class="scale"><span>{{ scale_low }}</span><span>1</span></span></th>
<th scope="col">Kendall &tau;<sub>b</sub></th>
<th scope="col">Spearman &rho;</th>
<th scope="col">n</th>
<th scope="col">Ties in score</th>
<th scope="col">Ties in truth</th>
<th scope="col">Not finite</th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
<th class="left" scope="row">{{ row.name }}</th>
<td class="whisker">{{ row.whisker }}</td>
{% for cell in (row.kendall, row.spearman) %}
{{ measured(cell) -}}
{% endfor %}
<td>{{ row.n }}</td>
<td>{{ row.ties_scores }}</td>
<td>{{ row.ties_truth }}</td>
<td>{{ row.dropped }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
<div class="plots">
{% for plot in scatters %}
<figure>{{ plot.svg }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p class="about">No ground truth was given, so no rank correlation can be measured.</p>
{% endif %}
</section>

{% if table %}
<section>
<h2>What a search would find</h2>
<p class="about">Truths are of {{ report.truth_name }}; the best of all has {{ table.best }}, the
mean is {{ table.mean }}. Below a value is its 95&nbsp;% percentile bootstrap interval,
{{ table.resamples }} resamples of the architectures unless it says images
{%- if not table.with_controls %}; controls over so many architectures have none{% endif %}.
{%- if table.images %} With few images an interval over images lies nearer to 0 than the value: a
resample has the noise of the {{ table.images }} images at hand and that of the draw.{% endif %}</p>
<div class="wide">
<table class="agreement metrics">
<thead><tr>
<th class="left" scope="col">Measure</th>
{% for name in table.scores %}<th scope="col">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
<th class="left" scope="row">{{ row.name }}<small>{{ row.about }}</small></th>
{% for cell in row.cells %}
{{ measured(cell) -}}
{% endfor %}
</tr>
{% endfor %}
{% for name, counts in table.counts %}
<tr class="counts">
<th class="left" scope="row">{{ name }}</th>
{% for value in counts %}<td>{{ value }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
<div class="plots">
{% for plot in tops %}
<figure>{{ plot.svg }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if precision %}
<section>
<h2>{{ precision.name }} against fp32</h2>
<p class="about">This ranking was computed in {{ precision.words }}. Of its architectures
{{ precision.size }} were scored in float32 too, by the same weights on the same images
{%- if precision.dropped %}; {{ precision.dropped }} without a finite loss{% endif %}.</p>
<table class="facts">
<tbody>
<tr><th scope="row">Kendall &tau;<sub>b</sub> of the two losses</th>
<td{% if precision.kendall.undefined %} class="undefined"{% endif %}>{{ precision.kendall.value }}
{%- if precision.kendall.interval %}, 95&nbsp;% interval {{ precision.kendall.interval }}
{%- endif %}, n = {{ precision.n }}</td></tr>
<tr><th scope="row">Largest difference of an accuracy</th>
<td>{{ precision.difference }} percentage points</td></tr>
</tbody>
</table>
</section>
{% endif %}

{% if finetuning %}
<section>
<h2>Fine-tuning</h2>
<p class="about">{{ finetuning.about }} {{ finetuning.diverged }}
{%- if finetuning.rows %} Each row is the rank correlation of one estimator with
{{ finetuning.truth_name }}; intervals are 95&nbsp;% percentile bootstrap over architectures. The
mean truth is that of the {{ finetuning.top }} architectures that the estimator ranks first.
{%- endif %}</p>
{% if finetuning.rows %}
<div class="wide">
<table class="agreement">
<thead><tr>
<th class="left" scope="col">Estimator</th>
<th class="whisker" scope="col">
<span class="scale"><span>{{ finetuning.scale_low }}</span><span>1</span></span></th>
<th scope="col">Kendall &tau;<sub>b</sub></th>
<th scope="col">Spearman &rho;</th>
<th scope="col">Mean truth<small>first {{ finetuning.top }}</small></th>
<th scope="col">n</th>
<th scope="col">Not finite</th>
</tr></thead>
<tbody>
{% for row in finetuning.rows %}
<tr>
<th class="left" scope="row">{{ row.name }}</th>
<td class="whisker">{{ row.whisker }}</td>
{% for cell in (row.kendall, row.spearman) %}
<td{% if cell.undefined %} class="undefined"{% endif %}>{{ cell.value }}
{%- if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}</td>
{% endfor %}
<td>{{ row.top }}</td>
<td>{{ row.n }}</td>
<td>{{ row.dropped }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
<div class="plots">
{% for plot in finetuning.plots %}
<figure>{{ plot.svg }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p class="about">No ground truth was given, so no rank correlation can be measured.</p>
{% endif %}
</section>
{% endif %}

<section>
<h2>All scored architectures</h2>
<div class="plots">
{% for plot in spread %}
<figure>{{ plot.svg }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>

{% if usages %}
<section>
<h2>Operations of the best</h2>
<p class="about">Which operations the architectures that rank first are made of. Where the
supernet's ranking is right, the plots by score look like those by ground truth.</p>
<div class="plots">
{% for plot in usages %}
<figure>{{ plot.svg }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if top %}
<section>
<h2>The best {{ "architecture" if top|length == 1 else "architectures" }}</h2>
<p class="about">In each cell information flows from left to right along the edges.
{%- if has_blocks %} A block is drawn in the style of its operation, and faintly where nothing leads
from it to the output. What comes from the input passes a 1x1 convolution; blocks that lead to the
output are put side by side there.{% endif %}
{%- if has_absent %} Edges whose operation is <i>none</i> are not drawn.{% endif %}</p>
<ul class="legend">
{% for op in legend %}<li>{{ op.line }}<span>{{ op.name }}</span></li>
{% endfor %}
</ul>
<div class="wide">
<table class="top">
<thead><tr>
<th class="left" scope="col">Rank</th>
<th class="left" scope="col">Cell</th>
<th scope="col">Index</th>
<th scope="col">Loss</th>
<th scope="col">Accuracy</th>
<th scope="col">Parameters<small>millions</small></th>
<th scope="col">FLOPs<small>millions</small></th>
{% if report.truth is not none %}<th scope="col">Ground truth</th>{% endif %}
</tr></thead>
{% for arch in top %}
<tbody>
<tr>
<td class="left rank">{{ arch.rank }}</td>
<td class="left cell">{{ arch.cell }}</td>
<td>{{ arch.index }}</td>
<td>{{ arch.loss }}</td>
<td>{{ arch.accuracy }}</td>
<td>{{ arch.params }}</td>
<td>{{ arch.flops }}</td>
{% if report.truth is not none %}<td>{{ arch.truth }}</td>{% endif %}
</tr>
<tr><td class="arch" colspan="{{ 8 if report.truth is not none else 7 }}">{{ arch.arch }}</td></tr>
</tbody>
{% endfor %}
</table>
</div>
</section>
{% endif %}

{% if cost %}
<section>
<h2>Cost</h2>
<p class="about">{{ cost.about }}</p>
{% for table in cost.tables %}
<div class="wide">
<table class="agreement cost">
<thead><tr>
{% for name in table.head %}
<th{% if loop.first %} class="left"{% endif %} scope="col">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, cells in table.rows %}
<tr><th class="left" scope="row">{{ name }}</th>
{%- for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
</section>
{% endif %}

{% if report.facts %}
<section>
<h2>How this was made</h2>
<table class="facts">
<tbody>
{% for key, value in report.facts %}
<tr><th scope="row">{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody>
</table>
</section>
{% endif %}

{% if report.notes %}
<section>
<h2>Notes</h2>
<ul class="notes">
{% for note in report.notes %}<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
</body>
</html>
"""
