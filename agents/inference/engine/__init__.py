"""The engine: a process that owns llama.cpp, computes one batch at a time, and knows nothing of the bus."""

import os

# llama.cpp's threads meet at a barrier many times a token, and spin there. Where something else wants the
# cores too, those that wait take them from those that are waited for, which leaves a third of the speed with
# two threads on two busy cores. OpenMP reads this when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
