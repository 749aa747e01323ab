"""The curation agent: reads documents, cuts them into passages, and has them embedded and stored."""

from __future__ import annotations

from collections.abc import AsyncIterator

from xnai.agents import Agent, Context
from xnai.agents.curation.ingesting import Ingestion
from xnai.agents.curation.requests import IngestRequest, Progress
from xnai.agents.settings import AgentSettings, Configuration

_LONGEST = 7 * 86_400.0  # seconds: a large library on a small machine

# One at a time: two that read the same folder would get into each other's way.
agent = Agent("curation", description="Documents into passages", version="0.1.0", concurrency=1)
configure = Configuration("curation", AgentSettings)


@agent.skill(tags=["documents"], cap=_LONGEST)
async def ingest(request: IngestRequest, ctx: Context) -> AsyncIterator[Progress]:
    """Take in files and folders of Markdown, HTML, reStructuredText and text, and Python's own manual.

    What is stored already costs next to nothing, what has changed replaces what was there, and what is gone
    from a folder is forgotten. Doing it twice changes nothing.
    """
    async for progress in Ingestion(request.paths, ctx).run():
        yield progress
