"""The report's HTML: escaping, tables, figures and the page around them."""

import base64
import io
import itertools
import math
from collections.abc import Iterable
from html import escape

from matplotlib.figure import Figure

from scfusion_fm.evaluation.report.style import STYLE

PIXELS_PER_INCH = 130


class Spread(float):
    """A mean with the standard deviation of what it is the mean of; NaN where that is of a single value."""

    def __new__(cls, mean: float, sd: float):
        """Make a number that remembers its spread."""
        made = super().__new__(cls, mean)
        made.sd = sd
        return made


def render_page(title: str, lead: str, body: str) -> str:
    """Put the parts of the report into one page without external resources.

    Parameters
    ----------
    title
        Title as text.
    lead
        First paragraph as text.
    body
        The sections as HTML.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body>\n</html>\n'
    )


def render_findings(findings: Iterable[tuple[str, str]]) -> str:
    """Render sentences as a list.

    Parameters
    ----------
    findings
        Pairs of a mark ("ahead", "behind" or "") and the sentence as text.
    """
    items = "\n".join(f'<li class="{mark}">{escape(sentence)}</li>' for mark, sentence in findings)
    return f'<ul class="findings">\n{items}\n</ul>'


def render_facts(facts: dict[str, object]) -> str:
    """Render names and values as a definition list.

    Parameters
    ----------
    facts
        Values by name; both are escaped.
    """
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{format_value(value)}</dd>" for name, value in facts.items())
    return f"<dl>\n{rows}\n</dl>"


def render_table(
    rows: list[dict],
    columns: dict[str, str],
    best: dict[str, bool] | None = None,
    model: str | None = None,
    group: str | None = None,
) -> str:
    """Render a table; the best number of a column is bold, whoever's it is.

    Parameters
    ----------
    rows
        One dictionary per row.
    columns
        Headings by the name of the entry, in order.
    best
        By entry, whether more is better; entries that are absent get no bold number.
    model
        Rows whose "method" begins so are marked as the model's.
    group
        An entry: numbers are compared among successive rows with the same value of it, and lines part these rows.
    """
    parts = [list(part) for _, part in itertools.groupby(rows, key=lambda row: row[group] if group else None)]
    tops = [
        {name: find_best([row[name] for row in part], more) for name, more in (best or {}).items()} for part in parts
    ]
    numeric = {name: any(is_number(row[name]) for row in rows) for name in columns}

    def render_cell(name: str, value: object, top: dict[str, float]) -> str:
        text = format_value(value)
        if name in top and is_number(value) and text == format_value(top[name]):
            text = f"<strong>{text}</strong>"
        return f'<td class="number">{text}</td>' if numeric[name] else f"<td>{text}</td>"

    head = "".join(
        f'<th class="number">{escape(heading)}</th>' if numeric[name] else f"<th>{escape(heading)}</th>"
        for name, heading in columns.items()
    )
    lines = []
    for number, (part, top) in enumerate(zip(parts, tops, strict=True)):
        for row in part:
            marks = ["group"] if number and row is part[0] else []
            marks += ["model"] if model and str(row["method"]).startswith(model) else []
            cells = "".join(render_cell(name, row[name], top) for name in columns)
            lines.append(f'<tr class="{" ".join(marks)}">{cells}</tr>' if marks else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def render_figure(png: bytes, caption: str) -> str:
    """Render a picture that is part of the page.

    Parameters
    ----------
    png
        The picture.
    caption
        What it shows, as text; also read to those who cannot see it.
    """
    data = base64.b64encode(png).decode("ascii")
    text = escape(caption)
    width = int.from_bytes(png[16:20], "big") * 96 // PIXELS_PER_INCH  # the PNG header's width, in CSS pixels
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def encode_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Parameters
    ----------
    figure
        The figure.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def find_best(values: list, more_is_better: bool) -> float:
    """Return the best number, or NaN where there is none.

    Parameters
    ----------
    values
        Numbers; whatever is not a finite number is left out.
    more_is_better
        Whether the largest is the best.
    """
    numbers = [value for value in values if is_number(value)]
    if not numbers:
        return math.nan
    return max(numbers) if more_is_better else min(numbers)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number.

    Parameters
    ----------
    value
        Anything.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_value(value: object) -> str:
    """Return a value as escaped text: three decimals for fractions, n/a for what is missing.

    Parameters
    ----------
    value
        Anything.
    """
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(name))}: {format_value(number)}" for name, number in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, Spread) and math.isfinite(value.sd):
        return f"{value:.3f} ± {value.sd:.3f}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))
