"""The engine: a process that owns llama.cpp, computes one batch at a time, and knows nothing of the bus."""
