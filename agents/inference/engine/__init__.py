"""The engine: a process that owns llama.cpp, computes one batch at a time, and knows nothing of the bus."""

import os

# llama.cpp's threads meet at a barrier many times a token, and spin there before they sleep. Below some
# thousand rounds they all fall asleep at each barrier once the caches are cold, and a short prompt takes
# 60 ms instead of 20; with the 300,000 that OpenMP spins by itself, two threads on two cores that others
# use too fall to a twentieth of their speed. While the machine is busy `spinning` makes it 100. OpenMP reads
# this when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

# An assertion of llama.cpp ends the process; without this a debugger would first be started on it.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
