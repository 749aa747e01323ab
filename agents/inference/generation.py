"""Text from any GGUF that generates text, one request at a time."""

import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.engine.text import TextStream
from xnai.agents.inference.errors import ModelInvalid, PromptTooLong
from xnai.agents.inference.llama import CancelFlag, Llama, Sampling, open_llama
from xnai.agents.inference.requests import ChatMessage
from xnai.protocol.errors import InvalidPayload

Finish = Literal["stop", "length", "cancelled"]

_SEEDS = (1 << 32) - 1  # one less than there are: llama.cpp takes the last to mean "any seed"


class Generation(Iterator[str]):
    """One answer while it is computed: pieces of text, whole characters each and never empty.

    The prompt is computed when the first piece is asked for. Between two pieces nothing is computed.

    Attributes:
        finish: None while it goes on, then why it ended: "stop" (by the model or a stop string), "length"
            (`max_tokens`, or the context is full) or "cancelled" (the flag was set, or it was closed).
        prompt_tokens: tokens of the prompt.
        tokens: tokens of the answer so far.
    """

    def __init__(
        self,
        llama: Llama,
        prompt: Sequence[int],
        *,
        limit: int,
        sampling: Sampling,
        stop: Sequence[str],
        cancel: CancelFlag,
    ) -> None:
        self.finish: Finish | None = None
        self.prompt_tokens, self.tokens = len(prompt), 0
        self._llama, self._prompt, self._limit, self._cancel = llama, prompt, limit, cancel
        self._pieces = self._run(sampling, TextStream(stop))

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends it where it is. Not while another thread waits for a piece: set the cancel flag for that."""
        self._pieces.close()
        self.finish = self.finish or "cancelled"

    def _run(self, sampling: Sampling, text: TextStream) -> Generator[str, None, None]:
        tokens = self._prompt
        self._llama.forget()
        with self._llama.sampler(sampling) as sampler:
            while self.finish is None:
                if not self._llama.decode(tokens, self._cancel):
                    self.finish = "cancelled"
                    return
                token = sampler.choose()
                piece = ""
                if self._llama.is_end(token):
                    self.finish = "stop"
                else:
                    self.tokens += 1
                    piece = text.push(self._llama.piece(token))
                    self.finish = "stop" if text.stopped else "length" if self.tokens == self._limit else None
                if self.finish:
                    piece += text.flush()
                if piece:
                    yield piece
                tokens = (token,)


class GenerationModel:
    """An open model that generates text; made by `open_generation_model`. One thread at a time.

    Attributes:
        context: tokens that fit, prompt and answer together.
    """

    def __init__(self, llama: Llama) -> None:
        self.context = llama.context
        self._llama = llama
        self._running: Generation | None = None
        self._template: ChatTemplate | None = None

    def generate(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: CancelFlag | None = None,
    ) -> Generation:
        """Starts an answer; an earlier one that has not ended is closed.

        A prompt that is a string is taken as it is: control words such as `<|im_end|>` count in it. Text of
        others belongs into messages, where they do not.

        Args:
            prompt: the text to go on with, or the conversation to answer, by the model's own chat template.
            max_tokens: the longest answer; it also ends where the context does.
            temperature: 0 always takes the most likely token, more is more varied.
            top_p: above temperature 0, only the likeliest tokens with together this probability are chosen
                from, 40 at most.
            seed: the same one gives the same answer, 0 to 2^32 - 2; None chooses one.
            stop: the answer ends before the first of these strings.
            cancel: ends it within milliseconds from any thread, also while the prompt is computed.

        Raises InvalidPayload for an argument out of its range, PromptTooLong, and TemplateFailed. The pieces
        may raise InferenceError.
        """
        _check(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
        tokens = self._tokens(prompt)
        if (room := self.context - len(tokens)) < 1:
            raise PromptTooLong(f"the prompt has {len(tokens)} tokens, the context {self.context}")
        if seed is None:
            seed = secrets.randbelow(_SEEDS)
        self.close()
        self._running = Generation(
            self._llama,
            tokens,
            limit=min(max_tokens, room),
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
            stop=stop,
            cancel=cancel or CancelFlag(),
        )
        return self._running

    def close(self) -> None:
        """Ends the running answer, if there is one."""
        if self._running:
            self._running.close()
            self._running = None

    def _tokens(self, prompt: str | Sequence[ChatMessage]) -> list[int]:
        pieces = [prompt] if isinstance(prompt, str) else self._chat_template().render(prompt)
        begin_word = self._llama.begin_word()
        begin = not (begin_word and pieces[0].startswith(begin_word))
        try:
            tokens = [
                token
                for index, piece in enumerate(pieces)
                for token in self._llama.tokenize(piece, begin=begin and index == 0)
            ]
        except UnicodeEncodeError as error:
            raise InvalidPayload("the prompt is no valid Unicode") from error
        if not tokens:
            raise InvalidPayload("the prompt is empty")
        return tokens

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = ChatTemplate(
                self._llama.chat_template(),
                control_words=self._llama.control_words(),
                begin_word=self._llama.begin_word(),
                end_word=self._llama.end_word(),
            )
        return self._template


@contextmanager
def open_generation_model(
    path: Path, *, context: int = 4096, threads: int | None = None
) -> Iterator[GenerationModel]:
    """Opens a GGUF and closes it at the end; its running answer is ended then.

    `context` is the most tokens of prompt and answer together, less if the model was trained on less.
    `threads` defaults to the physical cores there are. Raises ModelMissing and ModelInvalid.
    """
    with open_llama(path, context=context, threads=threads) as llama:
        if not llama.memory:
            raise ModelInvalid(f"{path} is a model for embeddings: it does not generate text")
        model = GenerationModel(llama)
        try:
            yield model
        finally:
            model.close()


def _check(
    *, max_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
) -> None:
    if max_tokens < 1:
        raise InvalidPayload("max_tokens must be at least 1")
    if not 0 <= temperature <= 100:
        raise InvalidPayload("temperature must be from 0 to 100")
    if not 0 < top_p <= 1:
        raise InvalidPayload("top_p must be above 0 and at most 1")
    if seed is not None and not 0 <= seed < _SEEDS:
        raise InvalidPayload(f"seed must be from 0 to {_SEEDS - 1}")
    if isinstance(stop, str) or not all(stop):
        raise InvalidPayload("stop must be a list of strings that are not empty")
