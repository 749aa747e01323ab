# Read by CMake at the top of llama-cpp-python's own project, which forces this option on in the cache. A normal
# variable hides the cache entry (policy CMP0126), so llama.cpp's helpers for command line programs are left out.
set(LLAMA_BUILD_COMMON OFF)
