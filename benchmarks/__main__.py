"""`python -m benchmarks [NAME]`: one JSON line per benchmark; the exit status is 1 when a bar does not hold.

NAME runs those whose name starts so.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from benchmarks import cancelling, messages, processes, tasks
from benchmarks.harness import Figure, Size

BENCHMARKS: dict[str, Callable[[Size], Awaitable[Figure]]] = {
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
    )
}


async def run(prefix: str, size: Size) -> bool:
    """Whether the bars of all benchmarks whose name starts with `prefix` hold. Each is printed as it is known."""
    chosen = [benchmark for name, benchmark in BENCHMARKS.items() if name.startswith(prefix)]
    if not chosen:
        sys.exit(f"There is no benchmark {prefix}…, only {', '.join(BENCHMARKS)}.")
    hold = True
    for benchmark in chosen:
        measured = await benchmark(size)
        print(msgspec.json.encode(measured).decode(), flush=True)
        hold = hold and measured.holds
    return hold


if __name__ == "__main__":
    prefix = sys.argv[1] if len(sys.argv) > 1 else ""
    sys.exit(not anyio.run(run, prefix, Size(), backend_options={"use_uvloop": True}))
