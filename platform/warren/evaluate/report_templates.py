"""The templates of a report page, as Jinja writes them."""

MARKDOWN = """# {{ report.title }} ({{ report.convention }}){% if report.model %}: {{ report.model | cell }}{% endif %}


{% if not page.lines %}
Only the benchmark's server scores these answers; what it takes is under `submission` in the scores.
{% else %}
| score | value | 95 % interval | questions |
|---|---:|---:|---:|
{% for line in page.lines %}
| {{ line.name | cell }} | {{ line.value | number }} | {{ line.interval }} | {{ line.num_questions or "" }} |
{% endfor %}
{% endif %}
{% if plot %}

![scores with their intervals]({{ plot_file }})
{% endif %}

## What was measured

| | |
|---|---|
{% for name, value in page.facts.items() %}
| {{ name | cell }} | {{ value | cell }} |
{% endfor %}
{% if page.failures %}

## Failed questions

| question | reason |
|---|---|
{% for key, reason in page.failures.items() %}
| {{ key | cell }} | {{ reason | cell }} |
{% endfor %}
{% endif %}
{% for title, examples in (("Right answers", page.right), ("Wrong answers", page.wrong)) %}
{% if examples %}

## {{ title }}

The images are in report.html.

| id | question | answer | truth |
|---|---|---|---|
{% for each in examples %}
| {{ each.key | cell }} | {{ each.question | cell }} | {{ each.answer | cell }} | {{ each.truth | cell }} |
{% endfor %}
{% endif %}
{% endfor %}
"""

HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ report.title }} ({{ report.convention }})</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } td { overflow-wrap: anywhere }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1em }
figure { margin: 0; border: 1px solid #ddd; padding: .6em; white-space: pre-wrap } figure img { max-width: 100% }
.right { border-left: 4px solid #2a7 } .wrong { border-left: 4px solid #c44 } img.plot { max-width: 100% }
</style></head><body>
<h1>{{ report.title }} ({{ report.convention }}){% if report.model %}: {{ report.model }}{% endif %}</h1>
{% if not page.lines %}
<p>Only the benchmark's server scores these answers; what it takes is under <code>submission</code> in the scores.</p>
{% else %}
<table><tr><th>score</th><th class="n">value</th><th class="n">95 % interval</th><th class="n">questions</th></tr>
{% for line in page.lines %}
<tr><td>{{ line.name }}</td><td class="n">{{ line.value | number }}</td><td class="n">{{ line.interval }}</td>
<td class="n">{{ line.num_questions or "" }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if plot %}<img class="plot" alt="scores with their intervals" src="data:image/png;base64,{{ plot }}">{% endif %}

<h2>What was measured</h2>
<table>
{% for name, value in page.facts.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% if page.failures %}
<h2>Failed questions</h2>
<table><tr><th>question</th><th>reason</th></tr>
{% for key, reason in page.failures.items() %}
<tr><td>{{ key }}</td><td>{{ reason }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for title, kind, examples in (("Right answers", "right", page.right), ("Wrong answers", "wrong", page.wrong)) %}
{% if examples %}
<h2>{{ title }}</h2>
<div class="examples">
{% for each in examples %}
<figure class="{{ kind }}">
{%- for image in each.images %}<img alt="image of {{ each.key }}" src="{{ image }}">{% endfor %}
<b>{{ each.key }}</b>
{{ each.question }}
answer: <b>{{ each.answer }}</b>
truth: <b>{{ each.truth }}</b></figure>
{% endfor %}
</div>
{% endif %}
{% endfor %}
</body></html>
"""
