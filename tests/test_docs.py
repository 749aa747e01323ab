"""The documentation against what it describes: settings, errors, commands, examples, links."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel
from terminal import ROOT
from transcript import CONSOLE, Player, blocks, steps

from xnai.agents import Agent
from xnai.agents.curation import sources
from xnai.agents.inference import errors as inference
from xnai.agents.inference.agent import InferenceSettings, ModelSettings
from xnai.agents.retrieval import errors as retrieval
from xnai.agents.retrieval.agent import RetrievalSettings
from xnai.deploy.cli import COMMANDS
from xnai.deploy.settings import (
    AgentTable,
    KeeperTable,
    LimitsTable,
    ModelsTable,
    ServerTable,
    SupervisorTable,
    read_settings,
)
from xnai.deploy.statuses import Status
from xnai.protocol import errors
from xnai.protocol.errors import TaskFailed, XnaiError

DOCS = ROOT / "docs"
TABLES: dict[str, type[BaseModel]] = {
    "[server]": ServerTable,
    "[limits]": LimitsTable,
    "[agents.NAME]": AgentTable,
    "[agents.inference.settings]": InferenceSettings,
    "[agents.inference.settings.models.NAME]": ModelSettings,
    "[agents.retrieval.settings]": RetrievalSettings,
    "[keeper]": KeeperTable,
    "[models]": ModelsTable,
    "[supervisor]": SupervisorTable,
}
WITH_VARIABLES = ("server", "limits", "keeper", "models", "supervisor")

# What a command says of errors that are none of ours, and what stands for an outcome without a code.
WITHOUT_CLASS = {"usage", "failure", "unexpected", "failed"}
UNSEEN = {"XnaiError"}  # the root
LAYERS = ("protocol", "bus", "agents", "deploy")

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def rows(page: str, title: str) -> Iterator[list[str]]:
    """The rows of all tables in the section of this title, each as its cells; heads and rulers left out."""
    section = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, title
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|---") and not following.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def read(name: str) -> str:
    return (DOCS / name).read_text()


# Settings


@pytest.mark.parametrize("title", TABLES)
def test_each_key_is_described_with_its_default(title: str) -> None:
    described = {row[0].strip("`"): row[1] for row in rows(read("configuration.md"), title)}
    fields = TABLES[title].model_fields
    assert set(described) == set(fields)
    needed = {key: "x" for key, field in fields.items() if field.is_required()}
    for key, said in described.items():
        default = fields[key].get_default(call_default_factory=True)
        if said == "needed":
            assert key in needed
        elif said == "none":
            assert default is None, key
        else:
            value = tomllib.loads(f"value = {said.strip('`')}")["value"]
            assert getattr(TABLES[title].model_validate(needed | {key: value}), key) == default, key


@pytest.mark.parametrize("table", WITH_VARIABLES)
def test_each_variable_is_described_beside_its_key(table: str) -> None:
    for key, _, _, variables, _ in rows(read("configuration.md"), f"[{table}]"):
        assert _CODE.findall(variables)[0] == f"XNAI_{table}_{key.strip('`')}".upper()


def test_no_other_variable_of_ours_is_described() -> None:
    described = set(re.findall(r"\bXNAI_[A-Z_]*[A-Z]\b", read("configuration.md")))
    known = {
        f"XNAI_{table}_{key}".upper() for table in WITH_VARIABLES for key in TABLES[f"[{table}]"].model_fields
    }
    assert described == known | {"XNAI_URL", "XNAI_TOKEN", "XNAI_NAME"}


def test_the_settings_that_are_shown_can_be_used(tmp_path: Path) -> None:
    shown = [block.text for block in blocks(read("configuration.md")) if block.kind == "toml"]
    assert shown
    for text in shown:
        file = tmp_path / "xnai.toml"
        file.write_text(text)
        assert set(read_settings(file, {}).agents) >= {"inference", "curation", "retrieval"}


def test_the_concurrency_that_is_described_is_that_of_an_agent() -> None:
    assert f"which is {Agent('a').concurrency} unless" in read("configuration.md")


# Errors


def codes() -> set[str]:
    """All that are spelled in the sources of the product and on the page on the wire, the root's left out."""
    product = "\n".join(file.read_text() for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))
    on_the_wire = re.search(r"^Codes: `([^`]+)`", read("wire.md"), re.MULTILINE)
    assert on_the_wire
    spelled = re.findall(r"^    code(?:: ClassVar\[str\])? = \"(\w+)\"$", product, re.MULTILINE)
    return {*spelled, *on_the_wire[1].replace("\n", " ").split(", ")} - {XnaiError.code}


