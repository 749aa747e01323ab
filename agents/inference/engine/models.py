"""Which models are in memory: loaded when they are asked for, unloaded when others need the room."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.governor import NONE_IDLE, NONE_KEPT, NOTHING, eased
from xnai.agents.inference.engine.llama import Vocabulary, Weights, open_vocabulary, open_weights
from xnai.agents.inference.engine.loading import (
    Bounds,
    Loaded,
    Opener,
    fitted,
    opened,
    opened_later,
    planned,
    too_large,
)
from xnai.agents.inference.engine.model import Arrival, Model
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.engine.swapping import make_room
from xnai.agents.inference.errors import InferenceError, ModelMissing
from xnai.agents.inference.frames import (
    Done,
    Embed,
    Generate,
    Loading,
    Open,
    Opened,
    Queued,
    Refused,
    Setup,
    Unloaded,
)
from xnai.agents.inference.gguf_file import GgufInfo, read_gguf
from xnai.agents.inference.memory import available, give_back, usual_reserve
from xnai.protocol.errors import XnaiError

_SEQUENCES = 4  # for which room is made where it is not known how many pay
_SOON = 1.0  # seconds after which asking again may help
_SETTLED = 30.0  # seconds before what has shrunk may grow


class Models:
    """The open models of an engine.

    Attributes:
        opener: brings them into memory.
        reading: held by whoever uses a vocabulary outside the loop: no model is closed meanwhile.
        level: how much is given back because memory is short.
        past, busy_before: what was counted in contexts that are closed, and seconds that they computed.
        reserve: bytes that should stay free.
    """

    def __init__(
        self,
        setup: Setup,
        opener: Opener,
        *,
        out: Outbox,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.opener, self.reading, self.level = opener, threading.Lock(), NOTHING
        self.past: Counter[str] = Counter()
        self.busy_before = 0.0
        # Whoever says how much the models may take wants them to take it.
        self.reserve = usual_reserve(available()) // (4 if setup.memory else 1)
        self._setup, self._out, self._wake, self._clock = setup, out, wake, clock
        self._models: dict[str, Model] = {}
        self._reader = ThreadPoolExecutor(1, "weights")
        self._coming: tuple[Model, Future[tuple[Weights, ExitStack]], int] | None = None
        self._looking: list[tuple[Open, Future[tuple[GgufInfo, Opened]]]] = []
        self._spare: tuple[str, Vocabulary, ExitStack] | None = None

    # Which there are

    def loaded(self) -> list[Loaded]:
        """The models that are in memory."""
        return [each.loaded for each in list(self._models.values()) if each.loaded]

    def get(self, name: str) -> Loaded | None:
        """A model, None if it is not in memory now. Raises ModelMissing."""
        return self._find(name).loaded

    def ready(self, name: str) -> Loaded | None:
        """A model that takes requests now, None if they have to wait. Raises ModelMissing."""
        found = self._find(name)
        return None if found.resting else found.loaded

    def _find(self, name: str) -> Model:
        if (found := self._models.get(name)) is None:
            raise ModelMissing(f"the engine holds no model {name}")
        return found

    @contextmanager
    def vocabulary(self, name: str) -> Iterator[Vocabulary]:
        """The tokens of a model, in memory or not. From any thread. Raises ModelMissing and ModelInvalid."""
        with self.reading:
            found = self._find(name)
            yield found.loaded.vocabulary if found.loaded else self._spare_of(name, found.wanted.path)

    def _spare_of(self, name: str, path: str) -> Vocabulary:
        if not self._spare or self._spare[0] != name:
            self._drop_spare()
            stack = ExitStack()
            self._spare = name, stack.enter_context(open_vocabulary(Path(path))), stack
        return self._spare[1]

    def _drop_spare(self) -> None:
        if self._spare:
            self._spare[2].close()
            self._spare = None

    # Requests

    def defer(self, arrival: Arrival) -> None:
        """A request for a model that is not ready waits until it is."""
        frame = arrival.frame
        assert isinstance(frame, Generate | Embed)
        count = self.deferred
        if count >= self._setup.queue:
            sentence = f"the queue is full: {count} requests wait for models that are not in memory"
            self._out.put(Refused(frame.id, "busy", sentence, _SOON))
        else:
            self._find(frame.model).waiting[frame.id] = arrival._replace(prepared=None)
            self._out.put(Queued(frame.id, 0, count, 0.0))

    @property
    def deferred(self) -> int:
        """Requests that wait for a model."""
        return sum(len(each.waiting) for each in self._models.values())

    def drop(self, id: int) -> bool:
        """Ends a request that waits for a model; False if there is none of this id."""
        if dropped := any(each.waiting.pop(id, None) for each in self._models.values()):
            self._out.put(Done(id, "canceled"))
        return dropped

    def soonest(self) -> float | None:
        """When the first deadline is of those that wait for a model."""
        return min(
            (end for each in self._models.values() for one in each.waiting.values() if (end := one.end)),
            default=None,
        )

    def _drop_late(self, now: float) -> None:
        for each in self._models.values():
            for id in [id for id, one in each.waiting.items() if (end := one.end) and end <= now]:
                del each.waiting[id]
                self._out.put(Done(id, "deadline"))

    # Coming and going

    def open(self, wanted: Open) -> None:
        """Opens a model, if it is not open, and says so; while others compute it is loaded when asked for.

        Raises ModelMissing, ModelInvalid and ModelTooLarge.
        """
        found = self._models.get(wanted.name)
        if found is None and any(each.working for each in self._models.values()):
            future = self._reader.submit(_look_at, wanted)  # the answers go on meanwhile
            future.add_done_callback(lambda _: self._wake())
            self._looking.append((wanted, future))
            return
        if found is None:
            found = Model(wanted, read_gguf(Path(wanted.path)))
            self._check(found)
            if not wanted.later and planned(wanted, found.info).total <= (room := self.room()):
                self._install(found, *_read(Path(wanted.path)), room=room)
        answer = opened(found.loaded) if found.loaded else opened_later(found.wanted, found.info)
        self._models[wanted.name] = found
        self._out.put(answer)

    def _check(self, found: Model) -> None:
        """Raises ModelTooLarge if there is no room for a model even without the others."""
        most = self.room(of_all=True)
        if planned(found.wanted, found.info).total > most:
            raise too_large(found.wanted, found.info, most)

    def _take_in(self) -> None:
        """Opens the models that have been looked at meanwhile."""
        for wanted, future in [each for each in self._looking if each[1].done()]:
            self._looking.remove((wanted, future))
            try:
                info, answer = future.result()
                found = Model(wanted, info)
                self._check(found)
            except (XnaiError, OSError) as error:
                code = error.code if isinstance(error, XnaiError) else InferenceError.code
                self._out.put(Refused(0, code, str(error), model=wanted.name))
            else:
                self._models.setdefault(wanted.name, found)
                self._out.put(answer)

    def room(self, *, of_all: bool = False) -> int:
        """Bytes for another model; with `of_all` if it were the only one."""
        loaded = self.loaded()
        saved = self._setup.saved_memory
        held = sum(each.takes + saved for each in loaded)
        free = available(mapped=sum(each.weights.mapped for each in loaded))
        if self._setup.memory:
            free = min(free, self._setup.memory - held)
        else:
            free -= self.reserve
        return free - saved + (held if of_all else 0)

    def tend(self, now: float) -> list[Arrival]:
        """Brings in what is asked for, and lets go what is in its way.

        Returns the requests that waited and whose models are ready.
        """
        waiting = any(each.waiting or each.resting for each in self._models.values())
        if not (waiting or self._looking or self._coming or self.level):
            return []  # as nearly always, and asked at each step
        self._drop_late(now)
        self._take_in()
        self._arrive()
        wanted = self._wanted()
        rest = self._make_way(wanted, now) if wanted and not self._coming else ()
        ready: list[Arrival] = []
        for name, found in self._models.items():
            found.resting = name in rest or self._must_shrink(found)
            if found.resting and found.loaded and isinstance(found.loaded.model, TextModel):
                for each in found.loaded.model.withdraw():
                    found.waiting[each.ask.id] = Arrival(each.ask, each.job.arrived)
            elif found.loaded and not found.resting and found.waiting:
                ready += sorted(found.waiting.values(), key=lambda one: one.at)
                found.waiting.clear()
        return ready

    def _wanted(self) -> Model | None:
        """The model that is not in memory and whose requests are urgent or have waited longest."""
        absent = [each for each in self._models.values() if each.waiting and not each.loaded]
        return min(absent, key=lambda each: each.urgency, default=None)

    def _make_way(self, wanted: Model, now: float) -> tuple[str, ...]:
        """Begins to load a model if there is room, or can be made. Returns those that start nothing more."""
        least = planned(wanted.wanted, wanted.info).total
        good = planned(wanted.wanted, wanted.info, wanted.wanted.slots or _SEQUENCES).total
        room = self.room()
        loaded = [standing for each in self._models.values() if (standing := each.standing)]
        idle = [each for each in loaded if not each.working]
        urgent, since = wanted.urgency
        waited = now - since if urgent else math.inf
        bounds = {"now": now, "waited": waited, "patience": self._setup.patience}
        swap = make_room(good - room, idle, **bounds)
        if not swap or not swap.ready:
            swap = make_room(least - room, loaded, **bounds)
        if not swap:
            self._refuse(wanted, too_large(wanted.wanted, wanted.info, self.room(of_all=True)))
            return ()
        for name in swap.unload:
            self.unload(name)
        if swap.ready:
            self._out.put(Loading(wanted.wanted.name))
            self._out.send()
            future = self._reader.submit(_read, Path(wanted.wanted.path))
            self._coming = wanted, future, self.room()
            future.add_done_callback(lambda _: self._wake())
        return swap.rest

    def _arrive(self) -> None:
        """Takes in a model whose weights have been read."""
        if not self._coming or not self._coming[1].done():
            return
        found, future, room = self._coming
        self._coming = None
        try:
            self._install(found, *future.result(), room=room)
        except (XnaiError, OSError) as error:
            self._out.put(Unloaded(found.wanted.name))
            self._refuse(found, error if isinstance(error, XnaiError) else InferenceError(str(error)))
        else:
            assert found.loaded
            self._out.put(opened(found.loaded))

    def _install(self, found: Model, weights: Weights, resources: ExitStack, *, room: int) -> None:
        alone = not any(each.working for each in self._models.values())
        with resources:
            bounds = Bounds(room, self.level, alone)
            found.loaded = self.opener.load(found.wanted, found.info, weights, bounds)
            found.loaded.resources.push(resources.pop_all())
        give_back()
        with self.reading:
            if self._spare and self._spare[0] == found.wanted.name:
                self._drop_spare()

    def unload(self, name: str) -> None:
        """Frees the memory of a model that has no requests."""
        found = self._models[name]
        if loaded := found.loaded:
            with self.reading:
                found.loaded = None
                self._retire(loaded)
                loaded.close()
            give_back()
            self._out.put(Unloaded(name))

    def _retire(self, loaded: Loaded) -> None:
        self.past.update(steps=loaded.model.steps)
        self.busy_before += loaded.model.busy
        if isinstance(loaded.model, TextModel):
            stats = loaded.model.streams.stats()
            self.past.update(
                generated=loaded.model.generated,
                prompts=stats.prompts,
                hits=stats.hits,
                prompt_tokens=stats.prompt_tokens,
                hit_tokens=stats.hit_tokens,
            )

    def _refuse(self, found: Model, error: XnaiError) -> None:
        for id in found.waiting:
            self._out.put(Refused(id, error.code, str(error), model=found.wanted.name))
        found.waiting.clear()

    # Short of memory

    def relieve(self, level: int, now: float) -> None:
        """Gives back as much as this level says, of what nobody uses; the rest when it is free."""
        self.level = level
        self.opener.saving = level == NOTHING
        for found in list(self._models.values()):
            if found.loaded and not found.working:
                self._resize(found, found.loaded, now)
        idle = [each.loaded for each in self._models.values() if each.loaded and not each.working]
        if level == NONE_IDLE and idle:
            self.unload(min(idle, key=lambda each: each.used).name)

    def _must_shrink(self, found: Model) -> bool:
        """Whether it computes more at once than the level allows. What is kept waits for a better moment."""
        if self.level <= NONE_KEPT or not found.loaded or not found.loaded.measured:
            return False
        return eased(self.level, *found.loaded.full) < found.loaded.size

    def _resize(self, found: Model, loaded: Loaded, now: float) -> None:
        if not loaded.measured:
            return
        wanted = eased(self.level, *loaded.full)
        if sum(wanted) > sum(loaded.size):
            if self._coming or now - loaded.sized < _SETTLED:
                return
            room = self.room() + loaded.takes
            wanted = fitted(found.wanted, found.info, wanted, room=room)
            if sum(wanted) <= sum(loaded.size):
                return
        if wanted != loaded.size:
            self._retire(loaded)
            try:
                self.opener.resize(loaded, wanted)
            except InferenceError:
                found.loaded = None
                with self.reading:
                    loaded.resources.close()
                self._out.put(Unloaded(loaded.name))
            else:
                self._out.put(opened(loaded))


def _read(path: Path) -> tuple[Weights, ExitStack]:
    resources = ExitStack()
    return resources.enter_context(open_weights(path)), resources


def _look_at(wanted: Open) -> tuple[GgufInfo, Opened]:
    info = read_gguf(Path(wanted.path))
    return info, opened_later(wanted, info)
