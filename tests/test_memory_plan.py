"""How much memory a model takes, against what llama.cpp allocates, and how much there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from gguf_models import write_model

from xnai.agents.inference.gguf_file import GgufInfo, read_gguf
from xnai.agents.inference.memory import available, fits, plan_memory, usual_reserve
from xnai.protocol.errors import InvalidArgument

MIB = 1 << 20

# Opens a model in each of the given ways and prints what llama.cpp says that it allocates, in MiB.
ALLOCATE = """
import ctypes, json, re, sys
import llama_cpp as lib
said = []
log = lib.llama_log_callback(lambda level, text, _: said.append(text.decode(errors="replace")))
lib.llama_log_set(log, ctypes.c_void_p(0))
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
for context, sequences, batch, flash in json.loads(sys.argv[2]):
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.kv_unified = context * sequences, sequences, False
    settings.n_batch = settings.n_ubatch = batch
    settings.flash_attn_type = flash
    said.clear()
    opened = lib.llama_init_from_model(model, settings)
    sizes = re.findall(r"(output|KV|compute) buffer size = +([0-9.]+) MiB", " ".join(said))
    print(json.dumps({name: float(size) for name, size in sizes}))
    lib.llama_free(opened)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model.gguf", context=8192)


@pytest.mark.parametrize("head", [16, 64], ids=["usual", "heads wider than the model"])
def test_the_plan_is_never_less_than_what_llama_cpp_allocates_and_not_much_more(
    tmp_path: Path, head: int
) -> None:
    path = write_model(tmp_path / "model.gguf", context=8192, head=head)
    ways = [(512, 1, 512, 0), (4096, 1, 512, 0), (2048, 4, 64, 0), (1000, 3, 256, 1), (8192, 2, 512, 1)]
    command = [sys.executable, "-c", ALLOCATE, str(path), json.dumps(ways)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    info = read_gguf(path)
    for line, (context, sequences, batch, flash) in zip(done.stdout.splitlines(), ways, strict=True):
        sizes = json.loads(line)
        plan = plan_memory(info, context, sequences, batch=batch, flash=bool(flash))
        assert plan.kv / MIB == pytest.approx(sizes["KV"], abs=0.01)
        buffers = sizes["compute"] + sizes["output"]
        assert buffers - 0.02 <= plan.compute / MIB <= 2.5 * buffers
    assert info.tensor_bytes < path.stat().st_size


def test_keys_and_values_are_counted_by_layers_heads_and_their_sizes(model: Path) -> None:
    info = read_gguf(model)
    assert plan_memory(info, 512).kv_per_token == 2 * 2 * (16 + 16) * 2
    assert plan_memory(info, 512, kv_type="q8_0").kv_per_token == 2 * 2 * 34
    uneven = msgspec.structs.replace(info, kv_heads=(4, 0), key_length=64, value_length=32)
    assert plan_memory(uneven, 512).kv_per_token == 4 * (64 + 32) * 2


def test_a_model_that_only_embeds_has_no_keys_and_values(model: Path) -> None:
    encoder = msgspec.structs.replace(read_gguf(model), causal=False)
    assert plan_memory(encoder, 512, 8).kv == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"window": 1024}, "layers with a sliding window may take less"),
        ({"state_bytes": 4096}, "it has recurrent layers"),
        ({"kv_heads": (2, 0)}, "it has recurrent layers"),
        ({"experts": 8}, "the buffers of a mixture of experts depend on which are chosen"),
        ({"layers": 0}, "the file does not say how its layers are made"),
    ],
)
def test_a_plan_says_when_it_is_only_an_estimate(
    model: Path, change: dict[str, object], reason: str | None
) -> None:
    assert plan_memory(msgspec.structs.replace(read_gguf(model), **change), 512).estimate == reason


def test_each_sequence_of_a_recurrent_model_has_a_state(model: Path) -> None:
    info = msgspec.structs.replace(read_gguf(model), kv_heads=(0, 0), state_bytes=1000)
    assert plan_memory(info, 512, 8).kv == plan_memory(info, 4096, 8).kv == 8000


@pytest.mark.parametrize(("context", "sequences", "batch"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nothing_is_planned_for_no_tokens(model: Path, context: int, sequences: int, batch: int) -> None:
    with pytest.raises(InvalidArgument):
        plan_memory(read_gguf(model), context, sequences, batch=batch)


def test_a_type_of_cache_that_is_not_known_is_refused_with_those_that_are(model: Path) -> None:
    with pytest.raises(InvalidArgument, match="q8_0"):
        plan_memory(read_gguf(model), 512, kv_type="q3")


# What fits


def mistral() -> GgufInfo:
    """A model of 7 billion parameters as a file of it describes them."""
    return GgufInfo(
        architecture="llama",
        name="mistral",
        parameters=7_248_023_552,
        quantization="Q4_K_M",
        context=32_768,
        layers=32,
        heads=32,
        kv_heads=(8,) * 32,
        key_length=128,
        value_length=128,
        embedding=4096,
        feed_forward=14_336,
        vocabulary=32_768,
        tokenizer="llama",
        chat_template=None,
        state_bytes=0,
        window=0,
        experts=0,
        experts_used=0,
        causal=True,
        file_bytes=4_372_815_904,
        tensor_bytes=4_372_000_000,
    )


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    plan = plan_memory(mistral(), 4096, 8)
    assert fits(plan, plan.total) is None
    assert fits(plan, plan.total + 10, reserve=11) is not None
    assert fits(plan, 4 << 30, reserve=800 * MIB) == (
        "needs 8.2 GiB: weights 4.1, 8 x 4,096 tokens x 128 KiB = 4.0, buffers 0.2; 4.0 are free, "
        "less a reserve of 0.8"
    )


def test_the_reserve_is_a_fifth_of_what_is_free_and_bounded() -> None:
    assert usual_reserve(1000) == 200
    assert usual_reserve(1 << 40) == 2 << 30


# What there is

MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 8_000_000 << 10),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, 8_000_000 << 10),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/b/memory.current": "10",
                "sys/fs/cgroup/a/memory.max": "3000",
                "sys/fs/cgroup/a/memory.current": "1000",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400\nactive_file 7",
            },
            2400,
        ),
        (
            {
                "proc/self/cgroup": "0::/only/on/the/host",
                "sys/fs/cgroup/memory.max": "3000",
                "sys/fs/cgroup/memory.current": "5000",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/a\n0::/",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "1000",
                "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 500",
            },
            2500,
        ),
    ],
    ids=["no cgroup", "no limit", "v2 above", "v2 in a container", "v1"],
)
def test_what_is_available_is_bounded_by_each_cgroup(
    tmp_path: Path, files: dict[str, str], left: int
) -> None:
    assert available(machine(tmp_path, files)) == left


def test_what_is_available_here_is_part_of_the_memory_there_is() -> None:
    said = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert said
    assert 0 < available() < int(said[1]) << 10
