"""Write the golden files anew: `python tests/golden/write.py`, then read the difference before committing.

A changed line is a changed wire, and programs that speak the old one are still out there. So the tests only
compare, and nothing but this command ever writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

HERE = Path(__file__).parent


def golden_files() -> dict[Path, bytes]:
    """What each file holds: an object as our encoder writes it, in one line; or a list of subjects."""
    from golden.examples import A2A
    from golden.wire_examples import OBJECTS, SUBJECTS

    files = {HERE / "a2a" / f"{name}.json": msgspec.json.encode(example) for name, example in A2A.items()}
    files |= {HERE / "wire" / f"{name}.json": msgspec.json.encode(body) for name, body in OBJECTS.items()}
    subjects = "\n".join(f"{use:<20}{text}" for use, text in SUBJECTS.items())
    files[HERE / "wire" / "subjects.txt"] = subjects.encode()
    return {path: content + b"\n" for path, content in files.items()}


def main() -> None:
    """Write what differs, remove what is no longer there, and name both."""
    wanted = golden_files()
    for path in sorted({*HERE.glob("*/*.json"), *HERE.glob("*/*.txt")} - set(wanted)):
        path.unlink()
        print(f"removed {path.relative_to(HERE)}")
    for path, content in wanted.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            print(f"written {path.relative_to(HERE)}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # the examples are imported as the tests import them
    main()
