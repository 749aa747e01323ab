"""The engine process, on GGUFs that are made in a moment."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import EngineProcess, end_of, engine, text_of, tokens_of
from gguf_models import CONTROL, WORDS, write_model

from xnai.agents.inference.frames import Done, Generate, Queued, Refused, Rule, Sampling, Setup, Text

CONTEXT = 128
PROMPTS = [f"{word} in the thing" for word in ("a", "the", "an", "to", "he", "is")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "random.gguf", seed=3)


@pytest.fixture(scope="module")
def talker(model: Path) -> Iterator[EngineProcess]:
    """Four sequences compute, and four more hold prefixes."""
    with engine() as found:
        found.open(model, context=CONTEXT, slots=4, kept=4)
        yield found


@pytest.fixture(scope="module")
def single(model: Path) -> Iterator[EngineProcess]:
    """One sequence computes."""
    with engine() as found:
        found.open(model, context=CONTEXT, slots=1, kept=2)
        yield found


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goes on with "notnotnot…" behind a "t", for ever."""
    path = tmp_path_factory.mktemp("models") / "scripted.gguf"
    return write_model(path, script=["n", "o", "t", "n"], context=100_000)


@pytest.fixture(scope="module")
def scripted(endless: Path) -> Iterator[EngineProcess]:
    """Two sequences compute."""
    with engine() as found:
        found.open(endless, context=20_000, slots=2, kept=2)
        yield found


# Together


def test_requests_that_are_computed_together_say_what_each_says_alone(talker: EngineProcess) -> None:
    alone = [talker.say(prompt, 24, cache=False) for prompt in PROMPTS]
    together = talker.until([talker.begin(prompt, 24, cache=False) for prompt in PROMPTS])
    assert [text_of(frames) for frames in together.values()] == alone
    assert len(set(alone)) > 1


def test_a_seed_gives_the_same_text_alone_and_beside_others(talker: EngineProcess) -> None:
    sampling = Sampling(temperature=1.5, seed=11, top_k=0, top_p=0.9)
    alone = talker.say("the", 24, sampling=sampling, cache=False)
    ids = [talker.begin(prompt, 24, cache=False) for prompt in PROMPTS[:3]]
    ids.append(talker.begin("the", 24, sampling=sampling, cache=False))
    assert text_of(talker.until(ids)[ids[-1]]) == alone
    assert talker.say("the", 24, sampling=Sampling(temperature=1.5, seed=12), cache=False) != alone


def test_conversations_that_move_between_sequences_say_what_each_says_alone(talker: EngineProcess) -> None:
    turns = [[f"{prompt}{' and the' * turn}" for turn in range(3)] for prompt in PROMPTS]
    length = {text: 16 + len(text) for texts in turns for text in texts}
    alone = {text: talker.say(text, length[text], cache=False) for text in length}
    asked = {talker.begin(texts[0], length[texts[0]]): texts for texts in turns}
    said = dict.fromkeys(length, "")
    while asked:
        frame = talker.receive(lambda frame: isinstance(frame, Text | Done))
        assert isinstance(frame, Text | Done)
        now, *later = asked[frame.id]
        if isinstance(frame, Text):
            said[now] += frame.text
            continue
        del asked[frame.id]
        if later:
            asked[talker.begin(later[0], length[later[0]])] = later
    assert said == alone


def test_more_requests_than_sequences_are_all_answered(talker: EngineProcess) -> None:
    found = talker.until([talker.begin(f"the {number}", 8) for number in range(30)])
    assert all(end_of(frames).finish in ("stop", "length") for frames in found.values())
    assert (status := talker.status()).running == status.waiting == status.paused == 0


def test_what_a_prompt_shares_with_an_earlier_one_is_not_computed_again(talker: EngineProcess) -> None:
    shared = "he is the thing in the thing of a he in a the"
    first = end_of(talker.end(talker.begin(f"{shared} one", 8)))
    again = talker.end(talker.begin(f"{shared} two", 8))
    assert first.tokens_cached < 8
    assert end_of(again).tokens_cached >= len(shared) // 4
    assert text_of(again) == talker.say(f"{shared} two", 8, cache=False)


def test_a_prompt_of_which_too_little_is_known_to_be_used_is_computed_at_once(endless: Path) -> None:
    with engine() as found:
        found.open(endless, context=40_000, slots=1, kept=1)  # a copy is of all of these
        found.say("something else", 1)
        before = found.status().steps
        (*_, done) = found.end(found.begin("quite another text, with the same token before it", 1))
        assert isinstance(done, Done)
        assert done.tokens_cached == 0
        assert found.status().steps - before == 1


