"""The models of the settings: found by name, checked, and opened when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import anyio
import anyio.to_thread

from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.engine_client import Engine
from xnai.agents.inference.errors import MemoryShort, UnknownModel
from xnai.agents.inference.file_hash import file_hash
from xnai.agents.inference.frames import Open, Opened
from xnai.agents.inference.gguf_file import read_gguf
from xnai.agents.inference.memory import available, fits, plan_memory, usual_reserve
from xnai.agents.inference.minilm import default_cache
from xnai.agents.inference.requests import LoadedModel
from xnai.protocol.names import nearest

NO_MODEL = (
    "No generation model is configured. Name one in xnai.toml: "
    '[agents.inference.settings] model = "path/to/model.gguf"'
)
_GUESSED_SLOTS = 4  # for the arithmetic, where the engine is to measure how many pay
_GIB = 1 << 30


class Model:
    """A model of the settings.

    Attributes:
        frame: what the engine is asked to open.
        hash: the SHA-256 of its file; "" before it was first opened.
        opened: what the engine said of it, None before.
    """

    def __init__(self, frame: Open) -> None:
        self.name, self.frame = frame.name, frame
        self.hash = ""
        self.opened: Opened | None = None
        self.opening = anyio.Lock()

    @cached_property
    def template(self) -> ChatTemplate:
        """Its chat template, once it is open. Raises TemplateFailed."""
        assert self.opened is not None
        said = self.opened
        return ChatTemplate(
            said.template,
            control_words=said.control_words,
            begin_word=said.begin_word,
            end_word=said.end_word,
        )

    def facts(self, *, loaded: bool) -> LoadedModel:
        said = self.opened or Opened(self.name, self.frame.context, 0, 0)
        weights, kv, buffers = said.memory
        return LoadedModel(
            name=self.name,
            kind="embed" if self.frame.embeds else "generate",
            loaded=loaded,
            context=said.context,
            dimensions=said.dimensions if self.frame.embeds else 0,
            slots=said.slots,
            hash=self.hash,
            weights=weights,
            kv=kv,
            buffers=buffers,
            prefill=said.prefill,
            decode=said.decode,
        )


class Catalogue:
    """All models, by name; `embedding` is the one that embeds, the first other one the default."""

    def __init__(
        self, engine: Engine, embedding: Open, texts: Mapping[str, Open], memory: float | None
    ) -> None:
        self.embedding = Model(embedding)
        self.texts = {name: Model(frame) for name, frame in texts.items()}
        self._engine, self._memory = engine, memory

    @property
    def default(self) -> Model | None:
        return next(iter(self.texts.values()), None)

    def facts(self) -> tuple[LoadedModel, ...]:
        return tuple(
            model.facts(loaded=model.name in self._engine.opened)
            for model in (self.embedding, *self.texts.values())
        )

    async def text(self, name: str | None) -> Model:
        """The model of this name, or the default one, open.

        Raises:
            UnknownModel: there is none.
            ModelMissing, ModelInvalid, MemoryShort, Reject: it cannot be opened.
        """
        model = self.default if name is None else self.texts.get(name)
        if model is None:
            raise UnknownModel(self._unknown(name))
        await self.open(model)
        return model

    async def open(self, model: Model) -> Opened:
        """Have a model open: its file is looked at before the engine gets it. Raises as `text`."""
        if model.opened and model.name in self._engine.opened:
            return model.opened
        async with model.opening:
            if not model.hash:
                await anyio.to_thread.run_sync(self._check, model.frame)
                path = Path(model.frame.path)
                model.hash = await anyio.to_thread.run_sync(partial(file_hash, path, default_cache()))
            model.opened = await self._engine.open(model.frame)
        return model.opened

    def _check(self, frame: Open) -> None:
        info = read_gguf(Path(frame.path))
        if frame.embeds:
            return
        plan = plan_memory(
            info, frame.context, (frame.slots or _GUESSED_SLOTS) + frame.kept, flash=frame.fast
        )
        free = available() if self._memory is None else int(self._memory * _GIB) - self._taken()
        reserve = usual_reserve(free) if self._memory is None else 0
        if why_not := fits(plan, free, reserve=reserve):
            raise MemoryShort(f"{frame.name} {why_not}")

    def _taken(self) -> int:
        return sum(sum(opened.memory) for opened in self._engine.opened.values())

    def _unknown(self, name: str | None) -> str:
        if name is None or not self.texts:
            return NO_MODEL
        meant = nearest(name, self.texts)
        hint = f" Did you mean {meant}?" if meant else ""
        return f"There is no model {name}: there is {', '.join(self.texts)}.{hint}"
