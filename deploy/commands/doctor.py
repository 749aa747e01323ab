"""`xnai doctor`: what is wrong with the machine and the stack, and what to do about it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xnai.deploy.doctor import Finding
    from xnai.deploy.table import Tone

_EXAMPLES = """\
examples:
  xnai doctor
  xnai doctor --json | jq '.[] | select(.level != "fine")'
"""


def add(commands: Any) -> None:
    commands.add_parser(
        "doctor",
        help="find out what is wrong, and what to do",
        description=(
            "Examine the machine and the stack of this folder, whether it is up or not, and say what to do "
            "about what is wrong. Nothing is changed. The exit status is 1 when there is a problem; a "
            "warning, which may become one, leaves it 0."
        ),
        epilog=_EXAMPLES,
    )


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.doctor import examine
    from xnai.deploy.environment import variables
    from xnai.deploy.output import show

    found = await examine(variables())
    if arguments.json:
        show(found, as_json=True)
    else:
        _tell(found)
    return Status.FAILURE if any(each.level == "problem" for each in found) else Status.DONE


def _tell(found: Sequence[Finding]) -> None:
    from xnai.deploy.table import paint

    tones: dict[str, Tone] = {"fine": "good", "warning": "warning", "problem": "bad"}
    width = max(len(each.check) for each in found)
    for each in found:
        level = paint(f"{each.level:<7}", tones[each.level], sys.stdout)
        print(f"{level}  {each.check:<{width}}  {each.what}")
        if each.do:
            print(f"{'':7}  {'':{width}}  -> {each.do}")
    counts = {level: sum(each.level == level for each in found) for level in ("problem", "warning")}
    words = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    print(", ".join(words) or "Nothing is wrong.")
