"""`xnai model`: fetch, list, check, measure and remove the models of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.agents.inference.gguf_file import GgufInfo
    from xnai.agents.inference.memory import MemoryPlan
    from xnai.deploy.models.folders import Found
    from xnai.deploy.models.store import Store

_EXAMPLES = """\
examples:
  xnai model get OWNER/REPOSITORY:Q4_K_M    # fetch it, or go on with it, or find that it is here
  xnai model ls                             # all on this disk, those of other programs too
  xnai model show NAME --context 8192 --slots 4    # what it is, and the memory that it takes
  xnai model check                          # headers, sizes and hashes
  xnai model bench NAME                     # tokens a second, and how many slots pay
  xnai model rm NAME                        # one that was fetched here
"""
_COLUMNS = ("NAME", "SIZE", "QUANT", "PARAMS", "CONTEXT", "FROM", "FITS")
_USUAL_CONTEXT = 4096


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "model",
        help="fetch, list, check, measure and remove models",
        description=(
            "The GGUFs of this machine. `get` is the one command of xnai that uses the network by itself: it "
            "asks the hub of [models] in xnai.toml, or --hub, and nobody else."
        ),
        epilog=_EXAMPLES,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    getting = actions.add_parser("get", help="fetch a model from a hub")
    getting.add_argument(
        "name", metavar="NAME", help="OWNER/REPOSITORY[:QUANTIZATION or FILE], or the address of a GGUF"
    )
    getting.add_argument("--hub", metavar="URL", help="another hub than that of xnai.toml")
    listing = actions.add_parser("ls", help="list the models on this disk, those of other programs too")
    _add_plan(listing)
    showing = actions.add_parser("show", help="what a model is, and the memory that it takes")
    showing.add_argument("name", metavar="MODEL", help="a name that `ls` shows, its end, or a path")
    _add_plan(showing)
    checking = actions.add_parser("check", help="look whether files are whole and unchanged")
    checking.add_argument("names", metavar="MODEL", nargs="*", help="default: all that `ls` shows")
    measuring = actions.add_parser("bench", help="measure how fast a model is here, and how many slots pay")
    measuring.add_argument("name", metavar="MODEL")
    measuring.add_argument(
        "--slots", type=int, default=0, metavar="N", help="sequences at once; default: as many as pay"
    )
    measuring.add_argument("--threads", type=int, default=0, metavar="N", help="default: the physical cores")
    removing = actions.add_parser("rm", help="delete a model that `get` fetched")
    removing.add_argument("name", metavar="MODEL")
    removing.add_argument("--yes", action="store_true", help="do not ask")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from xnai.agents.inference.memory import KV_TYPES

    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help=f"of each slot; default: {_USUAL_CONTEXT}, or all it has",
    )
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="sequences at once; default: 1")
    parser.add_argument(
        "--kv", choices=tuple(KV_TYPES), default="f16", help="type of the cache; default: f16"
    )


def run(arguments: argparse.Namespace) -> int:
    status: int = _ACTIONS[arguments.action](arguments)
    return status


def _get(arguments: argparse.Namespace) -> int:
    from xnai.deploy.models.naming import read_name

    wanted, store = read_name(arguments.name), _store()
    if (model := store.already(wanted)) is not None:
        return _got(model, arguments, fetched=False)
    from xnai.deploy.environment import variables
    from xnai.deploy.models.hub import Hub
    from xnai.deploy.models.progress import Progress
    from xnai.deploy.settings import read_settings

    settings = read_settings(_settings_file(), variables()).models
    with Hub(arguments.hub or settings.hub, settings.token) as hub:
        file = hub.find(wanted)
        if (model := store.same(file)) is not None:
            return _got(model, arguments, fetched=False)
        try:
            with Progress(file.name) as progress:
                model = store.get(hub, file, progress.advance)
        except KeyboardInterrupt:
            say("What has come is kept: the same command goes on from there.")
            raise
    return _got(model, arguments, fetched=True)


def _got(model: Found, arguments: argparse.Namespace, *, fetched: bool) -> int:
    from xnai.agents.inference.gguf_file import read_gguf

    info = read_gguf(model.path)
    if arguments.json:
        show({**_facts(model, info), "fetched": fetched}, as_json=True)
        return Status.DONE
    from xnai.deploy.units import size

    how = "fetched" if fetched else f"already here, from {model.source}:"
    show(f"{how} {model.name}, {size(info.file_bytes)}, {info.quantization}", as_json=False)
    show(str(model.path), as_json=False)
    say(f'Use it: [agents.inference.settings] model = "{model.path}"')
    usual = argparse.Namespace(context=None, slots=1, kv="f16")
    if refusal := _refused(info, usual):
        say(f"It does not fit here now: it {refusal}.")
    return Status.DONE


def _list(arguments: argparse.Namespace) -> int:
    from xnai.agents.inference.errors import ModelInvalid
    from xnai.deploy.models.store import described

    rows = [
        (model, info, None if isinstance(info, ModelInvalid) else _refused(info, arguments))
        for model, info in described(_store().all())
    ]
    if arguments.json:
        show([_row_facts(*row) for row in rows], as_json=True)
    elif not rows:
        show("No model is here. Fetch one with: xnai model get OWNER/REPOSITORY", as_json=False)
    else:
        from xnai.deploy.table import table

        table((_cells(*row) for row in rows), _COLUMNS, sys.stdout)
    return Status.DONE


def _cells(model: Found, info: GgufInfo | Exception, refusal: str | None) -> tuple[object, ...]:
    from xnai.deploy.table import Cell
    from xnai.deploy.units import size

    if isinstance(info, Exception):
        return (model.name, None, None, None, None, model.source, Cell("damaged: xnai model check", "bad"))
    fits = Cell(f"no: {refusal}", "warning") if refusal else Cell("yes", "good")
    return (
        model.name,
        size(info.file_bytes),
        info.quantization,
        _count(info.parameters),
        info.context or None,
        model.source,
        fits,
    )


def _row_facts(model: Found, info: GgufInfo | Exception, refusal: str | None) -> dict[str, object]:
    if isinstance(info, Exception):
        return {"name": model.name, "path": str(model.path), "from": model.source, "error": str(info)}
    return {**_facts(model, info), "fits": refusal is None, "refusal": refusal}


def _facts(model: Found, info: GgufInfo) -> dict[str, object]:
    return {
        "name": model.name,
        "path": str(model.path),
        "from": model.source,
        "sha256": model.sha256,
        "size": info.file_bytes,
        "quantization": info.quantization,
        "parameters": info.parameters,
        "architecture": info.architecture,
        "context": info.context,
    }


def _show(arguments: argparse.Namespace) -> int:
    from xnai.agents.inference.gguf_file import read_gguf

    model = _store().one(arguments.name)
    info = read_gguf(model.path)
    plan, refusal = _plan(info, arguments), _refused(info, arguments)
    if arguments.json:
        import msgspec

        told = {**msgspec.structs.asdict(plan), "total": plan.total, "refusal": refusal}
        show({**_facts(model, info), "memory": told}, as_json=True)
    else:
        show("\n".join((*_words(info), *_arithmetic(plan))), as_json=False)
        show(f"It does not fit here now: it {refusal}." if refusal else "It fits here now.", as_json=False)
    return Status.DONE


def _words(info: GgufInfo) -> list[str]:
    kv = "/".join(map(str, dict.fromkeys(info.kv_heads)))
    lines = [
        f"{info.architecture}, {_count(info.parameters)} parameters, {info.quantization}",
        f"{info.layers} layers of width {info.embedding}, {info.heads} heads, {kv or 0} for keys and values",
        f"trained for {info.context:,} tokens of a vocabulary of {info.vocabulary:,}",
    ]
    return lines + ([] if info.chat_template else ["it has no chat template: it takes prompts only"])


def _arithmetic(plan: MemoryPlan) -> list[str]:
    from xnai.deploy.units import size

    return [
        f"weights  {size(plan.weights)}",
        f"KV cache {size(plan.kv)} = {plan.sequences} x {plan.context:,} tokens x {size(plan.kv_per_token)}",
        f"buffers  {size(plan.compute)}",
        f"together {size(plan.total)}" + (f", an estimate: {plan.estimate}" if plan.estimate else ""),
    ]


def _check(arguments: argparse.Namespace) -> int:
    store = _store()
    models = [store.one(name) for name in arguments.names] or store.all()
    wrong = {model.path: store.check(model) for model in models}
    if arguments.json:
        told = [
            {"name": each.name, "path": str(each.path), "sha256": each.sha256, "wrong": wrong[each.path]}
            for each in models
        ]
        show(told, as_json=True)
    else:
        for each in models:
            seen = "its header and its hash are" if each.sha256 else "its header is"
            show(f"{each.name}: {wrong[each.path] or f'{seen} as they should be'}", as_json=False)
    return Status.FAILURE if any(wrong.values()) else Status.DONE


def _bench(arguments: argparse.Namespace) -> int:
    from xnai.agents.inference.errors import InferenceError
    from xnai.agents.inference.gguf_file import read_gguf
    from xnai.agents.inference.memory import available, fits, plan_memory
    from xnai.deploy.models.benching import CONTEXT, MOST_SLOTS, TRIED_SLOTS, measure
    from xnai.protocol.errors import InvalidArgument

    if not (0 <= arguments.slots <= MOST_SLOTS and arguments.threads >= 0):
        raise InvalidArgument(f"--slots is at most {MOST_SLOTS}, and no number is below 0.")
    model = _store().one(arguments.name)
    plan = plan_memory(read_gguf(model.path), CONTEXT, arguments.slots or TRIED_SLOTS)
    if refusal := fits(plan, available()):
        raise InferenceError(f"{model.name} {refusal}. Fewer --slots take less.")
    speed = measure(model.path, slots=arguments.slots, threads=arguments.threads)
    if arguments.json:
        show({"name": model.name, "path": str(model.path), "speed": speed}, as_json=True)
        return Status.DONE
    from xnai.deploy.table import table

    show(f"prompts: {speed.prefill:.0f} tokens/s", as_json=False)
    rows = (
        (each.sequences, round(each.tokens), round(each.tokens / each.sequences)) for each in speed.decode
    )
    table(rows, ("SLOTS", "TOKENS/S", "EACH"), sys.stdout)
    if not arguments.slots:
        show(f"{speed.slots} slots pay here", as_json=False)
    return Status.DONE


def _remove(arguments: argparse.Namespace) -> int:
    from xnai.deploy.units import size
    from xnai.protocol.errors import InvalidArgument

    store = _store()
    model = store.one(arguments.name)
    store.check_removable(model)
    taken = model.path.stat().st_size
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise InvalidArgument(f"This deletes {model.path}: say --yes.")
        say(f"Delete {model.path}, {size(taken)}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return Status.FAILURE
    store.remove(model)
    told = {"name": model.name, "path": str(model.path), "size": taken}
    show(told if arguments.json else f"deleted {model.name}, {size(taken)}", as_json=arguments.json)
    return Status.DONE


def _plan(info: GgufInfo, arguments: argparse.Namespace) -> MemoryPlan:
    from xnai.agents.inference.memory import plan_memory

    usual = min(_USUAL_CONTEXT, info.context or _USUAL_CONTEXT)
    context = usual if arguments.context is None else arguments.context
    return plan_memory(info, context, arguments.slots, kv_type=arguments.kv)


def _refused(info: GgufInfo, arguments: argparse.Namespace) -> str | None:
    """Why it does not fit here, None if it does."""
    from xnai.agents.inference.memory import available, fits, usual_reserve

    free = available()
    return fits(_plan(info, arguments), free, reserve=usual_reserve(free))


def _count(parameters: int) -> str:
    """As models are called by it: 7.2B, 125M."""
    unit, size = next((pair for pair in (("B", 1e9), ("M", 1e6)) if parameters >= pair[1]), ("K", 1e3))
    return f"{parameters / size:.3g}{unit}"


def _settings_file() -> Path | None:
    from xnai.deploy.folders import find_settings

    return find_settings(Path.cwd())


def _store() -> Store:
    from xnai.agents.inference.minilm import default_cache
    from xnai.deploy.models.store import Store

    file = _settings_file()
    return Store(default_cache(), file.parent if file else Path.cwd())


_ACTIONS = {"get": _get, "ls": _list, "show": _show, "check": _check, "bench": _bench, "rm": _remove}
