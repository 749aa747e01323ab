"""Every benchmark measures what it says, in a tiny size: nothing is said about how fast anything is."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from benchmarks.__main__ import BENCHMARKS, chosen, run
from benchmarks.harness import Figure, Size, figure, in_turns, percentile

TINY = Size(
    pairs=2,
    slices=2,
    tasks=40,
    calls=5,
    backlog=60,
    small_backlog=20,
    stored=600,
    agents=2,
    window=0.02,
    settling=0.1,
    cancels=3,
    together=2,
    fleet=2,
)
NAMES = {
    "permissions",
    "two_accounts",
    "task_throughput",
    "task_latency",
    "messages_per_task",
    "idle_memory_mb",
    "start",
    "idle_cpu",
    "backlog",
    "cancel_stops",
    "log_growth",
    "registry_lookup",
    "card_change",
    "up_ten_agents",
    "supervisor_memory_mb",
    "fifty_idle_cpu",
    "fifty_memory_mb",
    "broker_restart",
}


INFERENCE = {
    "inference_one_caller",
    "inference_first_token",
    "inference_eight_callers",
    "inference_eight_talks",
    "inference_bindings_server",
    "inference_sixteen_callers",
    "inference_sixteen_callers_fast",
    "inference_agents_first_token",
    "inference_agents_late_first_token",
    "inference_agents_total",
    "inference_urgent",
    "inference_longest_gap",
    "inference_long_prompt",
    "inference_fair_share",
    "inference_cancel_decode",
    "inference_cancel_prefill",
    "inference_cancel_queued",
    "inference_json_schema",
    "inference_embeddings",
    "inference_memory_mb",
    "inference_neighbours",
}
"""They fetch tokenizers and compile a peer. What they are made of is tested in test_inference_benchmarks."""


@pytest.mark.parametrize("name", sorted(NAMES))
async def test_a_benchmark_prints_one_well_formed_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with anyio.fail_after(60):
        await run([BENCHMARKS[name]], TINY)
    (line,) = capfd.readouterr().out.splitlines()
    keys = ["name", "ours", "floor", "ratio", "unit", "bar", "holds", "quartiles", "pairs"]
    assert list(msgspec.json.decode(line)) == keys
    told = msgspec.json.decode(line, type=Figure)
    assert told.name == name
    assert told.unit
    assert told.ours > 0 < told.floor
    lower, upper = told.quartiles
    assert lower <= told.ratio <= upper
    assert told.holds == (told.ratio >= told.bar)
    assert told.pairs >= 2


def test_a_name_chooses_the_benchmarks_that_start_so() -> None:
    assert set(BENCHMARKS) == NAMES | INFERENCE
    assert chosen("") == list(BENCHMARKS.values())
    assert [benchmark.__name__ for benchmark in chosen("idle")] == ["idle_memory_mb", "idle_cpu"]
    with pytest.raises(SystemExit, match="There is no benchmark zeal"):
        chosen("zeal")


async def test_one_bar_that_does_not_hold_fails_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    async def good(size: Size) -> Figure:
        return figure("good", [(4.0, 2.0)] * 2, unit="tasks/s", bar=1.0)

    async def bad(size: Size) -> Figure:
        return figure("bad", [(4.0, 2.0)] * 2, unit="ms", bar=1.0, less_is_better=True)

    assert await run([good], TINY)
    assert not await run([bad, good], TINY)
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_a_figure_holds_by_the_median_of_the_paired_ratios() -> None:
    pairs = [(1.0, 2.0), (3.0, 4.0), (9.0, 10.0), (20.0, 20.0), (300.0, 100.0)]
    assert figure("f", pairs, unit="tasks/s", bar=0.9) == Figure(
        name="f",
        ours=9.0,
        floor=10.0,
        ratio=0.9,
        unit="tasks/s",
        bar=0.9,
        holds=True,
        quartiles=(0.75, 1.0),
        pairs=5,
    )
    inverted = figure("f", pairs, unit="ms", bar=1.12, less_is_better=True)
    assert (inverted.ratio, inverted.holds) == (1.111, False)


async def test_pairs_hold_both_measurements_whatever_came_first() -> None:
    async def ours() -> float:
        return 1.0

    async def floor() -> float:
        return 2.0

    assert await in_turns(ours, floor, 9) == [(1.0, 2.0)] * 9


def test_a_percentile_is_the_value_that_so_many_do_not_exceed() -> None:
    values = list(range(100, 0, -1))
    assert (percentile(values, 0.99), percentile(values, 0.5), percentile([7.0], 0.99)) == (99, 50, 7.0)
