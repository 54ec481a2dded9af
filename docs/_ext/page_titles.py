"""Show the title of a page where a link has its file's name as its text, which is what reads well on a code host."""

import re

from sphinx.application import Sphinx

NAMED = re.compile(r"\[([\w/]+\.md)\]\(\1(#[\w-]+)?\)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Let the text of such links be filled in."""
    app.connect("source-read", _empty_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _empty_links(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = NAMED.sub(r"[](\1\2)", source[0])
