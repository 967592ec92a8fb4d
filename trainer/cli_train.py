"""Commands around a run: train, resume, status, stop; and doctor, dataset."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import Problem, RunDirectoryError, SettingsError
from trainer.fields import Leaf, flatten, from_text, leaves, nest
from trainer.presets import PRESETS
from trainer.run import Run, State
from trainer.settings import Settings, load_tree, parse


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands to the command line."""
    _register_train(commands)
    _register_resume(commands)
    for name, function, help in (
        ("status", _status, "what a run is doing"),
        ("stop", _stop, "ask a run to stop after the current step and save"),
    ):
        command = commands.add_parser(name, help=help, allow_abbrev=False)
        command.add_argument("directory", metavar="DIR", type=Path, help="a run directory")
        if name == "status":
            command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=function)
    _register_dataset(commands)
    doctor = commands.add_parser(
        "doctor", help="device, memory, disk, versions; what is missing", allow_abbrev=False
    )
    doctor.set_defaults(run=_doctor)


def add_settings(parser: argparse.ArgumentParser, wanted: Iterable[Leaf]) -> None:
    """A flag for every leaf of the settings tree, grouped by section."""
    groups: dict[str, Any] = {}
    names = []
    for leaf in wanted:
        if leaf.section not in groups:
            groups[leaf.section] = parser.add_argument_group(leaf.section, leaf.section_help)
        options: dict[str, Any] = {"dest": leaf.name, "default": argparse.SUPPRESS}
        options["help"] = help_of(leaf).replace("%", "%%")
        options["metavar"] = "|".join(leaf.choices) or leaf.kind.upper()
        if leaf.kind == "texts":
            options["nargs"] = "*"
        elif leaf.kind == "switch":
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        groups[leaf.section].add_argument(f"--{leaf.name}", **options)
        names.append(leaf.name)
    parser.set_defaults(flags=tuple(names))


