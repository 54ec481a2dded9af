"""A part of a page: its heading, what the summary says of it, its tables and its figures."""

from dataclasses import dataclass, field
from html import escape

from scfusion_fm.evaluation.report.page import render_figure
from scfusion_fm.evaluation.report.text import Metric


@dataclass
class Section:
    """One part of the report.

    Attributes
    ----------
    title
        Heading.
    findings
        Sentences for the summary, each with its mark.
    html
        What follows the heading.
    figures
        PNG files by name.
    """

    title: str
    findings: list[tuple[str, str]]
    html: str = ""
    figures: dict[str, bytes] = field(default_factory=dict)

    def add(self, *parts: str) -> None:
        """Append HTML.

        Parameters
        ----------
        parts
            Pieces of HTML.
        """
        self.html += "".join(f"{part}\n" for part in parts)

    def add_figure(self, name: str, png: bytes, caption: str) -> None:
        """Append a picture and keep it as a file.

        Parameters
        ----------
        name
            Name of the file.
        png
            The picture.
        caption
            What it shows.
        """
        self.figures[name] = png
        self.add(render_figure(png, caption))


def render_readings(metrics: dict[str, Metric]) -> str:
    """Render one line per metric on how to read it.

    Parameters
    ----------
    metrics
        The metrics by entry.
    """
    lines = "".join(f"<li><b>{escape(metric.name)}</b>: {escape(metric.reading)}</li>\n" for metric in metrics.values())
    return f'<h3>How to read this</h3>\n<ul class="note">\n{lines}</ul>'
