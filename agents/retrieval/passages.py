"""What is stored, asked and answered: passages, their vectors, hits.

Made by curation, kept by retrieval, cited by whoever asks.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from datetime import datetime

import msgspec

# Derived once from a name, so that every installation gives the same passage the same id.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "xnai:passage")
_RULE = re.compile(r"^[^\S\n]*([^\w\s])\1{2,}[^\S\n]*$", re.MULTILINE)


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A verbatim span of a document: characters `start` to `end` of its extracted text are `text`.

    Attributes:
        source: names the document, as `docs/guide/install.md` or `pydoc:if`.
        title: of the document.
        heading: the headings above the passage, `Guide > Install`; empty where there are none.
        start: offset of its first character, in code points of the extracted text.
        end: offset after its last character.
        text: what stands there.
        sha256: of the text in UTF-8.
        repeat: how many earlier passages of this document say exactly the same.
        parts: how many passages the document has altogether.
        document_sha256: of the document's original bytes.
        document_digest: `digest` of the document's whole text.
        recipe: the number of the way in which the document was extracted and cut.
    """

    source: str
    title: str
    heading: str
    start: int
    end: int
    text: str
    sha256: str
    repeat: int
    parts: int
    document_sha256: str
    document_digest: str
    recipe: int

    @property
    def id(self) -> str:
        """A UUID of source, text and repeat: a passage that only moved within its document keeps it."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.source}\n{self.sha256}\n{self.repeat}"))


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """A passage and the vector under which it is found."""

    passage: Passage
    vector: list[float]


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A passage found.

    Attributes:
        passage: what was found.
        score: cosine similarity to the question, 1.0 for the same direction.
        ingested: when it was stored, UTC.
        also: other sources that say the same, best first.
    """

    passage: Passage
    score: float
    ingested: datetime
    also: tuple[str, ...] = ()


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of passages given to the store: so many were new, were changed, were there already."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0


def digest(text: str) -> str:
    """SHA-256 of a text regardless of line breaks, blanks, Unicode composition and underlines.

    Two texts with the same digest say the same, word for word.
    """
    words = " ".join(_RULE.sub("", unicodedata.normalize("NFC", text)).split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