def help_of(leaf: Leaf) -> str:
    """A leaf's help with its range and default."""
    default = "none" if leaf.default is None else leaf.default
    if isinstance(default, bool):
        default = str(default).lower()
    elif default in ((), ""):
        default = "empty"
    parts = [f"default {default}"]
    if leaf.range:
        parts.insert(0, leaf.range)
    return f"{leaf.help} ({'; '.join(parts)})"


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings given as flags, by dotted name."""
    by_name = {leaf.name: leaf for leaf in leaves(Settings)}
    return {
        name: value if by_name[name].kind == "texts" else from_text(by_name[name], value)
        for name, value in vars(arguments).items()
        if name in by_name
    }


def _register_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train an adapter", allow_abbrev=False)
    train.add_argument("--run", dest="directory", metavar="DIR", type=Path, required=True,
                       help="run directory to make")  # fmt: skip
    train.add_argument("--settings", metavar="FILE", type=Path, help="JSON file of settings")
    train.add_argument("--preset", choices=PRESETS, metavar="NAME",
                       help=f"start from good settings: {', '.join(PRESETS)}")  # fmt: skip
    train.add_argument("--from_adapter", metavar="FILE", type=Path,
                       help="go on from this adapter; short for --adapter.start_from")  # fmt: skip
    add_settings(train, leaves(Settings))
    train.set_defaults(run=_train)


def _register_resume(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    resume = commands.add_parser("resume", help="go on with a run", allow_abbrev=False)
    resume.add_argument("directory", metavar="DIR", type=Path, help="a run directory")
    add_settings(resume, (leaf for leaf in leaves(Settings) if may_change(leaf.name)))
    resume.set_defaults(run=_resume)


def may_change(name: str) -> bool:
    """Whether a setting may be changed when a run is resumed: what leaves the done steps valid."""
    return name.startswith(("samples.", "output.", "optimizer.learning", "optimizer.text")) or (
        name in ("training.steps", "training.checkpoint_every_steps", "training.keep_checkpoints")
        or name in ("optimizer.schedule", "optimizer.max_gradient_norm", "validation.every_steps")
    )


def _train(arguments: argparse.Namespace) -> None:
    from trainer.console import Console
    from trainer.training.attempt import attempt, check

    values: dict[str, Any] = {}
    if arguments.preset:
        values |= PRESETS[arguments.preset].values
    if arguments.settings:
        values |= flatten(load_tree(arguments.settings))
    if arguments.from_adapter:
        values["adapter.start_from"] = arguments.from_adapter
    wanted = parse(nest(values | given_settings(arguments)))
    scanned = check(wanted)
    run = Run(arguments.directory)
    run.create(with_absolute_paths(wanted))
    with Console(run) as console:
        attempt(run, console.hear, scanned)


def with_absolute_paths(wanted: Settings) -> Settings:
    """The settings with paths that mean the same from any folder."""
    tree = flatten(wanted.model_dump())
    paths = {leaf.name for leaf in leaves(Settings) if leaf.kind == "path"}
    if Path(wanted.base.model).exists():
        paths.add("base.model")
    absolute = {name: Path(tree[name]).absolute() for name in paths if tree[name] is not None}
    if "base.model" in absolute:
        absolute["base.model"] = str(absolute["base.model"])  # type: ignore[assignment]
    return parse(nest(tree | absolute))


def _resume(arguments: argparse.Namespace) -> None:
    from trainer.console import Console
    from trainer.training.attempt import attempt

    run = Run(arguments.directory)
    changes = given_settings(arguments)
    if changes:
        change_settings(run, changes)
    with Console(run) as console:
        attempt(run, console.hear)


def change_settings(run: Run, changes: dict[str, Any]) -> None:
    """Changes what may change of a run that is not being trained.

    Raises:
        SettingsError: if a value is wrong or fewer steps are asked for than are done.
        RunDirectoryError: if a trainer has the run.
    """
    after = parse(nest(flatten(run.settings().model_dump()) | changes))
    with run.lock():
        status = run.status()
        done = max(status.step, run.newest_checkpoint())
        if after.training.steps < done:
            problem = f"is {after.training.steps}, but {done} steps are done"
            raise SettingsError([Problem("training.steps", problem)])
        if status.state is State.FINISHED and after.training.steps == done:
            raise RunDirectoryError(f"{run.path} is finished.", "Give it more --training.steps.")
        after.save(run.settings_file)


def _status(arguments: argparse.Namespace) -> None:
    run = Run(arguments.directory)
    run.settings()  # says so if this is no run
    status = run.status()
    if arguments.json:
        print(json.dumps(asdict(status)))
        return
    parts = [str(status.state)]
    if status.steps:
        parts.append(f"step {status.step} of {status.steps}")
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.state.alive and status.eta_seconds is not None:
        parts.append(f"{status.eta_seconds:.0f} s left")
    print(", ".join(parts))
    for line in (status.message, status.advice):
        if line:
            print(line)


def _stop(arguments: argparse.Namespace) -> None:
    run = Run(arguments.directory)
    run.settings()
    state = run.status().state
    if not state.alive:
        raise RunDirectoryError(f"{run.path} is not being trained: it is {state}.")
    run.request("stop")
    print("It will stop after the current step and save.")


def _register_dataset(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dataset = commands.add_parser("dataset", help="look after a dataset", allow_abbrev=False)
    verbs = dataset.add_subparsers(metavar="COMMAND", required=True)
    check = verbs.add_parser("check", help="report on images and captions", allow_abbrev=False)
    check.add_argument("directory", metavar="DIR", type=Path, help="folder of images and captions")
    check.add_argument("--resolution", type=int, default=512, help="training resolution (512)")
    check.add_argument("--trigger", help="the trigger word the captions should have")
    check.add_argument("--base", default=None, help="the base, for how it splits captions")
    check.add_argument("--fix", action="store_true", help="apply the fixes that are safe")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check_dataset)


def _check_dataset(arguments: argparse.Namespace) -> None:
    from trainer.data import tokens
    from trainer.data.report import Report, apply_fixes, check

    tokenizer = tokens.for_base(arguments.base) if arguments.base else tokens.clip()

    def look() -> Report:
        return check(arguments.directory, arguments.resolution, arguments.trigger, tokenizer)

    found = look()
    if arguments.fix:
        for line in apply_fixes(found):
            print(line, file=sys.stderr)
        found = look()
    print(found.to_json() if arguments.json else found.to_words())


def _doctor(arguments: argparse.Namespace) -> int:
    from trainer.doctor import examine

    report, healthy = examine()
    print(report)
    return 0 if healthy else 1
