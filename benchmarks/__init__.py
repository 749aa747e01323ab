"""What the bus costs, measured against a raw program beside it: `python -m benchmarks [NAME]`."""
