"""From decoded text of a media type to text with a structure."""

from __future__ import annotations

from collections.abc import Callable

from xnai.agents.curation.html import extract_html
from xnai.agents.curation.markdown import extract_markdown
from xnai.agents.curation.outline import Extract
from xnai.agents.curation.rst import extract_rst


def extract_plain(text: str) -> Extract:
    """The text as it is. Paragraphs, separated by blank lines, are all its structure."""
    return Extract(text=text)


_EXTRACTORS: dict[str, Callable[[str], Extract]] = {
    "text/markdown": extract_markdown,
    "text/html": extract_html,
    "text/x-rst": extract_rst,
    "text/plain": extract_plain,
}


def extract(text: str, media_type: str) -> Extract:
    """Text and structure of a document. Line ends become `\\n` first. Never raises.

    A media type that is none of Markdown, HTML, reStructuredText and plain text is read as plain text.
    """
    return _EXTRACTORS.get(media_type, extract_plain)(text.replace("\r\n", "\n").replace("\r", "\n"))
