"""Map the folders at the top of the repository into the namespace package `xnai`.

Everything else is in pyproject.toml. This is code because the list of subpackages is found, not written
down, and because an editable install needs real directories of the right names (docs/decisions/0001).
"""

import os
import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup

PARTS = ("protocol", "bus", "registry", "agents", "adapters", "deploy")
ROOT = Path(__file__).resolve().parent
LINKS = ROOT / ".links"


def packages() -> list[str]:
    """Each part that exists, and every folder below it that holds Python modules."""
    found: list[str] = []
    for part in filter(os.path.isdir, PARTS):
        for name in (part, *(f"{part}.{below}" for below in find_namespace_packages(part))):
            if any(ROOT.joinpath(*name.split(".")).glob("*.py")):
                found.append(f"xnai.{name}")
    return found


def link() -> None:
    """Make .links/xnai/<part> for every part; one that has no folder yet dangles and comes alive with it."""
    (LINKS / "xnai").mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        place = LINKS / "xnai" / part
        if not place.is_symlink():
            place.symlink_to(Path("..", "..", part), target_is_directory=True)


if "editable_wheel" in sys.argv:
    link()
    setup(packages=["xnai"], package_dir={"": LINKS.name})
else:
    setup(packages=packages(), package_dir={f"xnai.{part}": part for part in PARTS})
