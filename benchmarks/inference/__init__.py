"""The shared inference agent against what else computes on this machine: one JSON line per figure."""
