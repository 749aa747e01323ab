"""What the steps of one model took: for those who plan by it, and for those who watch the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xnai.agents.inference.engine.answering import Row
from xnai.agents.inference.engine.drafts import Costs
from xnai.agents.inference.engine.neighbours import groups
from xnai.agents.inference.engine.speeds import Speeds


class Work(NamedTuple):
    """What one step computes.

    Attributes:
        decodes: answers that go on by one token, and in how many goes llama.cpp computes them.
        prefill: tokens of prompts, and the most that one of those has before them.
        tokens: of one answer by itself, with those that are guessed to follow; 0 for anything else.
    """

    decodes: int = 0
    goes: int = 1
    prefill: int = 0
    depth: int = 0
    tokens: int = 0


def work_of(rows: Sequence[Row]) -> Work:
    """What these rows are, before they are computed."""
    prompts = [row for row in rows if row.request.job.todo]
    if len(rows) == 1 and not prompts:
        (row,) = rows
        return Work(decodes=0 if row.guess else 1, tokens=0 if row.sure else row.tokens)
    answers = [row.request.sequence for row in rows if not row.request.job.todo]
    return Work(
        decodes=len(answers),
        goes=groups(answers, [row.request.sequence for row in prompts]) or 1,
        prefill=sum(row.tokens for row in prompts),
        depth=max((row.request.held for row in prompts), default=0),
    )


class Meter:
    """What the steps took.

    Attributes:
        speeds: what steps cost lately. usual: what they cost on the quiet machine.
        costs: of the steps of one answer by itself, by the tokens in them.
        expected, took: seconds that steps would have taken on the quiet machine, and did take, since somebody
            looked and set them to 0.
        wasted: seconds, since those that ran were last neighbours.
    """

    def __init__(self, speeds: Speeds, usual: Speeds) -> None:
        self.speeds, self.usual, self.costs = speeds, usual, Costs()
        self.expected = self.took = self.wasted = 0.0

    def learn(self, work: Work, seconds: float, steps: int) -> None:
        """So many steps of this work took so long together."""
        if work.tokens:
            self.costs.observe(work.tokens, seconds / steps)
        decodes, goes = work.decodes, work.goes
        if not decodes and not work.prefill:
            return  # a guess says nothing of other steps
        self.speeds.observe(decodes, work.prefill, work.depth, seconds / steps, groups=goes, steps=steps)
        usual = self.usual.decode(decodes, goes) + self.usual.prefill(work.prefill, work.depth)
        self.expected += steps * usual
        self.took += seconds
        if goes > 1:
            self.wasted += steps * (self.speeds.decode(decodes, goes) - self.speeds.decode(decodes))
        elif decodes > 1:
            self.wasted = 0.0