def test_without_a_cache_nothing_is_shared(talker: EngineProcess) -> None:
    for _ in range(2):
        frames = talker.end(talker.begin("an and an and an and an and he", 4, cache=False))
        assert end_of(frames).tokens_cached == 0


def test_a_text_longer_than_a_batch_is_computed_in_parts(scripted: EngineProcess) -> None:
    frames = scripted.end(scripted.begin("in " * 1_000 + "t", 6))
    assert "notn" in text_of(frames)
    assert end_of(frames).tokens_in > 1_000


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_was_evicted_is_restored_where_that_is_cheaper(tmp_path: Path, place: str) -> None:
    slow = write_model(tmp_path / "slow.gguf", seed=3, feed_forward=20_000)
    shared = "he is the thing in the thing of a he in a the an in the thing and the in he in the an thing" * 2
    sizes = {"memory": (1 << 30, 0), "disk": (0, 1 << 30)}
    folder = str(tmp_path / "states")
    setup = Setup(threads=1, folder=folder, saved_memory=sizes[place][0], saved_disk=sizes[place][1])
    with engine(setup) as found:
        found.open(slow, context=CONTEXT, slots=1, kept=0)
        before = found.end(found.begin(f"{shared} one", 8))
        assert found.say("and now for something else, which needs the only sequence that there is", 8)
        again = found.end(found.begin(f"{shared} one", 8))
    assert end_of(again).tokens_cached == end_of(again).tokens_in - 1
    assert text_of(again) == text_of(before)


# Urgent


def test_an_urgent_request_goes_first_and_the_one_that_yields_goes_on_as_if_nothing_were(
    single: EngineProcess,
) -> None:
    alone = single.say("the thing", 60, cache=False)
    slow = single.begin("the thing", 60, cache=False)
    assert single.hear(slow, Text)
    urgent = single.begin("an", 8, lane=0)
    order: list[int] = []
    found: dict[int, list[str]] = {slow: [], urgent: []}
    while len(order) < 2:
        frame = single.receive()
        if isinstance(frame, Text):
            found[frame.id].append(frame.text)
        elif isinstance(frame, Done):
            order.append(frame.id)
    assert order == [urgent, slow]
    assert alone.endswith("".join(found[slow]))


def test_a_sender_that_has_all_slots_gives_one_to_another_and_goes_on_behind_it(
    scripted: EngineProcess,
) -> None:
    greedy = [scripted.begin("t", 18_000, sender="greedy", cache=False) for _ in range(2)]
    for id in greedy:
        assert scripted.hear(id, Text)
    assert text_of(scripted.end(scripted.begin("t", 12, sender="other"))) == "not" * 4
    status = scripted.status()
    assert status.running + status.paused == 2
    for id in greedy:
        scripted.drop(id)
    ends = [frames[-1] for frames in scripted.until(greedy).values()]
    assert [end.finish for end in ends if isinstance(end, Done)] == ["canceled", "canceled"]


def test_what_an_answer_has_said_leaves_before_it_waits_for_another(endless: Path) -> None:
    with engine(Setup(threads=1, flush=3600.0)) as found:
        found.open(endless, context=20_000, slots=2, kept=2)
        greedy = [found.begin("t", 18_000, sender="greedy", cache=False) for _ in range(2)]
        for id in greedy:
            assert found.hear(id, Text)
        said = found.status().generated
        while found.status().generated < said + 4:
            pass  # each of them goes on
        found.begin("t", 12, sender="other")
        heard: set[int] = set()
        while not isinstance(frame := found.receive(), Done):
            if isinstance(frame, Text):
                heard.add(frame.id)
        assert frame.tokens_out == 12
        assert len(heard & set(greedy)) == 1


# Ends


def test_an_answer_is_dropped_in_the_queue_in_the_prompt_and_in_the_text(scripted: EngineProcess) -> None:
    text, prompt = scripted.begin("t", 10_000), scripted.begin("in " * 7_000, 10)
    waiting = scripted.begin("an", 10)
    assert scripted.hear(text, Text)
    for id in (waiting, prompt, text):
        scripted.drop(id)
        assert scripted.hear(id, Done).finish == "canceled"
    assert (status := scripted.status()).running == status.waiting == 0


def test_what_nobody_knows_can_be_dropped(talker: EngineProcess) -> None:
    talker.drop(987_654)
    assert talker.say("the", 3)


def test_a_deadline_ends_an_answer_with_what_there_is(scripted: EngineProcess) -> None:
    frames = scripted.end(scripted.begin("t", 19_000, deadline=0.5))
    assert end_of(frames).finish == "deadline"
    assert text_of(frames)


def test_a_deadline_that_cannot_be_met_is_refused_at_once(scripted: EngineProcess) -> None:
    (refused,) = scripted.end(scripted.begin("in " * 7_000, 10, deadline=0.001))
    assert isinstance(refused, Refused)
    assert refused.code == "busy"


