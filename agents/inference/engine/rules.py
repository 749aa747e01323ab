"""Constrained decoding: at each place of a text, the tokens that keep it to a JSON Schema, regex or grammar.

How it is used, token by token: take what is `forced`, which is all that the mask leaves there, so that the
model need not be asked. Elsewhere sample as if there were no rule and ask `allows`; only if the token is
refused, `mask` the logits and sample again. What comes out is distributed exactly as if the mask had always
been there, and a token that is accepted costs a thirtieth of a millisecond, whatever the vocabulary.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from xnai.agents.inference.engine.bindings import lib
from xnai.agents.inference.engine.grammars import to_lark
from xnai.agents.inference.errors import RuleInvalid
from xnai.agents.inference.frames import Rule

_NOT_TEXT = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN

LONGEST = 1 << 20
"""Characters of a rule."""

# llguidance follows references by recursion, 5 kB deep each, and a stack that is full ends the process. Those
# who make rules keep to 2,000 levels (`xnai.agents.inference.schemas`, `to_lark`).
_STACK = 64 << 20


class Rulebook:
    """The rules for the vocabulary of one model. Made at once; the first rule costs a second more.

    From any thread, as long as the model is open.
    """

    def __init__(self, vocabulary: Any) -> None:
        """`vocabulary` is llama.cpp's, of an open model."""
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._building, self._threads = threading.Lock(), threading.Lock()
        # A grammar reads letter by letter: more items in a step, and where rows are long each costs far more.
        self._limits = {
            "json_schema": _limits(items=50_000, row=2_000),
            "regex": _limits(items=50_000, row=2_000),
            "grammar": _limits(items=150_000, row=200),
        }

    def start(self, rule: Rule, said: Sequence[int] = ()) -> Matcher:
        """What holds an answer to a rule, behind the tokens of it that were said already.

        Raises RuleInvalid for a rule that cannot be read, that costs too much, or that `said` breaks.
        """
        if len(rule.text) > LONGEST:
            size = len(rule.text)
            raise RuleInvalid(f"the {_NAMES[rule.kind]} has {size} characters, at most {LONGEST} are allowed")
        matcher = self._on_a_deep_stack(rule)
        for token in said:
            matcher.advance(token)
        return matcher

    def _on_a_deep_stack(self, rule: Rule) -> Matcher:
        with ThreadPoolExecutor(1) as pool, self._threads:  # the size holds for all that start meanwhile
            threading.stack_size(_STACK)
            reading = pool.submit(self._read, rule)
            threading.stack_size(0)
        return reading.result()

    def _read(self, rule: Rule) -> Matcher:
        name = _NAMES[rule.kind]
        tokenizer = self._tokenizer or self._build()
        try:
            found = LLMatcher(tokenizer, _grammar(rule), log_level=0, limits=self._limits[rule.kind])
        except RuleInvalid:
            raise
        except ValueError as error:
            raise RuleInvalid(f"the {name} cannot be read: {_first_line(str(error))}") from error
        if found.is_error():
            raise RuleInvalid(f"the {name} cannot be kept: {_first_line(found.get_error())}")
        matcher = Matcher(found, tokenizer, name=name)
        matcher.check()
        return matcher

    def _build(self) -> LLTokenizer:
        with self._building:
            if self._tokenizer is None:
                count = lib.llama_vocab_n_tokens(self._vocabulary)
                ends = [token for token in range(count) if lib.llama_vocab_is_eog(self._vocabulary, token)]
                made: Any = LLTokenizer  # its types leave this way out
                self._tokenizer = made.from_llamacpp(
                    tokens=_spellings(self._vocabulary, count),
                    vocab_ptr=self._vocabulary,
                    tokenize_fptr=ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value,
                    eos_token=ends or lib.llama_vocab_eos(self._vocabulary),
                    slices=None,
                )
            return self._tokenizer


