"""`python -m benchmarks [NAME]`: one JSON line per benchmark; the exit status is 1 when a bar does not hold.

NAME runs those whose name starts so.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable

import anyio
import msgspec

from benchmarks import cancelling, messages, permissions, processes, registry, stack, tasks
from benchmarks.harness import Figure, Size
from benchmarks.inference import alone, costs, crowds, ending, lanes

Benchmark = Callable[[Size], Awaitable[Figure]]
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.__name__: benchmark
    for benchmark in (
        tasks.task_throughput,
        tasks.task_latency,
        messages.messages_per_task,
        processes.idle_memory_mb,
        processes.start,
        processes.idle_cpu,
        tasks.backlog,
        cancelling.cancel_stops,
        tasks.log_growth,
        registry.registry_lookup,
        registry.card_change,
        permissions.permissions,
        permissions.two_accounts,
        stack.up_ten_agents,
        stack.supervisor_memory_mb,
        stack.fifty_idle_cpu,
        stack.fifty_memory_mb,
        stack.broker_restart,
        alone.inference_one_caller,
        alone.inference_first_token,
        crowds.inference_eight_callers,
        crowds.inference_eight_talks,
        crowds.inference_bindings_server,
        crowds.inference_sixteen_callers,
        crowds.inference_sixteen_callers_fast,
        crowds.inference_agents_first_token,
        crowds.inference_agents_late_first_token,
        crowds.inference_agents_total,
        lanes.inference_urgent,
        lanes.inference_longest_gap,
        lanes.inference_long_prompt,
        lanes.inference_fair_share,
        ending.inference_cancel_decode,
        ending.inference_cancel_prefill,
        ending.inference_cancel_queued,
        costs.inference_json_schema,
        costs.inference_embeddings,
        costs.inference_memory_mb,
        costs.inference_neighbours,
    )
}


def chosen(prefix: str) -> list[Benchmark]:
    """The benchmarks whose name starts with `prefix`; ends the program when there is none."""
    found = [benchmark for name, benchmark in BENCHMARKS.items() if name.startswith(prefix)]
    if not found:
        sys.exit(f"There is no benchmark {prefix}…, only {', '.join(BENCHMARKS)}.")
    return found


async def run(benchmarks: Iterable[Benchmark], size: Size) -> bool:
    """Whether all bars hold. Each figure is printed as soon as it is known."""
    hold = True
    for benchmark in benchmarks:
        measured = await benchmark(size)
        print(msgspec.json.encode(measured).decode(), flush=True)
        hold = hold and measured.holds
    return hold


if __name__ == "__main__":
    benchmarks = chosen(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(not anyio.run(run, benchmarks, Size(), backend_options={"use_uvloop": True}))
