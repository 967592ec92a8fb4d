"""Commands around a run: train, resume, status, stop; and doctor, dataset."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import Problem, RunDirectoryError, SettingsError
from trainer.fields import Leaf, flatten, from_text, leaves, nest
from trainer.presets import PRESETS
from trainer.run import Run, State
from trainer.settings import Settings
from trainer.settings_file import load_tree, parse


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
    doctor.add_argument("--base", metavar="REF", help="say what this base is, too")
    doctor.set_defaults(run=_doctor)


def add_settings(
    parser: argparse.ArgumentParser,
    wanted: Iterable[Leaf],
    offered: Callable[[Leaf], bool] = lambda leaf: True,
) -> None:
    """A flag for every leaf of the settings tree, grouped by section. Those not `offered` are
    understood, so that it can be said why not, but `--help` is silent about them."""
    groups: dict[str, Any] = {}
    names = []
    for leaf in wanted:
        if leaf.section not in groups:
            groups[leaf.section] = parser.add_argument_group(leaf.section, leaf.section_help)
        options: dict[str, Any] = {"dest": leaf.name, "default": argparse.SUPPRESS}
        options["help"] = help_of(leaf).replace("%", "%%") if offered(leaf) else argparse.SUPPRESS
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
    add_settings(resume, leaves(Settings), offered=lambda leaf: why_fixed(leaf.name) is None)
    resume.set_defaults(run=_resume)


_FIXED: dict[str, str] = {
    "base": "what has been learned fits its base only",
    "adapter": "the weights in its checkpoints have that form",
    "optimizer": "the optimizer's memory in its checkpoints depends on it",
    "dataset": "which images the steps to come will see depends on it",
    "loss": "what the steps so far have learned was measured by it",
    "training": "what the steps so far have done depends on it",
    "validation": "the measurements so far could not be compared with those to come",
}


# What leaves the steps that are done as valid as they were.
_OPEN = (
    "base.precision",
    "base.device",
    "dataset.folder",  # it may have been moved; what has changed in it is told
    "optimizer.learning_rate",
    "optimizer.text_encoder_learning_rate",
    "optimizer.schedule",
    "optimizer.cycles",
    "optimizer.power",
    "optimizer.warmup",
    "optimizer.max_gradient_norm",
    "training.steps",
    "training.checkpoint_every_steps",
    "training.keep_checkpoints",
    "training.gradient_checkpointing",
    "validation.every_steps",
    "validation.patience",
)


def why_fixed(name: str) -> str | None:
    """Why a setting cannot be changed when a run is resumed; None if it can be."""
    if name in _OPEN or name.startswith(("samples.", "output.")):
        return None
    return _FIXED.get(name.partition(".")[0], "the run has begun with it")


def _train(arguments: argparse.Namespace) -> None:
    from trainer.adapter.header import read_header
    from trainer.console import Console
    from trainer.training.attempt import attempt, check
    from trainer.training.ranks import here, shareable

    values: dict[str, Any] = {}
    if arguments.preset:
        values |= PRESETS[arguments.preset].values
    if arguments.settings:
        values |= flatten(load_tree(arguments.settings))
    if arguments.from_adapter:
        values["adapter.start_from"] = arguments.from_adapter
    wanted = with_absolute_paths(parse(nest(values | given_settings(arguments))))
    scanned = check(wanted)
    if wanted.adapter.start_from is not None:
        read_header(wanted.adapter.start_from)
    run, ranks = Run(arguments.directory), here()
    if not ranks.first:  # the first process makes the run and speaks for all
        attempt(run)
        return
    run.create(shareable(wanted, ranks.size))
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
    from trainer.training.ranks import here

    run = Run(arguments.directory)
    if not here().first:
        attempt(run)
        return
    changes = given_settings(arguments)
    if changes:
        change_settings(run, changes)
    with Console(run) as console:
        attempt(run, console.hear)


def change_settings(run: Run, changes: dict[str, Any]) -> None:
    """Changes what may change of a run that is not being trained.

    Raises:
        SettingsError: if a value is wrong, cannot be changed any more, or fewer steps are asked
            for than are done.
        RunDirectoryError: if a trainer has the run.
    """
    settings = run.settings()
    before = flatten(settings.model_dump())
    after = with_absolute_paths(parse(nest(before | changes)))
    now = flatten(after.model_dump())
    fixed = [
        Problem(name, f"is {before[name]} in this run and stays so, since {reason}")
        for name in changes
        if now[name] != before[name] and (reason := why_fixed(name))
    ]
    if fixed:
        raise SettingsError(fixed)
    with run.lock():
        status = run.status()
        done = max(status.step, run.newest_checkpoint())
        if after.training.steps < done:
            problem = f"is {after.training.steps}, but {done} steps are done"
            raise SettingsError([Problem("training.steps", problem)])
        if status.state is State.FINISHED and after.training.steps == done:
            raise RunDirectoryError(f"{run.path} is finished.", "Give it more --training.steps.")
        _with_text_encoder_stopped(settings, after, done).save(run.settings_file)


def _with_text_encoder_stopped(before: Settings, after: Settings, done: int) -> Settings:
    """The settings after steps have been added, under which text encoders that had stopped after a
    share of the steps do not learn again."""
    stopped = before.adapter.text_encoder_steps(before.training.steps)
    if not stopped <= done < after.adapter.text_encoder_steps(after.training.steps):
        return after
    if stopped == before.training.steps:  # they never stopped: the run was over
        return after
    adapter = after.adapter.model_copy(update={"text_encoder_stop": float(max(stopped, 1))})
    return after.model_copy(update={"adapter": adapter})


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
    check.add_argument("--resolution", default=512, help="dataset.resolution of the training (512)")
    check.add_argument("--trigger", help="the trigger word that captions should have")
    check.add_argument("--max_tokens", default=75, help="dataset.max_tokens of the training (75)")
    check.add_argument("--mask_folder", metavar="DIR", help="folder of masks named as their images")
    check.add_argument("--class_folder", metavar="DIR", help="folder of regularisation images, "
                       "which are left out")  # fmt: skip
    check.add_argument("--base", default=None, help="the base, for how it splits captions")
    check.add_argument("--fix", action="store_true", help="apply the fixes that are safe")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check_dataset)


def _check_dataset(arguments: argparse.Namespace) -> None:
    from trainer.data import tokens
    from trainer.data.report import Report, apply_fixes, check

    names = ("resolution", "trigger", "max_tokens", "mask_folder", "class_folder")
    wanted = parse(nest({f"dataset.{name}": getattr(arguments, name) for name in names})).dataset
    tokenizer = tokens.for_base(arguments.base) if arguments.base else tokens.clip()

    def look() -> Report:
        return check(arguments.directory, wanted, tokenizer)

    found = look()
    if arguments.fix:
        for line in apply_fixes(found):
            print(line, file=sys.stderr)
        found = look()
    print(found.to_json() if arguments.json else found.to_words())


def _doctor(arguments: argparse.Namespace) -> int:
    from trainer.doctor import examine
    from trainer.model.describe import in_words

    if arguments.base is not None:
        print(f"Base {arguments.base}: {in_words(arguments.base)}")
    report, healthy = examine()
    print(report)
    return 0 if healthy else 1
