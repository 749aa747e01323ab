"""The rules of the house that a machine can check, by reading the sources and running nothing.

`python -m pytest tests/test_structure.py` runs them on their own; so does `make check`.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each may import itself and those before it.
LAYERS = ("protocol", "bus", "registry", "agents", "adapters", "deploy")

# Where an outside library may be imported, as starts of paths. One that is not here may not be imported.
HOMES: dict[str, tuple[str, ...]] = {
    "anyio": ("",),
    "cryptography": ("deploy/",),
    "gguf": ("agents/inference/minilm.py",),
    "httpx": ("deploy/models/",),
    "jinja2": ("agents/inference/chat.py", "agents/inference/sandbox.py"),
    "jsonschema": ("agents/inference/validating.py",),
    "llama_cpp": ("agents/inference/engine/",),
    "llguidance": ("agents/inference/engine/rules.py", "agents/inference/validating.py"),
    "lxml": ("agents/curation/",),
    "msgspec": ("",),
    "nats": ("bus/",),
    "nats_server": ("bus/",),
    "nkeys": ("bus/keys.py",),
    "numpy": ("agents/inference/engine/", "agents/inference/minilm.py", "agents/retrieval/"),
    "pydantic": ("agents/settings.py", "deploy/settings.py"),
    "qdrant_client": ("agents/retrieval/",),
    "redis": ("agents/inference/redis_store.py",),
    "tokenizers": ("agents/inference/wordpieces.py",),
}

# Where `except Exception` and `except BaseException` stand, and how often: foreign code runs there, or the
# error is raised again elsewhere.
BLIND = {
    "agents/handling.py": 2,
    "agents/inference/chat.py": 2,
    "agents/inference/wordpieces.py": 1,
    "agents/inference/reusing.py": 1,
    "agents/isolation.py": 1,
    "agents/retrieval/opening.py": 1,
    "bus/background.py": 1,
    "bus/client.py": 2,
    "bus/pull.py": 1,
    "deploy/cli.py": 1,
    "deploy/loading.py": 1,
}

# What reads the environment of the process.
ENVIRONMENT = {
    "agents/inference/engine/__init__.py",
    "agents/inference/minilm.py",
    "bus/locating.py",
    "deploy/environment.py",
}

# Tasks without a parent. The floor is a program on nats-py alone, and not held to this.
LOOSE = {"create_task", "ensure_future", "gather", "run_coroutine_threadsafe"}
RAW = {"benchmarks/floor.py"}

LONGEST_MODULE = 400
LONGEST_TESTS = 600  # a test file is a list, and read one test at a time
LONGEST_FUNCTION = 60
USUAL_FUNCTION = 30
POSITIONAL = 4

# Written so that this file does not match.
INDEX_ADDRESS = re.compile(r"https?://[^\s\"'<>]*(?:pypi|pythonhosted|/simple\b|npmjs)", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A module: its path from the root, its lines, and all its nodes."""

    path: str
    lines: list[str]
    nodes: list[ast.AST]

    @property
    def layer(self) -> str:
        return self.path.split("/")[0]

    def imports(self) -> Iterator[tuple[str, str]]:
        """Place and full name of everything that is imported, at any depth, for types only too."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((f"{self.path}:{node.lineno}", alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from ((f"{self.path}:{node.lineno}", name) for name in names)

    def functions(self) -> Iterator[Function]:
        return (node for node in self.nodes if isinstance(node, Function))

    def attributes(self) -> Iterator[ast.Attribute]:
        return (node for node in self.nodes if isinstance(node, ast.Attribute))

    def blind(self) -> Iterator[ast.ExceptHandler]:
        """The handlers that catch errors of every kind."""
        for node in self.nodes:
            if isinstance(node, ast.ExceptHandler):
                kind = ast.unparse(node.type) if node.type else "BaseException"
                if re.search(r"\b(Base)?Exception\b", kind):
                    yield node


@cache
def product() -> list[Source]:
    return read(*LAYERS)


@cache
def everything() -> list[Source]:
    """The product, and what proves, measures, shows and sets it up."""
    return product() + read("tests", "benchmarks", "examples", "tools")


def read(*folders: str) -> list[Source]:
    sources = []
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        text = path.read_text()
        nodes = list(ast.walk(ast.parse(text, str(path))))
        sources.append(Source(path.relative_to(ROOT).as_posix(), text.splitlines(), nodes))
    return sources


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_imports_between_our_packages_point_one_way() -> None:
    wrong = []
    for source in product():
        allowed = LAYERS[: LAYERS.index(source.layer) + 1]
        ours = ((place, name) for place, name in source.imports() if name.startswith("xnai."))
        wrong += [f"{place} imports {name}" for place, name in ours if name.split(".")[1] not in allowed]
    assert wrong == []


def test_each_outside_library_has_one_home() -> None:
    wrong = []
    for source in product():
        for place, name in source.imports():
            library = name.split(".")[0]
            ours = library == "xnai" or library in sys.stdlib_module_names
            if not ours and not source.path.startswith(HOMES.get(library, ())):
                wrong.append(f"{place} imports {library}")
    assert wrong == []


def test_no_task_is_without_a_parent() -> None:
    wrong = []
    for source in everything():
        if source.path not in RAW:
            wrong += [f"{source.path}:{node.lineno}" for node in source.attributes() if node.attr in LOOSE]
            wrong += [place for place, name in source.imports() if name.split(".")[-1] in LOOSE]
    assert wrong == []


def test_errors_of_every_kind_are_caught_only_where_foreign_code_runs() -> None:
    counts = {source.path: len(list(source.blind())) for source in product()}
    assert {path: count for path, count in counts.items() if count} == BLIND


def test_each_place_that_catches_everything_says_why() -> None:
    wrong = []
    for source in everything():
        for handler in source.blind():
            above = source.lines[handler.lineno - 1 : handler.body[0].lineno]
            if not any("#" in text for text in above):
                wrong.append(f"{source.path}:{handler.lineno} has no comment there or on the next line")
    assert wrong == []


def test_only_named_modules_read_the_environment() -> None:
    readers = set()
    for source in product():
        names = [name for _, name in source.imports()] + [f"os.{node.attr}" for node in source.attributes()]
        if {"os.environ", "os.environb", "os.getenv"}.intersection(names):
            readers.add(source.path)
    assert readers == ENVIRONMENT


def test_no_module_is_long() -> None:
    lengths = {source.path: len(source.lines) for source in everything()}
    limits = {path: LONGEST_TESTS if path.startswith("tests/") else LONGEST_MODULE for path in lengths}
    assert {path: lines for path, lines in lengths.items() if lines > limits[path]} == {}


def test_no_function_is_long() -> None:
    wrong = []
    for source in everything():
        long = (function for function in source.functions() if length(function) > LONGEST_FUNCTION)
        wrong += [f"{source.path}:{function.lineno} {function.name}" for function in long]
    assert wrong == []


def test_nine_of_ten_functions_are_short() -> None:
    lengths = [length(function) for source in product() for function in source.functions()]
    assert sum(lines <= USUAL_FUNCTION for lines in lengths) >= 0.9 * len(lengths)


def test_no_function_takes_many_positional_parameters() -> None:
    wrong = []
    for source in product():
        for function in source.functions():
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > POSITIONAL:
                wrong.append(f"{source.path}:{function.lineno} {function.name}")
    assert wrong == []


def test_every_package_states_what_is_public_in_order() -> None:
    wrong = []
    for source in product():
        offered = {name.split(".")[-1] for _, name in source.imports() if name.startswith("xnai.")}
        if source.path.endswith("/__init__.py") and offered:
            stated = assigned("__all__", source.nodes)
            if not isinstance(stated, list) or stated != sorted(stated) or not offered <= set(stated):
                wrong.append(source.path)
    assert wrong == []


def test_tests_are_functions_and_use_no_mocks() -> None:
    wrong = []
    for source in read("tests"):
        wrong += [place for place, name in source.imports() if name.startswith(("mock", "unittest"))]
        classes = (node for node in source.nodes if isinstance(node, ast.ClassDef))
        wrong += [f"{source.path}:{node.lineno}" for node in classes if node.name.startswith("Test")]
    assert wrong == []


def test_no_file_holds_the_address_of_a_package_index() -> None:
    texts = {name: (ROOT / name).read_text(errors="replace") for name in kept_files()}
    assert [name for name, text in texts.items() if INDEX_ADDRESS.search(text)] == []


def kept_files() -> list[str]:
    """What git keeps or would keep; in a copy without git, whatever is in no hidden folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else visible_files()
    return [name for name in names if (ROOT / name).is_file()]


def visible_files() -> list[str]:
    found = (path.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*"))
    return [str(path) for path in found if "__pycache__" not in path.parts]


def assigned(name: str, nodes: list[ast.AST]) -> object:
    """The literal that is assigned to this name, or None."""
    for node in nodes:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def test_the_packages_that_are_built_are_the_layers() -> None:
    assert assigned("PARTS", list(ast.walk(ast.parse((ROOT / "setup.py").read_text())))) == LAYERS


def test_there_is_no_folder_to_shadow_the_namespace() -> None:
    assert not (ROOT / "xnai").exists()


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if any((ROOT / layer).rglob("*.py"))])
def test_a_package_is_imported_from_its_folder_and_is_typed(layer: str) -> None:
    package = importlib.import_module(f"xnai.{layer}")
    assert [Path(place).resolve() for place in package.__path__] == [ROOT / layer]
    assert (ROOT / layer / "py.typed").is_file()
