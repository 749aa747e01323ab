"""The inference agent as it is used: `xnai up` with a model, and callers on its bus."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from benchmarks import stack
from benchmarks.inference.targets import SAMPLING, Trace
from xnai.agents.inference.requests import Answer, GenerateRequest
from xnai.bus import Bus, open_bus
from xnai.bus.locating import ADDRESS_FILE, STACK_FOLDER, Address, read_address

GENERATE, EMBED, MODELS, STATUS = (
    "inference.generate",
    "inference.embed",
    "inference.models",
    "inference.status",
)
_PATIENCE = 300.0  # seconds


class Ours:
    """A caller on the bus, whose requests count as one sender's.

    Attributes:
        lane: of its requests.
        options: fields of each request, beside the prompt and the longest answer.
    """

    def __init__(self, bus: Bus, *, lane: str = "normal", **options: Any) -> None:
        self.bus, self._lane, self._options = bus, lane, options

    async def ask(self, prompt: str, tokens: int, heard: list[float] | None = None) -> Trace:
        """As for every target. The times are in `heard` too, as they come."""
        request = GenerateRequest(prompt=prompt, max_tokens=tokens, **SAMPLING, **self._options)
        times, made = [] if heard is None else heard, tokens
        speed = 0.0
        began = time.perf_counter()
        chunks = self.bus.stream(GENERATE, request, str | Answer, lane=self._lane, timeout=_PATIENCE)
        async with aclosing(chunks):
            async for chunk in chunks:
                if isinstance(chunk, Answer):
                    made, speed = chunk.tokens_out, chunk.speed
                else:
                    times.append(time.perf_counter())
        if not times:  # one token may be no character
            times.append(time.perf_counter())
        return Trace(began=began, times=tuple(times), tokens=made, speed=speed)


class Stack(msgspec.Struct, frozen=True):
    """A stack that is up.

    Attributes:
        where: its bus.
        pid: of `xnai up`.
    """

    where: Address
    pid: int

    @asynccontextmanager
    async def caller(self, name: str | None = None, **how: Any) -> AsyncIterator[Ours]:
        """One more caller; `how` as for Ours."""
        async with open_bus(self.where, name=name) as bus:
            yield Ours(bus, **how)


@asynccontextmanager
async def ours(model: Path | None, names: Sequence[str] = (), **settings: object) -> AsyncIterator[Stack]:
    """A stack with the inference agent, which has these settings. On entry it answers.

    `names` are those of callers that are senders of their own.
    """
    with tempfile.TemporaryDirectory(prefix="xnai-bench-") as place:
        folder = Path(place)
        if model is not None:
            settings["model"] = str(model)
        lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in settings.items()]
        (folder / "xnai.toml").write_text("\n".join(["[agents.inference.settings]", *lines, ""]))
        async with stack.up(folder) as program:
            for name in names:
                await anyio.run_process([*stack.XNAI, "keys", "add", name], cwd=folder)
            yield Stack(read_address(folder / STACK_FOLDER / ADDRESS_FILE), program.pid)
