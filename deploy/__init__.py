"""Bringing it up: settings, the command line, and the processes of a stack."""

__all__: list[str] = []
