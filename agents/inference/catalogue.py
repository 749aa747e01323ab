"""The models of the settings: found by name, checked, and opened when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import anyio
import anyio.to_thread

from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.engine_client import Engine
from xnai.agents.inference.errors import UnknownModel
from xnai.agents.inference.file_hash import file_hash
from xnai.agents.inference.frames import Open, Opened
from xnai.agents.inference.gguf_file import check_gguf
from xnai.agents.inference.minilm import default_cache
from xnai.agents.inference.requests import LoadedModel
from xnai.protocol.names import nearest

NO_MODEL = (
    "No generation model is configured. Name one in xnai.toml: "
    '[agents.inference.settings] model = "path/to/model.gguf"'
)


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

    def facts(self) -> LoadedModel:
        said = self.opened or Opened(self.name, self.frame.context, 0, 0, loaded=False)
        weights, kv, buffers = said.memory
        return LoadedModel(
            name=self.name,
            kind="embed" if self.frame.embeds else "generate",
            loaded=said.loaded,
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

    def __init__(self, engine: Engine, embedding: Open, texts: Mapping[str, Open]) -> None:
        self.embedding = Model(embedding)
        self.texts = {name: Model(frame) for name, frame in texts.items()}
        self._engine = engine

    @property
    def default(self) -> Model | None:
        return next(iter(self.texts.values()), None)

    def facts(self) -> tuple[LoadedModel, ...]:
        models = (self.embedding, *self.texts.values())
        for model in models:
            model.opened = self._engine.opened.get(model.name, model.opened)
        return tuple(model.facts() for model in models)

    async def text(self, name: str | None) -> Model:
        """The model of this name, or the default one, open.

        Raises:
            UnknownModel: there is none.
            ModelMissing, ModelInvalid, Reject: it cannot be opened.
        """
        model = self.default if name is None else self.texts.get(name)
        if model is None:
            raise UnknownModel(self._unknown(name))
        await self.open(model)
        return model

    async def open(self, model: Model) -> Opened:
        """Have a model open: its file is looked at before the engine gets it. Raises as `text`."""
        if model.opened and self._engine.holds(model.name):
            return model.opened
        async with model.opening:
            if not model.hash:
                path = Path(model.frame.path)
                await anyio.to_thread.run_sync(check_gguf, path)
                model.hash = await anyio.to_thread.run_sync(partial(file_hash, path, default_cache()))
            model.opened = await self._engine.open(model.frame)
        return model.opened

    def _unknown(self, name: str | None) -> str:
        if name is None or not self.texts:
            return NO_MODEL
        meant = nearest(name, self.texts)
        hint = f" Did you mean {meant}?" if meant else ""
        return f"There is no model {name}: there is {', '.join(self.texts)}.{hint}"
