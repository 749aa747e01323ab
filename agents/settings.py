"""What a person sets for an agent that comes with the project: `[agents.<name>.settings]` of xnai.toml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xnai.protocol.errors import InvalidSettings

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(gt=0)]
T = TypeVar("T")
Table = Annotated[dict[str, T], Field(default_factory=dict)]
"""Values by names that a person gives; none by default."""


class AgentSettings(BaseModel):
    """Fields with defaults that work; a name that is not among them is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=AgentSettings)


class Configuration(Generic[Settings]):
    """A module's `configure`, called before its agent is served, and what it was called with.

    Attributes:
        settings: the defaults until it is called.
        folder: the stack's `.xnai` folder, None until it is called. An agent keeps its data in a folder of
            its own name below it.
    """

    def __init__(self, agent: str, model: type[Settings]) -> None:
        self._agent, self._model = agent, model
        self.settings = model()
        self.folder: Path | None = None

    def __call__(self, settings: Mapping[str, object], folder: Path) -> None:
        """Take these settings.

        Raises:
            InvalidSettings: one of them is unknown or cannot be used.
        """
        try:
            self.settings = self._model.model_validate(dict(settings))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise InvalidSettings(f"[agents.{self._agent}.settings] {wrong}.") from error
        self.folder = folder

    def path(self, given: Path) -> Path:
        """A path as a person wrote it: `~` is home, and a relative one begins beside `.xnai`."""
        given = given.expanduser()
        return given if self.folder is None else self.folder.parent / given
