"""The smallest agent.

Run it with `xnai run examples/hello.py`, and ask it with `xnai call hello.greet World`.
"""

from xnai.agents import Agent

agent = Agent("hello")


@agent.skill
async def greet(name: str) -> str:
    """A greeting for somebody."""
    return f"Hello, {name}!"
