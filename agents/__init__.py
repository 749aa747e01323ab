"""Answering tasks: declare an agent, serve it, and what its handlers are given."""

from xnai.agents.agent import Agent
from xnai.agents.context import Context
from xnai.agents.skills import Backoff
from xnai.agents.worker import Worker, serve
from xnai.protocol.errors import Reject
from xnai.protocol.payload import Whole

__all__ = ["Agent", "Backoff", "Context", "Reject", "Whole", "Worker", "serve"]
