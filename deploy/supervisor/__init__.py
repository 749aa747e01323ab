"""What `xnai up` is while it is up: the agents of a folder as processes, kept as its settings say."""

__all__: list[str] = []
