"""The commands of `xnai`, a module each: `add(commands)` says what it takes, `run(arguments)` does it.

`run` may be a plain or an async function, and returns the exit status. What takes long to import is imported
inside it.
"""

__all__: list[str] = []