class Matcher:
    """Where one text stands in its rule. One thread at a time."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, *, name: str) -> None:
        self._matcher, self._name = matcher, name
        self._size, self._ends = tokenizer.vocab_size, set(tokenizer.eos_tokens)
        self._bits: NDArray[np.uint8] | None = None  # those of the next token, once they were asked for
        self._forced: Sequence[int] | None = None  # likewise
        self._tokens = 0

    @property
    def complete(self) -> bool:
        """Whether the text may end here: the tokens that end it are allowed."""
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether the text must end here: no other token is allowed, so none needs to be computed."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def forced(self) -> Sequence[int]:
        """The tokens with which the text goes on, whatever the model says: often none.

        For each of them the mask has no other; llguidance finds them without it.
        """
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced

    def allows(self, token: int) -> bool:
        """Whether the text may go on, or end, with this token.

        Of tokens that spell the same the mask has one; this allows all of them.
        """
        if self.finished:
            return token in self._ends
        return bool(self._matcher.validate_tokens([token]) == 1)

    def advance(self, token: int) -> None:
        """The text goes on, or ends, with this token. Raises RuleInvalid if it may not."""
        self._bits = None
        known = self._forced if self._forced and self._forced[0] == token else ()
        self._forced = known[1:] or None
        if self.finished and token in self._ends:
            return
        if not self._matcher.consume_token(token):
            reason = _first_line(self._matcher.get_error())
            raise RuleInvalid(
                f"token {self._tokens} of the answer does not keep to the {self._name}: {reason}"
            )
        self._tokens += 1

    def choose(self, logits: NDArray[np.float32], token: int) -> int:
        """`token` if it is allowed, otherwise the likeliest one that is. The logits stay as they are.

        `logits` are one number for each token of the vocabulary. Raises RuleInvalid, as `mask` does.
        """
        if self.allows(token):
            return token
        ceiling = self._ceiling()
        return int(np.minimum(logits, ceiling, out=ceiling).argmax())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Writes minus infinity over the logits of all tokens that are refused here.

        Raises RuleInvalid if the rule has become too costly here, or no token at all keeps it.
        """
        np.minimum(logits, self._ceiling(), out=logits)

    def check(self) -> None:
        """Raises RuleInvalid if the text can go no further, nor end. Costs as much as a mask."""
        self._mask()

    def _ceiling(self) -> NDArray[np.float32]:
        """Plus infinity for each token of the vocabulary that is allowed, minus infinity for the others."""
        spread = np.take(_SPREAD, self._mask(), axis=0)
        return spread.reshape(-1)[: self._size]

    def _mask(self) -> NDArray[np.uint8]:
        """A bit for each token."""
        if self._bits is None:
            words = np.zeros((self._size + 31) // 32, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._matcher.is_error():
                reason = _first_line(self._matcher.get_error())
                raise RuleInvalid(f"the {self._name} costs too much behind {self._tokens} tokens: {reason}")
            if not words.any():
                raise RuleInvalid(f"behind {self._tokens} tokens nothing keeps to the {self._name}")
            self._bits = words.view(np.uint8)
        return self._bits


# For each byte of a mask, least bit first. Looked up by `take`: anything with booleans is three times slower.
_SPREAD = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, np.inf, -np.inf).astype(np.float32)
_NAMES = {"json_schema": "JSON Schema", "regex": "regular expression", "grammar": "grammar"}


def _spellings(vocabulary: Any, count: int) -> list[bytes]:
    """The bytes of each token. Those that are no text begin with 0xff, which is how llguidance knows them."""
    room = 4096
    buffer = ctypes.create_string_buffer(room)
    spelled = []
    for token in range(count):
        length = lib.llama_token_to_piece(vocabulary, token, buffer, room, 0, True)
        text = buffer.raw[: max(length, 0)]  # a longer one has never been seen, and is not used
        kind = lib.llama_vocab_get_attr(vocabulary, token)
        tag = kind & lib.LLAMA_TOKEN_ATTR_USER_DEFINED and text.startswith(b"<") and text.endswith(b">")
        spelled.append(b"\xff" + text if tag or kind & _NOT_TEXT else text)
    return spelled


def _limits(*, items: int, row: int) -> LLParserLimits:
    """Of a rule and of each of its steps: a bomb ends here, after some tens of milliseconds and megabytes."""
    return LLParserLimits(
        initial_lexer_fuel=300_000,
        step_lexer_fuel=50_000,
        step_max_items=items,
        max_items_in_row=row,
        max_lexer_states=20_000,
        max_grammar_size=20_000,
        verbose_errors=False,
    )


def _grammar(rule: Rule) -> str:
    """The rule in llguidance's own form. Raises ValueError and RuleInvalid."""
    if rule.kind == "json_schema":
        # Otherwise a model may write blanks between two items without end.
        overrides: Any = {"whitespace_flexible": False}
        return LLMatcher.grammar_from_json_schema(rule.text, overrides=overrides)
    if rule.kind == "regex":
        return LLMatcher.grammar_from_regex(rule.text)
    return LLMatcher.grammar_from_lark(to_lark(rule.text))


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:200]
