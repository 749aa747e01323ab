"""Declaring an agent: a name, the roles it also answers to, and typed skills."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeVar, overload

from xnai.agents.skills import COALESCE, HARD_CAP, MAX_ATTEMPTS, Backoff, Skill, read_skill
from xnai.protocol.errors import InvalidAgent
from xnai.protocol.names import check_name

Handler = TypeVar("Handler", bound=Callable[..., Any])
CONCURRENCY = 64


class Agent:
    """What answers tasks. Declared in a module, run by `xnai run` or `xnai.agents.serve`.

    Args:
        name: the agent's address; `roles` are addresses that it shares with other agents.
        description, version: for its card; the version is a semantic version.
        concurrency: how many tasks it works on at once.

    Raises:
        InvalidName: a name cannot stand in a subject.
        InvalidAgent: something else in it cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        version: str = "0.1.0",
        roles: Iterable[str] = (),
        concurrency: int = CONCURRENCY,
    ) -> None:
        if concurrency < 1:
            raise InvalidAgent(f"Agent {name}: a concurrency of {concurrency} would never run anything.")
        self.name = check_name(name, "agent name")
        self.roles = tuple(check_name(role, "role") for role in roles)
        self.description, self.version, self.concurrency = description, version, concurrency
        self.skills: dict[str, Skill] = {}
        self._lifespan: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its name and its roles, each once."""
        return tuple(dict.fromkeys((self.name, *self.roles)))

    @overload
    def skill(self, handler: Handler) -> Handler: ...
    @overload
    def skill(
        self,
        *,
        name: str | None = ...,
        tags: Iterable[str] = ...,
        examples: Iterable[str] = ...,
        max_attempts: int = ...,
        backoff: Backoff | None = ...,
        cap: float = ...,
        coalesce: float = ...,
    ) -> Callable[[Handler], Handler]: ...
    def skill(
        self,
        handler: Any = None,
        *,
        name: str | None = None,
        tags: Iterable[str] = (),
        examples: Iterable[str] = (),
        max_attempts: int = MAX_ATTEMPTS,
        backoff: Backoff | None = None,
        cap: float = HARD_CAP,
        coalesce: float = COALESCE,
    ) -> Any:
        """Offer a function as a skill, under its own name or `name`.

        Its one parameter (besides a `Context`) is the payload, its return annotation the answer. An
        `async def` runs in the loop, an async generator streams what it yields, a plain `def` gets a thread.
        What is yielded leaves at once, and is stored together with what follows within `coalesce` seconds: a
        large value spares the broker, and lets those who only read the log wait.

        Raises:
            InvalidAgent: the function cannot be served, or the name is taken.
        """

        def declare(handler: Handler) -> Handler:
            skill = read_skill(
                handler,
                name=name,
                tags=tuple(tags),
                examples=tuple(examples),
                max_attempts=max_attempts,
                backoff=backoff,
                cap=cap,
                coalesce=coalesce,
            )
            if skill.name in self.skills:
                raise InvalidAgent(f"Agent {self.name} has a skill {skill.name} already.")
            self.skills[skill.name] = skill
            return handler

        return declare if handler is None else declare(handler)

    def lifespan(self, hold: Callable[[], AsyncIterator[Any]]) -> Callable[[], AsyncIterator[Any]]:
        """Hold something for the agent's life: an async generator that yields once.

        It runs before the first task; what it yields is `ctx.state`; its end runs behind the last task.

        Raises:
            InvalidAgent: there is one already.
        """
        if self._lifespan is not nullcontext:
            raise InvalidAgent(f"Agent {self.name} has a lifespan already.")
        self._lifespan = asynccontextmanager(hold)
        return hold

    def alive(self) -> AbstractAsyncContextManager[Any]:
        """The context of the agent's life, as declared with `lifespan`."""
        return self._lifespan()
