"""HTML to text: headings, paragraphs, lists, tables and code stay apart; scripts and navigation go.

Read by lxml (libxml2): of the parsers tried it alone takes bounded time on hostile pages. Python 3.11's own
`html.parser` is quadratic on unclosed marks and selectolax on deep nesting (two minutes for 1 MB); Beautiful
Soup stands on one of these.
"""

from __future__ import annotations

import re

from lxml import etree

from xnai.agents.curation.outline import Extract, Heading, first_title

_BLANKS = re.compile(r"[ \t\n\r\f]+")
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_LEVELS = {f"h{level}": level for level in range(1, 7)}
# How many line ends stand at least around an element; those not named flow with the text.
_BREAKS = {
    **dict.fromkeys(("p", "pre", "ul", "ol", "dl", "table", "blockquote", "figure", "hr", *_LEVELS), 2),
    **dict.fromkeys(("main", "article", "section", "header", "footer", "nav", "aside", "details"), 2),
    **dict.fromkeys(
        ("body", "div", "li", "tr", "dt", "dd", "figcaption", "caption", "summary", "address"), 1
    ),
    **dict.fromkeys(("form", "fieldset", "legend", "center", "thead", "tbody", "tfoot"), 1),
}
_NEVER_TEXT = frozenset(
    (
        *("head", "script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "audio"),
        *("video", "select", "button", "textarea", "dialog"),
    )
)
_BOILERPLATE = frozenset(("nav", "aside", "footer"))
_BOILERPLATE_ROLES = frozenset(("navigation", "banner", "contentinfo", "search", "complementary"))
_PERMALINKS = frozenset(("¶", "#", "§", "🔗", ""))


def extract_html(text: str) -> Extract:
    """The readable text of a page. Never raises: what no browser could read either gives an empty text.

    Reads `<main>` or the one `<article>` when there is one. What is nested deeper than 256 elements
    (libxml2's limit) is left out.
    """
    tree = _parse(text)
    if tree is None:
        return Extract(text="")
    titles = [" ".join("".join(found.itertext()).split()) for found in tree.iter("title")]
    writer = _Writer()
    for boilerplate in (False, True):
        writer = _Writer()
        _write(_root(tree), writer, boilerplate=boilerplate)
        if writer.length:
            break
    headings = tuple(writer.headings)
    title = next(filter(None, titles), None) or first_title(headings)
    return Extract(text="".join(writer.parts), title=title, headings=headings, blocks=tuple(writer.blocks))


def _parse(text: str) -> etree._Element | None:
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True)
    try:
        # As bytes: lxml refuses a str that declares an encoding, as every XHTML page does.
        return etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.LxmlError:
        return None


def _root(tree: etree._Element) -> etree._Element:
    for tag in ("main", "article"):
        found = list(tree.iter(tag))
        if len(found) == 1 and any(part.strip() for part in found[0].itertext()):
            return found[0]
    return next(tree.iter("body"), tree)


def _write(root: etree._Element, writer: _Writer, *, boilerplate: bool) -> None:
    walk = etree.iterwalk(root, events=("start", "end"))
    dropped: etree._Element | None = None
    for event, element in walk:
        if event == "start":
            if element is not root and _is_dropped(element, boilerplate=boilerplate):
                dropped = element
                walk.skip_subtree()
            else:
                writer.open(element)
                writer.write(element.text or "")
            continue
        if element is dropped:
            dropped = None
        else:
            writer.close(element)
        if element is not root:
            writer.write(element.tail or "")


def _is_dropped(element: etree._Element, *, boilerplate: bool) -> bool:
    tag = element.tag
    if tag in _NEVER_TEXT or (tag == "a" and "".join(element.itertext()).strip() in _PERMALINKS):
        return True
    if boilerplate:
        return False
    if tag in _BOILERPLATE or (tag == "header" and next(element.iter("h1"), None) is None):
        return True
    if "hidden" in element.attrib or element.get("aria-hidden") == "true":
        return True
    return element.get("role") in _BOILERPLATE_ROLES or bool(_HIDDEN_STYLE.search(element.get("style", "")))


class _Writer:
    """Collects text and remembers where its structure stands. Blanks collapse outside `<pre>`."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[Heading] = []
        self.blocks: list[tuple[int, int]] = []
        self._line_ends = 0
        self._space = False
        self._prefix = ""
        self._row = 0  # where the current table row began
        self._items: dict[etree._Element, int] = {}  # how many items of a numbered list were seen
        self._pre: etree._Element | None = None
        self._heading: etree._Element | None = None
        self._began: tuple[int, int] | None = None  # length and parts when the open heading or code began

    def write(self, text: str) -> None:
        if self._pre is not None:
            # The line end after the tag belongs to the markup (HTML 13.2.6.4.7).
            self._put(text.removeprefix("\n") if self._began is None else text)
            return
        words = _BLANKS.sub(" ", text)
        self._space = self._space or words.startswith(" ")
        if body := words.strip(" "):
            self._put(body)
            self._space = words.endswith(" ")

    def open(self, element: etree._Element) -> None:
        tag = str(element.tag)
        if tag == "br":
            self._line_ends = min(2, self._line_ends + 1)
        elif tag in ("td", "th"):
            self._cell()
        self._break(_BREAKS.get(tag, 0))
        if tag == "tr":
            self._row = self.length
        elif tag == "li":
            self._prefix = self._bullet(element.getparent())
        elif (tag == "pre" or tag in _LEVELS) and self._pre is None and self._heading is None:
            self._pre, self._heading = (element, None) if tag == "pre" else (None, element)
            self._began = None

    def close(self, element: etree._Element) -> None:
        if element is self._pre:
            self._end_pre()
        elif element is self._heading:
            if self._began is not None:
                start, first = self._began
                title = " ".join("".join(self.parts[first:]).split())
                level = _LEVELS[str(element.tag)]
                self.headings.append(Heading(start=start, end=self.length, level=level, title=title))
            self._heading = None
        self._break(_BREAKS.get(str(element.tag), 0))

    def _end_pre(self) -> None:
        self._pre = None
        if self._began is None:
            return
        last = self.parts[-1]
        self.parts[-1] = last.rstrip("\n")
        self.length -= len(last) - len(self.parts[-1])
        if self._began[0] < self.length:
            self.blocks.append((self._began[0], self.length))

    def _bullet(self, parent: etree._Element | None) -> str:
        if parent is None or parent.tag != "ol":
            return "- "
        self._items[parent] = self._items.get(parent, 0) + 1
        return f"{self._items[parent]}. "

    def _cell(self) -> None:
        if self.length > self._row and not self._line_ends:
            self._space = False
            self._prefix = " | "

    def _break(self, line_ends: int) -> None:
        self._line_ends = max(self._line_ends, line_ends)
        if line_ends:
            self._space = False

    def _put(self, text: str) -> None:
        if not text:
            return
        gap = "\n" * self._line_ends if self.length else ""
        gap += self._prefix or (" " if self._space and self.length and not self._line_ends else "")
        self._line_ends, self._space, self._prefix = 0, False, ""
        if gap:
            self.parts.append(gap)
            self.length += len(gap)
        if self._began is None and (self._pre is not None or self._heading is not None):
            self._began = (self.length, len(self.parts))
        self.parts.append(text)
        self.length += len(text)
