"""A long run of everything at once against the inference agent of a real stack, and what it proves."""
