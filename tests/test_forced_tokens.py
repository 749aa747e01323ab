"""Tokens of an answer that its rule forces: the model is not asked, and nothing else would have come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from engines import EngineProcess, end_of, engine, text_of, tokens_of
from gguf_models import WORDS, write_model

from xnai.agents.inference.engine.rules import Rulebook
from xnai.agents.inference.frames import Rule, Sampling, Text
from xnai.agents.inference.schemas import schema_rule

VERDICT = {
    "type": "object",
    "properties": {
        "the verdict of the reviewer": {"enum": ["granted", "refused", "delayed"]},
        "the reason for that": {"type": "string", "minLength": 3, "maxLength": 6},
        "fixed": {"const": {"a": [1, 2], "é": "中文"}},
    },
    "required": ["the verdict of the reviewer", "the reason for that", "fixed"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "the thing is " ("in the " | "on an ") [a-z]{3} " and that is all"'
RULES = [
    schema_rule(VERDICT),
    schema_rule({"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 3, "maxItems": 3}),
    Rule("regex", "the (thing|thanks) in [0-9]{2}: (yes|no)[.]"),
    Rule("grammar", GRAMMAR),
]
BY_CHANCE = Sampling(temperature=1.5, seed=5, top_k=0, top_p=1.0)
WITH_PENALTIES = Sampling(temperature=1.5, seed=5, top_k=0, top_p=1.0, repeat_penalty=1.4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "random.gguf", seed=3)


@pytest.fixture(scope="module")
def rulebook(model: Path) -> Iterator[Rulebook]:
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    opened: Any = lib.llama_model_load_from_file(bytes(model), settings)
    yield Rulebook(lib.llama_model_get_vocab(opened))
    lib.llama_model_free(opened)


@pytest.fixture(scope="module")
def talker(model: Path) -> Iterator[EngineProcess]:
    with engine() as found:
        found.open(model, context=256, slots=4, kept=2)
        yield found


def write(rulebook: Rulebook, rule: Rule, seed: int) -> tuple[list[int], set[int]]:
    """An answer by chance, and the places in it at which the token was forced: all that the mask had."""
    random, matcher, plain = np.random.default_rng(seed), rulebook.start(rule), rulebook.start(rule)
    tokens, forced = list[int](), set[int]()
    while not matcher.finished:
        logits = random.standard_normal(len(WORDS)).astype(np.float32)
        plain.mask(logits)
        token = int(logits.argmax())
        if known := matcher.forced:
            assert np.flatnonzero(np.isfinite(logits)).tolist() == [known[0]]
            forced.add(len(tokens))
        matcher.advance(token)
        plain.advance(token)
        tokens.append(token)
    return tokens, forced


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_where_a_token_is_forced_the_mask_has_no_other(rulebook: Rulebook, rule: Rule) -> None:
    for seed in range(6):
        _, forced = write(rulebook, rule, seed)
        assert forced


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_the_same_is_forced_behind_what_was_said(rulebook: Rulebook, rule: Rule) -> None:
    tokens, forced = write(rulebook, rule, 1)
    for place in range(len(tokens)):
        known = rulebook.start(rule, tokens[:place]).forced
        assert bool(known) == (place in forced)
        assert list(known) == tokens[place : place + len(known)]


@pytest.mark.parametrize("sampling", [Sampling(), BY_CHANCE, WITH_PENALTIES], ids=["plain", "chance", "pen"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_an_answer_with_forced_tokens_is_the_same_alone_beside_others_and_cut_short(
    talker: EngineProcess, rule: Rule, sampling: Sampling
) -> None:
    asked: dict[str, Any] = {"rule": rule, "sampling": sampling, "cache": False}
    whole = talker.end(talker.begin("the", 120, **asked))
    tokens, end = tokens_of(whole), end_of(whole)
    assert (end.finish, end.tokens_out) == ("stop", len(tokens))
    ids = [talker.begin(word, 120, cache=False) for word in ("a", "an", "in")]
    ids.append(talker.begin("the", 120, **asked))
    assert tokens_of(talker.until(ids)[ids[-1]]) == tokens
    for most in (1, 2, len(tokens) // 2, len(tokens) - 1, len(tokens)):
        cut = talker.end(talker.begin("the", most, **asked))
        assert tokens_of(cut) == tokens[:most]
        assert end_of(cut).finish == ("stop" if most == len(tokens) else "length")
    for said in (1, len(tokens) // 2, len(tokens) - 1, len(tokens)):
        rest = talker.end(talker.begin("the", 120, said=tokens[:said], **asked))
        assert tokens_of(rest) == tokens[said:]
        assert (end_of(rest).finish, end_of(rest).tokens_out) == ("stop", len(tokens))


def test_forced_tokens_are_computed_together(talker: EngineProcess) -> None:
    before = talker.status().steps
    frames = talker.end(talker.begin("the", 120, rule=schema_rule(VERDICT), cache=False))
    assert json.loads(text_of(frames))["fixed"] == VERDICT["properties"]["fixed"]["const"]  # type: ignore[index]
    assert talker.status().steps - before < len(tokens_of(frames)) / 2


def test_a_stop_string_ends_an_answer_among_forced_tokens(talker: EngineProcess) -> None:
    rule = Rule("regex", "the thing is in the middle of it")
    before = talker.say("the", 60, rule=rule, stop=("middle",), cache=False)
    assert before == "the thing is in the "
    assert talker.say("the", 60, rule=rule, cache=False) == "the thing is in the middle of it"


def test_the_likelihood_of_forced_tokens_is_told_too(talker: EngineProcess) -> None:
    rule = schema_rule(VERDICT)
    frames = talker.end(talker.begin("the", 120, rule=rule, alternatives=2, cache=False))
    told = [each for frame in frames if isinstance(frame, Text) for each in frame.logprobs]
    assert len(told) == len(tokens_of(frames))
    assert all(each.logprob <= 0 and len(each.top) == 2 for each in told)
    assert "".join(each.token for each in told if each.token.isascii()).startswith('{"the verdict of')
