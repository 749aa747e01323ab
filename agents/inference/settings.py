"""`[agents.inference.settings]`: which models there are, and how they are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from xnai.agents.inference.frames import Open, Setup
from xnai.agents.settings import AgentSettings, Configuration, Count, Positive, Seconds, Table, Weight

Slots = Positive | Literal["auto"]
Mode = Literal["exact", "fast"]


class ModelSettings(AgentSettings):
    """`[agents.inference.settings.models.NAME]`.

    Attributes:
        path: a GGUF that generates text.
        context: the most tokens of a prompt and its answer together.
        slots: requests that compute at the same time; "auto" measures how many pay.
        kept: further sequences of the KV cache, which hold prompts for requests that begin alike; of two or
            more, one stays free where several requests compute at the same time, to move others.
        mode: "fast" computes with flash attention and in large batches; "exact" without, so that an answer
            hardly depends on who else is answered.
    """

    path: Path
    context: Positive = 4096
    slots: Slots = "auto"
    kept: Count = 4
    mode: Mode = "exact"


class InferenceSettings(AgentSettings):
    """`[agents.inference.settings]`.

    Attributes:
        model: a GGUF that generates text, known by its file's name; with those of `models`, the first.
        context, slots, kept, mode: of that one.
        models: further ones, by the name that requests ask for. They are opened when they are asked for.
        embedding_model: a GGUF made for embeddings, its tokenizer beside it, in the place of the default.
        threads: of a computation; by default as many as there are physical cores.
        memory: GiB that all loaded models may take; by default what is free, less a fifth.
        saved_memory, saved_disk: MiB for what sequences of the KV cache held that had to make room, which is
            restored where that is cheaper than to compute it again.
        gap: seconds that an answer waits for its next token at most, whatever prompt is read beside it.
        flush: seconds for which the text of an answer may be gathered into one piece, behind the first.
        queue, queue_tokens: requests that may wait, and tokens of their prompts; beyond is refused as busy.
        aging: seconds of waiting that lift a request by a lane.
        lead: tokens of advantage that a prompt which begins as an earlier one may have over other senders.
        overtaking: seconds of waiting after which no such advantage gets past a request any more.
        weights: of senders: one of weight 2 may use twice as many tokens as others; 1 unless named.
        nice: added to the priority of the engine's process, 0 to 19.
        cache: seconds for which an answer is given again to the same request; 0 for never.
        cache_size: MiB of answers that are remembered in memory.
        redis: the URL of a Redis that remembers them instead.
    """

    model: Path | None = None
    context: Positive = 4096
    slots: Slots = "auto"
    kept: Count = 4
    mode: Mode = "exact"
    models: Table[ModelSettings]
    embedding_model: Path | None = None
    threads: Positive | None = None
    memory: Weight | None = None
    saved_memory: Count = 0
    saved_disk: Count = 0
    gap: Weight = 0.1
    flush: Seconds = 0.1
    queue: Positive = 256
    queue_tokens: Positive = 262_144
    aging: Weight = 20.0
    lead: Count = 1024
    overtaking: Seconds = 10.0
    weights: Table[Weight]
    nice: Count = 0
    cache: Seconds = 600.0
    cache_size: Positive = 8
    redis: str | None = None

    def all_models(self) -> dict[str, ModelSettings]:
        """The models that generate text, by name, the default one first."""
        if self.model is None:
            return dict(self.models)
        first = ModelSettings(
            path=self.model, context=self.context, slots=self.slots, kept=self.kept, mode=self.mode
        )
        return {self.model.stem: first, **self.models}


configure = Configuration("inference", InferenceSettings)


def setup_frame(settings: InferenceSettings) -> Setup:
    """What the engine is told of the settings."""
    return Setup(
        threads=settings.threads or 0,
        gap=settings.gap,
        flush=settings.flush,
        queue=settings.queue,
        queue_tokens=settings.queue_tokens,
        aging=settings.aging,
        lead=settings.lead,
        overtaking=settings.overtaking,
        nice=settings.nice,
        folder=str(configure.folder / "inference") if configure.folder else "",
        saved_memory=settings.saved_memory << 20,
        saved_disk=settings.saved_disk << 20,
        memory=int(settings.memory * (1 << 30)) if settings.memory else 0,
    )


def open_frame(name: str, settings: ModelSettings, *, later: bool) -> Open:
    """What the engine is told of a model; one that is for later is loaded when it is asked for."""
    return Open(
        name,
        str(configure.path(settings.path)),
        context=settings.context,
        slots=0 if settings.slots == "auto" else settings.slots,
        kept=settings.kept,
        fast=settings.mode == "fast",
        later=later,
    )