def test_a_full_queue_says_when_to_come_again(endless: Path) -> None:
    with engine(Setup(threads=1, queue=3)) as found:
        found.open(endless, context=20_000, slots=1, kept=0)
        assert found.hear(found.begin("t", 19_000), Text)
        waiting = [found.begin("t", 10, sender=str(number)) for number in range(6)]
        refused = [found.hear(id, Refused) for id in waiting[3:]]
        assert all(each.code == "busy" and each.retry_after > 0 for each in refused)
        assert found.status().waiting == 3
        assert found.hear(waiting[0], Queued).start > 0


def test_a_stop_string_ends_an_answer_across_tokens(scripted: EngineProcess) -> None:
    frames = scripted.end(scripted.begin("t", 50, stop=("xyz", "tno")))
    assert (text_of(frames), end_of(frames).finish) == ("no", "stop")


def test_an_answer_ends_where_the_context_ends(talker: EngineProcess) -> None:
    done = end_of(talker.end(talker.begin("the", 1_000, rule=Rule("regex", "[a-z]{1000}"))))
    assert done.finish == "length"
    assert done.tokens_in + done.tokens_out == CONTEXT


def test_a_prompt_that_fills_the_context_is_refused_with_both_lengths(talker: EngineProcess) -> None:
    (refused,) = talker.end(talker.begin("the an " * 100, 5))
    assert isinstance(refused, Refused)
    assert refused.code == "prompt_too_long"
    assert str(CONTEXT) in refused.sentence


@pytest.mark.parametrize("end", ["start", "middle"])
def test_a_prompt_that_is_too_long_is_cut_where_its_caller_says(talker: EngineProcess, end: str) -> None:
    done = end_of(talker.end(talker.begin("the an " * 100, 5, truncate=end)))
    assert done.tokens_in == CONTEXT - 5


def test_an_unknown_model_is_refused(talker: EngineProcess) -> None:
    (refused,) = talker.end(talker.begin("the", 5, model="other"))
    assert isinstance(refused, Refused)
    assert refused.code == "model_missing"


# What is said


def test_whatever_a_model_says_leaves_as_the_text_of_its_tokens(talker: EngineProcess) -> None:
    by_chance = [Sampling(temperature=2.0, seed=seed, top_k=0, top_p=1.0) for seed in range(20)]
    ids = [talker.begin("a", 50, sampling=sampling, cache=False) for sampling in by_chance]
    for frames in talker.until(ids).values():
        said = b"".join(map(bytes_of, tokens_of(frames)))
        whole = codecs.getincrementaldecoder("utf-8")("replace").decode(said)
        assert text_of(frames) == whole  # without the beginning of a character at the end


def bytes_of(token: int) -> bytes:
    word = WORDS[token]
    if found := re.fullmatch("<0x(..)>", word):
        return bytes.fromhex(found[1])
    return b"" if token < len(CONTROL) else word.replace("\u2581", " ").encode()


def test_a_control_word_is_text_only_where_that_was_asked_for(tmp_path: Path) -> None:
    said = write_model(tmp_path / "control.gguf", script=["n", CONTROL[3], "o", "</s>"])
    with engine() as found:
        found.open(said, context=CONTEXT, slots=1, kept=1)
        assert found.say("n") == "o"
        asked: dict[str, Any] = {"shown": (CONTROL[3], "o", "no token")}
        tokens = tokens_of(found.end(found.begin("n", **asked)))
        assert found.say("n", **asked) == f"{CONTROL[3]}o"
        assert found.say("n", said=tokens[:1], **asked) == "o"


# Going on


def test_an_answer_goes_on_behind_what_was_said(talker: EngineProcess) -> None:
    frames = talker.end(talker.begin("the thing", 24, cache=False))
    text, tokens = text_of(frames), tokens_of(frames)
    for said in (1, 5, len(tokens) - 1):
        rest = talker.end(talker.begin("the thing", 24, said=tokens[:said], cache=False))
        assert tokens_of(rest) == tokens[said:]
        assert text.endswith(text_of(rest))
        assert end_of(rest).tokens_out == len(tokens)
        assert end_of(rest).tokens_in == end_of(frames).tokens_in


@pytest.mark.parametrize("rule", [None, Rule("regex", "[a-z ]{200}")], ids=["freely", "by a rule"])
def test_by_the_same_seed_an_answer_goes_on_as_it_would_have(
    talker: EngineProcess, rule: Rule | None
) -> None:
    sampling = Sampling(temperature=0.9, seed=7)
    asked: dict[str, Any] = {"sampling": sampling, "rule": rule, "cache": False}
    tokens = tokens_of(talker.end(talker.begin("the thing", 24, **asked)))
    for said in (1, 5, len(tokens) - 1):
        rest = talker.end(talker.begin("the thing", 24, said=tokens[:said], **asked))
        assert tokens_of(rest) == tokens[said:]


