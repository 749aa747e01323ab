"""What is asked of the inference agent, and what it answers. Whoever asks needs nothing but this module."""

from __future__ import annotations

from typing import Literal

import msgspec

MINILM = "all-MiniLM-L6-v2"
"""The name of the default embedding model."""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.embed`.

    Attributes:
        model: which model made them. Vectors of two models cannot be compared.
        vectors: one per text, in their order, each of length 1 and of as many numbers as the model has
            dimensions.
    """

    model: str
    vectors: list[list[float]]


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of `inference.generate`: a prompt, in which control words of the model count, or messages.

    Attributes:
        max_tokens: the longest answer.
        temperature: 0 for the likeliest token each time.
        top_p: tokens that are less likely than these together are never chosen.
        seed: of the choice; without one it follows from the task's id.
        stop: texts before which the answer ends.
    """

    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.models`.

    Attributes:
        embedding: the name of the model that embeds.
        dimensions: of its vectors.
        generation: the name of the model that generates; None when none is configured.
        context: tokens that fit into that one, prompt and answer together; 0 without it.
    """

    embedding: str
    dimensions: int
    generation: str | None = None
    context: int = 0
