"""What people write first: the class `Llama` of the bindings, a thread for each caller, and a lock.

    python -m benchmarks.inference.locked MODEL CONTEXT THREADS [embed]

It says `"ready"`. Each line of its input is the JSON of [number, prompt, tokens]; it says [number, null] for
each piece of text as it comes, and [number, why] when the answer ended. With `embed` a line is a list of
texts, and the answer is how many vectors were made.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import msgspec
from llama_cpp import Llama

from benchmarks.inference.targets import SAMPLING

_writing = threading.Lock()


def say(value: object) -> None:
    with _writing:
        print(msgspec.json.encode(value).decode(), flush=True)


def main() -> None:
    path, context, threads, *rest = sys.argv[1:]
    llama = Llama(
        path,
        n_ctx=int(context),
        n_threads=int(threads),
        n_threads_batch=int(threads),
        embedding=bool(rest),
        verbose=False,
    )
    computing = threading.Lock()

    def answer(number: int, prompt: str, tokens: int) -> None:
        with computing:
            pieces: Any = llama.create_completion(prompt, max_tokens=tokens, stream=True, **SAMPLING)
            for piece in pieces:
                say([number, piece["choices"][0]["finish_reason"]])

    say("ready")
    for line in sys.stdin:
        if rest:
            say(len(llama.embed(msgspec.json.decode(line, type=list[str]))))
        else:
            threading.Thread(target=answer, args=msgspec.json.decode(line), daemon=True).start()


if __name__ == "__main__":
    main()
