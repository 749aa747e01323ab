"""The engine: a process that owns llama.cpp, computes one batch at a time, and knows nothing of the bus."""

import os

# llama.cpp's threads meet at a barrier many times a token, and spin there. Where something else wants the
# cores too, those that wait take them from those that are waited for: with the 300,000 rounds that OpenMP
# spins by itself, two threads on two busy cores fall to a twentieth of the speed that they have with 100
# (`spinning` switches to them while the machine is busy). This is between, for the second until that is
# noticed. OpenMP reads it when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# An assertion of llama.cpp ends the process; without this a debugger would first be started on it.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