def test_each_code_is_described_once_and_no_other() -> None:
    page = read("errors.md")
    titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
    described = [code for title in titles for row in rows(page, title) for code in _CODE.findall(row[0])]
    assert sorted(described) == sorted(codes() | WITHOUT_CLASS)


@pytest.mark.parametrize(
    ("title", "modules"),
    [
        ("What the bus raises", (errors,)),
        ("What the agents of the project raise", (sources, inference, retrieval)),
    ],
)
def test_the_classes_of_errors_are_described_as_the_tree_that_they_are(
    title: str, modules: Sequence[ModuleType]
) -> None:
    kinds = {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, XnaiError) and kind.__module__ == module.__name__
    }
    described, above = [], ""
    for code, cell, *_ in rows(read("errors.md"), title):
        name, below = _CODE.findall(cell)[0], cell.startswith("—")
        described.append(name)
        assert kinds[name].__bases__[0].__name__ == (above if below else "XnaiError")
        assert issubclass(kinds[name], TaskFailed) or code == f"`{kinds[name].code}`"
        above = above if below else name
    assert sorted(described) == sorted(set(kinds) - UNSEEN)


def test_the_exit_statuses_are_those_of_the_commands() -> None:
    found = {
        row[1].strip("`"): row[0]
        for row in rows(read("errors.md"), "What the commands say")
        if row[0].isdecimal()
    }
    assert found == {status.name: str(int(status)) for status in Status}


# The README and the pages


def test_each_command_but_a_few_is_shown_with_what_it_prints_on_a_page_that_is_played() -> None:
    played = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("tutorial", "operations", "models"))]
    shown = {
        command
        for page in played
        for block in blocks(page.read_text())
        if block.kind == CONSOLE
        for step in steps(block.text)
        if step.command and any(line.strip("…") for line in step.printed)
        for command in re.findall(r"\bxnai (\w+)", step.command)
    }
    assert set(COMMANDS) - shown == {"run", "completion"}  # the first goes on, the second is for a shell


async def test_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    await Player(tmp_path).play((ROOT / "README.md").read_text())


def test_the_agent_of_the_readme_is_the_example() -> None:
    agents = [block.text for block in blocks((ROOT / "README.md").read_text()) if block.file == "hello.py"]
    example = (ROOT / "examples" / "hello.py").read_text()
    assert [example.endswith(text) for text in agents] == [True]


def test_the_readme_begins_with_the_two_commands_and_names_all_others() -> None:
    page = (ROOT / "README.md").read_text()
    first = next(blocks(page)).text
    assert re.findall(r"^make (\w+) ", first, re.MULTILINE) == ["demo", "test"]
    named = [_CODE.findall(row[0])[0].split()[1] for row in rows(page, "The commands")]
    assert sorted(named) == sorted(COMMANDS)


def test_links_between_files_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        for link in _LINK.findall(page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_each_page_stands_in_the_navigation() -> None:
    navigation = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_each_decision_is_named_on_the_first_page() -> None:
    first = read("index.md")
    for page in (DOCS / "decisions").glob("*.md"):
        assert f"](decisions/{page.name})" in first


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "tutorial.html").exists()
