"""What a step costs, learned from steps: pure arithmetic, no clock.

A step computes one token for each of `decodes` sequences, and `prefill` tokens of prompts from the position
`depth` on. Its seconds are taken to be

    fixed * groups + each * decodes    +    start + token * prefill + attend * prefill * middle

where `groups` says in how many goes llama.cpp computes the sequences, one if they are neighbours, and
`middle` is the position in the middle of the chunk: a token attends to all before it. The five figures
are fitted by least squares of the relative error, with older steps counting for less, and start from what
another run remembered or from a guess: one step is enough to correct a guess that is wrong as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

FORGET = 0.97  # what a step weighs after the next one: about 33 steps count
TRUST = 0.02  # what the remembered figures weigh, in steps
OUTLIER = 4.0  # a step that took longer than this multiple counts as this multiple
ALIKE = 8  # steps without a prompt that are learned from together
SURPRISE = 1.2  # the caution from which each is learned from at once
CAUTION = 2.0  # the most by which a surprise cuts chunks
CALM = 0.7  # what is left of a surprise after another step
ROUND = 8  # long chunks are multiples of this many tokens: kernels compute such blocks
ANSWER = 128.0  # tokens of an answer, before any was seen


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is worth remembering, per model and machine. Seconds; `attend` per token and position.

    The defaults are a slow machine's, so that the first chunk is small rather than long.
    """

    fixed: float = 0.010
    each: float = 0.008
    start: float = 0.010
    token: float = 0.005
    attend: float = 2e-6


class Fit:
    """Seconds as a sum of costs, each a figure above zero times a known quantity."""

    def __init__(self, figures: Sequence[float]) -> None:
        self._seeds = self._figures = tuple(figures)
        self._products = [[0.0] * len(figures) for _ in figures]
        self._sums = [0.0] * len(figures)
        self._fresh = True

    def learn(self, quantities: Sequence[float], took: float) -> None:
        """Take account of something that took `took` seconds."""
        shares = [seed * quantity / took for seed, quantity in zip(self._seeds, quantities, strict=True)]
        for row, share in enumerate(shares):
            products = self._products[row]
            for column, other in enumerate(shares):
                products[column] = products[column] * FORGET + share * other
            self._sums[row] = self._sums[row] * FORGET + share
        self._fresh = False

    @property
    def figures(self) -> tuple[float, ...]:
        """The figures that fit best."""
        if not self._fresh:
            scales = solve(self._products, self._sums)
            self._figures = tuple(seed * scale for seed, scale in zip(self._seeds, scales, strict=True))
            self._fresh = True
        return self._figures


def solve(products: Sequence[Sequence[float]], sums: Sequence[float]) -> list[float]:
    """The scales x that minimise |products @ x - sums| and, with the weight TRUST, |x - 1|.

    None is below zero: one that would be is held at zero, and the others are found without it.
    """
    free = list(range(len(sums)))
    while True:
        rows = [[products[r][c] + TRUST * (r == c) for c in free] + [sums[r] + TRUST] for r in free]
        found = dict(zip(free, eliminate(rows), strict=True))
        lowest = min(found, key=found.__getitem__)
        if found[lowest] >= 0:
            return [found.get(index, 0.0) for index in range(len(sums))]
        free.remove(lowest)


def eliminate(rows: list[list[float]]) -> list[float]:
    """Gauss's elimination of rows with their right side, of which no pivot is zero."""
    size = len(rows)
    for pivot in range(size):
        for row in range(size):
            if row != pivot:
                factor = rows[row][pivot] / rows[pivot][pivot]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[pivot], strict=True)]
    return [rows[index][size] / rows[index][index] for index in range(size)]


