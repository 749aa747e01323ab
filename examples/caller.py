"""What a caller can do.

Run the agent with `xnai run examples/maths.py`, and this with `python examples/caller.py`.
"""

import anyio

from xnai.bus import open_bus


async def main() -> None:
    async with open_bus() as bus:
        # Ask and wait. The answer is an int, for the type checker too.
        answer = await bus.call("maths.double", 21, int, timeout=5)
        print(f"double of 21: {answer}")

        # Store a task, and come back for it later: it survives the end of this program.
        task_id = await bus.send("maths.double", 4, lane="background", ttl=60)
        async for event in bus.subscribe(task_id):
            print(f"event {event.sequence}: {event.kind}")
        task = await bus.task(task_id)
        print(f"task: {task.status.state}")

        # What a skill yields, as it comes.
        async for chunk in bus.stream("maths.count", 3, str):
            print(f"chunk: {chunk}")

        # Change of mind: the handler stops, and the task ends as canceled.
        task_id = await bus.send("maths.rest", 60)
        task = await bus.cancel(task_id)
        print(f"task: {task.status.state}")


anyio.run(main)
