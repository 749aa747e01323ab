"""What the agents of the settings need: packages that are optional, and model files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.gguf_file import check_gguf
from xnai.deploy.doctor.finding import Case, Finding, fine, problem

_OURS = "xnai.agents."
_PACKAGE = "xnai-agent-bus"
_NEEDED = re.compile(r"^([\w.-]+).*extra == ['\"](\w+)['\"]").match
_MODELS = ("model", "embedding_model")


def extras(case: Case) -> Iterator[Finding]:
    """Whether the packages are installed that agents of the project need beyond the core."""
    used = {
        table.module.removeprefix(_OURS).partition(".")[0]: name
        for name, table in case.settings.agents.items()
        if table.module and table.module.startswith(_OURS)
    }
    found = [(needed[1], needed[2]) for each in _requirements() if (needed := _NEEDED(each))]
    missing = [(package, extra) for package, extra in found if extra in used and not _installed(package)]
    for extra in dict.fromkeys(extra for _, extra in missing):
        packages = ", ".join(package for package, of in missing if of == extra)
        what = f"The agent {used[extra]} lacks {packages}."
        yield problem("extras", what, f"pip install '{_PACKAGE}[{extra}]'")
    if not missing:
        yield fine("extras", "All packages that the agents need are installed.")


def _requirements() -> list[str]:
    try:
        return metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:  # it runs from its sources
        return []


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def modules(case: Case) -> Iterator[Finding]:
    """Whether the files of the agents are there; they are not run."""
    wanted = {
        name: case.project / place
        for name, table in case.settings.agents.items()
        if (place := (table.module or "").partition(":")[0]).endswith(".py") or "/" in place
    }
    missing = {name: path for name, path in wanted.items() if not path.is_file()}
    for name, path in missing.items():
        do = f"Correct agents.{name}.module in xnai.toml."
        yield problem("modules", f"The agent {name} has no file {path}.", do)
    if wanted and not missing:
        yield fine("modules", "The files of all agents are there.")


def models(case: Case) -> Iterator[Finding]:
    """Whether the model files of the settings are there and whole."""
    for name, table in case.settings.agents.items():
        if not (table.module or "").startswith(f"{_OURS}inference."):
            continue
        for key in _MODELS:
            if isinstance(said := table.settings.get(key), str):
                yield _model(case.project / Path(said).expanduser(), f"agents.{name}.settings.{key}")


def _model(path: Path, key: str) -> Finding:
    try:
        check_gguf(path)
    except ModelMissing:
        return problem("models", f"There is no model file {path}.", f"Correct {key} in xnai.toml.")
    except ModelInvalid as error:
        return problem(
            "models",
            f"The model file cannot be used: {error}.",
            f"Fetch it again, or correct {key} in xnai.toml.",
        )
    return fine("models", f"{path} is whole.")