class Rate:
    """Tokens a second of about the last fifty steps; 0 before the first."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def count(self, tokens: int, seconds: float, steps: int = 1) -> None:
        rest = 0.98**steps
        self._tokens = rest * self._tokens + tokens
        self._seconds = rest * self._seconds + seconds

    @property
    def value(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0


class Speeds:
    """What steps of one model cost on this machine.

    `caution` is how much dearer than expected the last steps were, at least 1: it grows at once and shrinks
    slowly, and a chunk is cut by it.
    """

    def __init__(self, figures: Figures | None = None) -> None:
        seed = figures or Figures()
        self._decode = Fit((seed.fixed, seed.each))
        self._prefill = Fit((seed.start, seed.token, seed.attend))
        self._prefilled, self._decoded = Rate(), Rate()
        self._alike = (0, 0)  # groups and decodes of the last steps
        self._steps, self._seconds = 0, 0.0  # how many they are, and what they took
        self._usual = 0.0  # what another one should take, once that was asked
        self.caution = 1.0
        self.answer = ANSWER  # tokens of an answer, as they were lately

    def observe(
        self, decodes: int, prefill: int, depth: int, took: float, *, groups: int = 1, steps: int = 1
    ) -> None:
        """A step took `took` seconds. Of several chunks in it, the tokens of all and the mean depth.

        Several `steps` without a prompt took so long each, in the mean.
        """
        if took <= 0 or not (decodes or prefill):
            return
        if prefill or (groups, decodes) != self._alike:
            self._settle()
            self._alike = groups, decodes
        decoding = self._usual = self._usual or self.decode(decodes, groups)
        expected = decoding + self.prefill(prefill, depth)
        self.caution = min(CAUTION, max(1 + (self.caution - 1) * CALM, took / expected))
        if took > OUTLIER * expected and (self._prefilled.value or self._decoded.value):
            took = OUTLIER * expected
        if not prefill:
            self._decoded.count(steps * decodes, steps * took, steps)
            self._collect(steps * took, steps)
            return
        alone = max(took - decoding, took * prefill / (prefill + 8 * decodes) / 2)
        self._prefill.learn((1.0, prefill, prefill * (depth + prefill / 2)), alone)
        self._prefilled.count(prefill, alone)

    def _collect(self, took: float, steps: int) -> None:
        """Steps that are alike are learned from together, because fitting takes longer."""
        self._steps += steps
        self._seconds += took
        if self._steps >= ALIKE or self.caution > SURPRISE:
            self._settle()

    def _settle(self) -> None:
        if self._steps:
            self._decode.learn(self._alike, self._seconds / self._steps)
        self._steps, self._seconds, self._usual = 0, 0.0, 0.0

    def ended(self, made: int) -> None:
        """An answer ended after this many tokens."""
        self.answer += 0.1 * (made - self.answer)

    def decode(self, decodes: int, groups: int = 1) -> float:
        """Seconds of a step that computes the next token of so many sequences."""
        if not decodes:
            return 0.0
        fixed, each = self._decode.figures
        return fixed * groups + each * decodes

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Seconds that the tokens of a prompt from this position on take, or add to a step, as one chunk."""
        if not tokens:
            return 0.0
        start, token, attend = self._prefill.figures
        return start + tokens * (token + attend * (depth + tokens / 2))

    def chunk(self, seconds: float, depth: int = 0, decodes: int = 0) -> int:
        """The most tokens of a prompt with which a step that has so many decodes stays within `seconds`."""
        start, token, attend = self._prefill.figures
        left = seconds / self.caution - self.decode(decodes) - start
        if left <= 0:
            return 0
        # left = tokens * linear + tokens² * square
        linear, square = max(token + attend * depth, 1e-9), attend / 2
        tokens = int(2 * left / (linear + (linear * linear + 4 * square * left) ** 0.5))
        return tokens - tokens % ROUND if tokens > 8 * ROUND else tokens

    def left(self, made: int, limit: int) -> float:
        """Tokens that an answer is expected to go on for, of which so many are made and `limit` allowed."""
        return min(limit - made, max(self.answer - made, self.answer / 4))

    @property
    def figures(self) -> Figures:
        """What to remember for `Speeds(figures)` of another run."""
        fixed, each = self._decode.figures
        start, token, attend = self._prefill.figures
        return Figures(fixed=fixed, each=each, start=start, token=token, attend=attend)

    @property
    def prefill_rate(self) -> float:
        """Tokens of prompts a second, measured lately; 0 before."""
        return self._prefilled.value

    @property
    def decode_rate(self) -> float:
        """Tokens of answers a second, of all sequences together, measured lately; 0 before."""
        return self._decoded.value