@pytest.mark.parametrize("stop", [(), ("not",)])
def test_an_answer_of_which_only_the_end_was_not_told_ends(scripted: EngineProcess, stop: tuple[str]) -> None:
    whole = scripted.end(scripted.begin("t", 12, stop=stop, cache=False))
    (rest,) = scripted.end(scripted.begin("t", 12, stop=stop, said=tokens_of(whole), cache=False))
    assert isinstance(rest, Done)
    assert (rest.finish, rest.tokens_out) == (end_of(whole).finish, end_of(whole).tokens_out)


def test_half_a_character_that_was_said_is_not_lost(talker: EngineProcess) -> None:
    frames = talker.end(talker.begin("he in", 40, cache=False))
    tokens, text = tokens_of(frames), text_of(frames)
    texts = [text_of(talker.end(talker.begin("he in", 40, said=tokens[:n], cache=False))) for n in range(9)]
    assert texts[0] == text
    assert all(before.endswith(after) for before, after in pairwise(texts))


def test_guessing_what_is_repeated_changes_nothing(scripted: EngineProcess) -> None:
    before = scripted.status()
    assert scripted.say("t", 60, cache=False) == "not" * 20
    assert scripted.status().steps - before.steps < 60


# What an answer looks like


def test_the_likelihood_of_each_token_is_told(talker: EngineProcess) -> None:
    frames = talker.end(talker.begin("the", 6, alternatives=3))
    told = [each for frame in frames if isinstance(frame, Text) for each in frame.logprobs]
    assert len(told) == len(tokens_of(frames))
    for each in told:
        assert len(each.top) == 3
        assert each.logprob == pytest.approx(each.top[0][1])
        assert sum(math.exp(logprob) for _, logprob in each.top) <= 1


def test_a_rule_holds_whatever_the_model_would_say(talker: EngineProcess) -> None:
    rule = Rule("regex", "[0-9]{3}-[a-f]{2}")
    for sampling in (Sampling(), Sampling(temperature=2.0, seed=4), Sampling(repeat_penalty=1.3)):
        text = talker.say("the", 20, rule=rule, sampling=sampling)
        digits, letters = text.split("-")
        assert len(digits) == 3
        assert set(digits) <= set("0123456789")
        assert set(letters) <= set("abcdef")


def test_a_rule_that_cannot_be_read_is_refused(talker: EngineProcess) -> None:
    (refused,) = talker.end(talker.begin("the", 5, rule=Rule("regex", "(")))
    assert isinstance(refused, Refused)
    assert refused.code == "rule_invalid"


def test_penalties_keep_an_answer_from_repeating_itself(talker: EngineProcess) -> None:
    plain = talker.end(talker.begin("the", 60))
    sampling = Sampling(repeat_penalty=3.0, presence_penalty=2.0)
    varied = talker.end(talker.begin("the", 60, sampling=sampling))
    assert len(set(tokens_of(varied))) > len(set(tokens_of(plain)))


# The process


def test_the_engine_ends_when_nobody_is_left_to_read(model: Path) -> None:
    with engine() as found:
        found.open(model, context=CONTEXT, slots=1)
        found.begin("the", 100)
    assert found.process.returncode == 0


def test_a_missing_and_a_damaged_model_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with engine() as found:
        missing, damaged = found.open(tmp_path / "none.gguf"), found.open(half)
        assert isinstance(missing, Refused)
        assert isinstance(damaged, Refused)
        assert (missing.code, damaged.code) == ("model_missing", "model_invalid")
        assert missing.model == damaged.model == "model"
        found.open(model, context=CONTEXT, slots=1)
        assert found.say("the", 3)


def test_how_many_sequences_pay_is_measured(model: Path, tmp_path: Path) -> None:
    with engine(Setup(threads=1, folder=str(tmp_path))) as found:
        opened = found.open(model, context=CONTEXT)
        assert not isinstance(opened, Refused)
        assert opened.slots >= 1


def test_ten_thousand_requests_that_leave_hold_nothing(talker: EngineProcess) -> None:
    before = talker.status()
    for start in range(0, 10_000, 500):
        ids = [start + number + 1_000_000 for number in range(500)]
        for id in ids:
            talker.send(Generate(id, "model", ("the",), True, 100, cache=id % 2 == 0))
            talker.drop(id)
        talker.until(ids)
    after = talker.status()
    assert after.running == after.waiting == after.paused == 0
    assert after.memory - before.memory < 20e6
    assert np.isfinite(after.busy)
