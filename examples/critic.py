"""An agent that thinks with the model that all agents share.

Name a model in `xnai.toml`: `model = "…"` in `[agents.inference.settings]`. Run the agent with
`xnai run examples/critic.py`, and ask it with `xnai call critic.judge "A lovely view." --stream`.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import msgspec

from xnai.agents import Agent, Context, Whole
from xnai.agents.inference.requests import Answer, ChatMessage, GenerateRequest

agent = Agent("critic", description="How people like things")


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How somebody likes something."""

    mood: Literal["good", "bad", "mixed"]
    stars: Annotated[int, msgspec.Meta(ge=1, le=5)]


@agent.skill(tags=["demo"])
async def judge(text: str, ctx: Context) -> AsyncIterator[str | Whole[Judgement]]:
    """The judgement in a text, as the model writes it, and at last as a whole."""
    request = GenerateRequest(
        messages=(
            ChatMessage(role="system", content="Say how the writer likes it: the mood, and 1 to 5 stars."),
            ChatMessage(role="user", content=text),
        ),
        json_schema=msgspec.json.schema(Judgement),
        max_tokens=64,
    )
    async for part in ctx.stream("inference.generate", request, str | Answer):
        if isinstance(part, Answer):
            yield Whole(msgspec.json.decode(part.text, type=Judgement))
        else:
            yield part
