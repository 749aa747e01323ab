"""The inference agent: the one owner of llama.cpp."""
