"""What curation reads, how it turns into text with a structure, and what is left out and why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnai.agents.curation.documents import Document, Skipped, document
from xnai.agents.curation.extract import extract
from xnai.agents.curation.outline import Extract
from xnai.agents.curation.sources import UnknownSource, read_sources

PAGE = """<!DOCTYPE html>
<html><head><title> The  Guide </title><style>p {color: red}</style></head>
<body><header>Acme Corporation</header><nav><a href="/">Home</a></nav>
<main><h1>Guide<a class="headerlink" href="#guide">¶</a></h1>
<p>Some <b>bold</b>
   text&nbsp;&amp; more.<br>Next line.</p>
<h2>Install</h2><ol><li>Fetch <li><p>Build</p></ol>
<pre>
# not a heading
  two  spaces
</pre><script>alert("no")</script>
<table><tr><th>Name<th>Value</tr><tr><td>a</td><td>1</td></tr></table>
<p hidden>secret</p><p style="display: none">invisible</p>
</main><footer>Copyright</footer></body></html>"""

MARKS = ("<p>", "</p>", "<li>", "<table>", "<td>", "<pre>", "</div>", "<h1>", "<", "&", "&#0;", " x ", "<!--")


def titles(found: Extract) -> list[tuple[int, str]]:
    return [(heading.level, heading.title) for heading in found.headings]


def read(*asked: Path | str) -> tuple[dict[str, Document], dict[str, str]]:
    items = list(read_sources(map(str, asked)))
    documents = {item.source: item for item in items if isinstance(item, Document)}
    return documents, {item.source: item.code for item in items if isinstance(item, Skipped)}


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Markdown


def test_markdown_is_kept_as_it_is_written_and_its_headings_are_found() -> None:
    text = "# The *Guide* ##\n\nText.\n\nSet `up`\n--------\n\n### [Linked](http://a) title {#anchor}\n"
    found = extract(text, "text/markdown")
    assert found.text == text
    assert titles(found) == [(1, "The *Guide*"), (2, "Set up"), (3, "Linked title")]
    assert [text[heading.start : heading.end] for heading in found.headings] == [
        "# The *Guide* ##",
        "Set `up`\n--------",
        "### [Linked](http://a) title {#anchor}",
    ]


@pytest.mark.parametrize(
    "block",
    [
        "```sh\n# comment\n```",
        "~~~~\n```\n# comment\n~~~\n# still code\n~~~~",
        "<!--\n# comment\n-->",
        "<pre>\n# comment\n</pre>",
        "```\n# never closed",
    ],
)
def test_what_looks_like_a_heading_within_code_or_a_comment_is_none(block: str) -> None:
    found = extract(f"# One\n\n{block}", "text/markdown")
    assert titles(found) == [(1, "One")]
    assert [found.text[start:end] for start, end in found.blocks] == [block]


@pytest.mark.parametrize(
    "line",
    [
        "    # code",
        "#hashtag",
        "####### seven",
        "- item\n---",
        "> quote\n---",
        "a\n\n---",
        "| a |\n|---|",
        "***\n---",
    ],
)
def test_lines_that_are_no_headings_are_not_taken_for_one(line: str) -> None:
    assert titles(extract(line, "text/markdown")) == []


def test_an_inline_code_span_of_three_backticks_opens_no_fence() -> None:
    assert titles(extract("``` a ```\n\n# One\n", "text/markdown")) == [(1, "One")]


@pytest.mark.parametrize(
    "front", ["---\ntitle: 'From above'\ntags: [a]\n---\n", '+++\ntitle = "From above"\n+++\n']
)
def test_front_matter_gives_the_title_and_is_left_out_of_the_text(front: str) -> None:
    found = extract(f"{front}# One\n", "text/markdown")
    assert (found.title, found.text) == ("From above", "# One\n")


@pytest.mark.parametrize("text", ["---\n\n# One\n\n---\n", "---\ntitle: never closed\n"])
def test_a_rule_at_the_top_of_a_document_is_no_front_matter(text: str) -> None:
    assert extract(text, "text/markdown").text == text


# HTML


def test_a_page_becomes_text_with_headings_and_without_navigation_or_scripts() -> None:
    found = extract(PAGE, "text/html")
    assert found.text == (
        "Guide\n\nSome bold text\N{NO-BREAK SPACE}& more.\nNext line.\n\nInstall\n\n1. Fetch\n\n2. Build\n\n"
        "# not a heading\n  two  spaces\n\nName | Value\na | 1"
    )
    assert found.title == "The Guide"
    assert titles(found) == [(1, "Guide"), (2, "Install")]
    assert [found.text[heading.start : heading.end] for heading in found.headings] == ["Guide", "Install"]
    assert [found.text[start:end].strip() for start, end in found.blocks] == [
        "# not a heading\n  two  spaces"
    ]


def test_a_page_that_is_all_navigation_is_read_all_the_same() -> None:
    assert extract("<body><nav>Only <a href=x>this</a></nav></body>", "text/html").text == "Only this"


def test_an_xhtml_page_that_declares_its_encoding_is_read() -> None:
    page = '<?xml version="1.0" encoding="iso-8859-1"?><html xmlns="http://www.w3.org/1999/xhtml"><p>ü</p></html>'
    assert extract(page, "text/html").text == "ü"


@given(st.text() | st.lists(st.sampled_from(MARKS)).map("".join))
def test_no_html_however_bad_raises(text: str) -> None:
    found = extract(text, "text/html")
    assert all(0 <= heading.start < heading.end <= len(found.text) for heading in found.headings)
    assert all(0 <= start < end <= len(found.text) for start, end in found.blocks)


@pytest.mark.parametrize(
    "mark", ["<div>", "<b>", "<a ", "<!--", "</", "<![CDATA[", "<table>", "<ul><li>", "<h1>", "<pre>"]
)
def test_a_hostile_page_is_done_with(mark: str) -> None:
    assert len(extract(mark * 200_000, "text/html").text) <= len(mark) * 200_000


# pydoc and reStructuredText


def test_underlined_headings_take_their_levels_from_the_order_of_their_styles() -> None:
    text = (
        "Top\n***\n\nText.\n\nPart\n====\n\n   indented\n   ========\n\n=====\nOver\n=====\n\nlong line\n==\n"
    )
    assert titles(extract(text, "text/x-rst")) == [(1, "Top"), (2, "Part"), (3, "Over")]


def test_every_topic_of_pydoc_is_a_document_with_its_title() -> None:
    documents, skipped = read("pydoc:")
    assert not skipped
    assert sorted(documents) == sorted(f"pydoc:{topic}" for topic in topics)
    assert documents["pydoc:if"].title == 'The "if" statement'
    assert documents["pydoc:if"].text == topics["if"]
    assert all(document.headings for document in documents.values())


def test_one_topic_of_pydoc_is_asked_for_by_name() -> None:
    assert list(read("pydoc:while")[0]) == ["pydoc:while"]
    assert read("pydoc_data.topics")[0].keys() == read("pydoc:")[0].keys()


# Any text


@given(st.text(), st.sampled_from(["text/markdown", "text/html", "text/x-rst", "text/plain", "image/png"]))
def test_any_text_of_any_type_gives_a_structure_that_fits_it(text: str, media_type: str) -> None:
    found = extract(text, media_type)
    spans = [(heading.start, heading.end) for heading in found.headings]
    for ordered in (spans, list(found.blocks)):
        edges = [edge for span in ordered for edge in span]
        assert edges == sorted(edges)
        assert all(0 <= edge <= len(found.text) for edge in edges)
    assert "\r" not in found.text or media_type == "text/html"


@given(st.binary())
def test_any_bytes_give_a_document_or_a_reason(data: bytes) -> None:
    found = document("a.md", data, "text/markdown")
    if isinstance(found, Document):
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        assert found.text_sha256 == hashlib.sha256(found.text.encode()).hexdigest()
    else:
        assert found.code in {"binary", "not_utf8", "empty"}


def test_a_byte_order_mark_and_foreign_line_ends_do_not_count_in_offsets() -> None:
    found = document("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree", "text/plain")
    assert isinstance(found, Document)
    assert found.text == "one\ntwo\nthree"


# Files and folders


def test_a_folder_is_read_in_order_with_all_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(
        folder,
        {"b.md": "# B", "a/z.html": "<h1>Z</h1>", "a/b.txt": "text", "a.rst": "A\n=\n", "LICENSE": "free"},
    )
    documents, skipped = read(folder)
    assert list(documents) == ["docs/LICENSE", "docs/a/b.txt", "docs/a/z.html", "docs/a.rst", "docs/b.md"]
    assert not skipped
    assert {document.media_type for document in documents.values()} == {
        "text/plain",
        "text/html",
        "text/x-rst",
        "text/markdown",
    }
    assert documents["docs/a/b.txt"].title == "b"


def test_what_cannot_be_read_is_skipped_with_a_reason_and_the_rest_is_read(tmp_path: Path) -> None:
    write(
        tmp_path / "docs",
        {
            ".git/config.md": "hidden",
            "node_modules/left-pad/README.md": "not ours",
            "good.md": "good",
            "image.png": b"\x89PNG\0",
            "zeros.txt": b"a\0b",
            "latin.txt": "caf\xe9 noir".encode("latin-1"),
            "blank.md": " \n\t\n",
            "large.txt": b"x" * 101,
        },
    )
    os.mkfifo(tmp_path / "docs" / "pipe.txt")
    items = list(read_sources([str(tmp_path / "docs")], max_bytes=100))
    skipped = {item.source: item for item in items if isinstance(item, Skipped)}
    assert [item.source for item in items if isinstance(item, Document)] == ["docs/good.md"]
    assert {source: item.code for source, item in skipped.items()} == {
        "docs/.git": "hidden",
        "docs/node_modules": "hidden",
        "docs/image.png": "other_type",
        "docs/zeros.txt": "binary",
        "docs/latin.txt": "not_utf8",
        "docs/blank.md": "empty",
        "docs/large.txt": "too_large",
        "docs/pipe.txt": "unreadable",
    }
    assert skipped["docs/latin.txt"].reason == "is not UTF-8: byte 0xe9 at offset 3"


def test_links_are_followed_inside_the_folder_and_each_file_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, {"a/one.md": "one"})
    write(tmp_path, {"private.md": "private"})
    links: dict[str, Path | str] = {
        "a/loop": folder,
        "b": folder / "a",
        "self": "self",
        "gone.md": "nowhere",
        "out.md": tmp_path / "private.md",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    documents, skipped = read(folder)
    assert list(documents) == ["docs/a/one.md"]
    assert skipped == {
        "docs/a/loop": "read_already",
        "docs/b": "read_already",
        "docs/self": "unreadable",
        "docs/gone.md": "unreadable",
        "docs/out.md": "outside",
    }


def test_a_folder_made_of_links_to_a_hidden_place_in_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    write(folder, {"..data/guide.md": "# Guide"})
    (folder / "guide.md").symlink_to("..data/guide.md")
    assert list(read(folder)[0]) == ["mounted/guide.md"]


def test_a_file_asked_for_by_name_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, {".hidden.md": "# Yes", "program.py": "print()"})
    documents, _ = read(tmp_path / ".hidden.md", tmp_path / "program.py")
    assert {source: document.media_type for source, document in documents.items()} == {
        ".hidden.md": "text/markdown",
        "program.py": "text/plain",
    }


def test_two_documents_of_one_request_never_have_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, {"a/docs/x.md": "one", "b/docs/x.md": "two"})
    documents, skipped = read(tmp_path / "a" / "docs", tmp_path / "b" / "docs")
    assert {source: document.text for source, document in documents.items()} == {"docs/x.md": "one"}
    assert skipped == {"docs/x.md": "same_name"}


def test_a_file_whose_name_is_no_text_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "docs") + b"/caf\xe9.md")).write_text("x")
    assert read(tmp_path / "docs") == ({}, {"docs/caf\\udce9.md": "bad_name"})


@pytest.mark.parametrize("asked", ["nowhere", "pydoc:whiel", "a\0b", ""])
def test_what_does_not_exist_is_refused_before_anything_is_read(asked: str) -> None:
    with pytest.raises(UnknownSource) as caught:
        read_sources(["pydoc:if", asked or "nowhere/"])
    assert caught.value.code == "unknown_source"
    assert asked != "pydoc:whiel" or "did you mean pydoc:while?" in str(caught.value)


def test_the_current_folder_gives_its_name_to_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here", {"a.md": "a"})
    monkeypatch.chdir(tmp_path / "here")
    assert list(read(".")[0]) == list(read("../here")[0]) == ["here/a.md"]
