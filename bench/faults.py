"""Faults injected for real into small runs: what happened beside what should.

    python -m bench.faults [--only WORD]

Each row makes a run on a tiny base in a process of its own, does something bad to it, and says what
came of it. Rows that mount a small disk need root on Linux and say so where they cannot be done.
Exit code 1 if any outcome is not the expected one.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from tests import tiny
from tests.trainer.training.runs import new_run, same, tensors
from trainer import events, states
from trainer.errors import AtelierError
from trainer.run import Run, State
from trainer.training import reporter
from trainer.training.attempt import attempt
from trainer.training.objective import Objective

Listener = Callable[[events.Event], None]
_FORK = multiprocessing.get_context("fork")
_PATIENCE_SECONDS = 120.0


class Skipped(Exception):
    """The row cannot be done here."""


class Bench:
    """A folder with a tiny base, a few pictures, and the run that nothing happened to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = tiny.stable_diffusion(folder / "base", "v_prediction", small=True)
        self.photos = pictures(folder / "photos", 64)
        self.whole = self.run("whole")
        attempt(self.whole)

    def run(self, name: str, where: Path | None = None, **changes: Any) -> Run:
        """A new run of six steps."""
        base = changes.pop("base", self.base)
        dataset = changes.pop("dataset", self.photos)
        return new_run((where or self.folder) / name, base, dataset, **changes)

    def ending(self, run: Run) -> str:
        """The state of a run, and whether its adapter equals the undisturbed one's bit for bit."""
        state = str(run.status().state)
        if state != State.FINISHED:
            return state
        return f"{state}, {'same bits' if same(self.whole, run) else 'OTHER BITS'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has this word")
    only = parser.parse_args().only
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ATELIER_CACHE"] = str(Path(folder) / "cache")
        reporter._SECONDS_BETWEEN_TRIES = 0.05
        bench = Bench(Path(folder))
        for row, expected in ROWS:
            name = row.__name__.replace("_", " ").strip()
            if only not in name:
                continue
            try:
                outcome = row(bench)
            except Skipped as reason:
                outcome = f"skipped: {reason}"
            bad = outcome != expected and not outcome.startswith("skipped")
            wrong += bad
            print(f"{'WRONG' if bad else 'ok':5}  {name}\n       expected  {expected}", flush=True)
            print(f"       happened  {outcome}", flush=True)
    print(f"\n{wrong} wrong" if wrong else "\nall as expected")
    return int(wrong > 0)


def pictures(folder: Path, side: int) -> Path:
    """Eight captioned pictures."""
    folder.mkdir()
    for index in range(8):
        shade = (20 * index, 255 - 30 * index, 128)
        Image.new("RGB", (side, side), shade).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture number {index}")
    return folder


@contextlib.contextmanager
def trainer(run: Run, listen: Listener = lambda event: None) -> Iterator[Any]:
    """A process that trains the run; it is waited for."""

    def train() -> None:
        with Path(os.devnull).open("w") as silence, contextlib.redirect_stderr(silence):
            try:
                attempt(run, listen)
            except AtelierError as error:
                sys.exit(error.exit_code)

    process = _FORK.Process(target=train)
    process.start()
    try:
        yield process
        process.join(_PATIENCE_SECONDS)
    finally:
        process.kill()
        process.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.005)


def said(run: Run, kind: type[events.Event]) -> list[Any]:
    return [event for event in run.read_events()[0] if isinstance(event, kind)]


def notices(run: Run) -> str:
    return " ".join(event.message for event in said(run, events.Notice))


@contextlib.contextmanager
def disk(bench: Bench, name: str) -> Iterator[Path]:
    """A small disk of its own, 3 MB."""
    place = bench.folder / name
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        raise Skipped("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def after(kind: type[events.Event], does: Callable[[], object]) -> Listener:
    """A listener in the trainer's own process that does something once, when it says something."""
    left = [does]

    def hear(event: events.Event) -> None:
        if isinstance(event, kind) and left:
            left.pop()()

    return hear


def killed_while_stepping(bench: Bench) -> str:
    run = bench.run("killed")
    with trainer(run) as process:
        until(lambda: said(run, events.CheckpointSaved))
        process.kill()
    before = run.status().state
    attempt(run)
    orphans = len(list(run.path.rglob("*.partial")))
    return f"{before}, then {bench.ending(run)}, {orphans} orphans"


def paused_by_SIGSTOP(bench: Bench) -> str:  # noqa: N802
    run = bench.run("frozen")
    with trainer(run) as process:
        until(lambda: said(run, events.Ready))
        os.kill(process.pid, signal.SIGSTOP)
        meanwhile = run.status().state
        os.kill(process.pid, signal.SIGCONT)
    return f"{meanwhile}, then {bench.ending(run)}"


def disk_full_at_a_checkpoint(bench: Bench) -> str:
    with disk(bench, "full") as place:
        run = bench.run("run", place)
        with trainer(run, after(events.CheckpointSaved, lambda: fill(place))):
            until(lambda: run.status().state is State.PAUSED)
            whole = states.newest(run.checkpoints) is not None
            (place / "filler").unlink()
        return f"paused, checkpoint {'intact' if whole else 'LOST'}, then {bench.ending(run)}"


def stopped_on_a_full_disk(bench: Bench) -> str:
    with disk(bench, "stop") as place:
        run = bench.run("run", place)
        with trainer(run, after(events.CheckpointSaved, lambda: fill(place))):
            until(lambda: run.status().state is State.PAUSED)
            run.request("stop")
        before = run.status()
        (place / "filler").unlink()
        attempt(run)
        return f"{before.state} at step {before.step}, then {bench.ending(run)}"


def checkpoints_become_read_only(bench: Bench) -> str:
    run = bench.run("unwritable")
    place = str(run.checkpoints)

    def forbid() -> None:
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)

    with disk(bench, "allowed"):  # or else this row is skipped
        with trainer(run, after(events.CheckpointSaved, forbid)) as process:
            process.join(_PATIENCE_SECONDS)
            code = process.exitcode
        subprocess.run(["umount", "-l", place], check=True)
    status = run.status()
    told = "Read-only" in status.message and place in status.message
    attempt(run)
    words = "said" if told else status.message
    return f"exit code {code}, {status.state}, {words}, then {bench.ending(run)}"


def memory_runs_out(bench: Bench) -> str:
    large: dict[str, Any] = {
        "dataset": pictures(bench.folder / "large", 512), "dataset__resolution": 512,
        "training__batch_size": 16, "training__gradient_accumulation": 1, "training__steps": 1,
        "samples__prompts": (), "validation__held_out": 0,
    }  # fmt: skip
    free, tight = bench.run("free", **large), bench.run("tight", **large)
    ready, peak = _FORK.Value("q", 0), _FORK.Value("q", 0)

    def measure(event: events.Event) -> None:
        if isinstance(event, events.Ready):
            ready.value = _address_space_used()
        peak.value = _address_space_used()

    with limited_to(1 << 40), trainer(free, measure):
        pass
    with limited_to(ready.value + int(0.6 * (peak.value - ready.value))), trainer(tight):
        pass
    ending, parts = tight.status().state, "parts" in notices(tight)
    if ending is not State.FINISHED:
        return f"{ending}: {tight.status().message} {notices(tight)}"
    one, other = tensors(free), tensors(tight)
    close = all(torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-4) for key in one)
    return f"{ending}, {'in parts' if parts else 'AT ONCE'}, {'same' if close else 'OTHER'} result"


@contextlib.contextmanager
def limited_to(most: int) -> Iterator[None]:
    """Processes begun within have this many bytes of address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space_used() -> int:
    """The most bytes of address space that this process has had."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if "VmPeak" in line)


def memory_never_suffices(bench: Bench) -> str:
    run = bench.run("never")

    def losses(self: Objective, *rest: Any) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with replaced(Objective, "losses", losses), trainer(run):
        pass
    status = run.status()
    return f"{status.state}, {'with advice' if 'resolution' in status.advice else 'NO ADVICE'}"


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def one_batch_poisoned(bench: Bench) -> str:
    return _poisoned(bench, "poisoned", {3})


def every_batch_poisoned(bench: Bench) -> str:
    return _poisoned(bench, "hopeless", set(range(4, 9999)), training__steps=20)


def _poisoned(bench: Bench, name: str, bad: set[int], **changes: Any) -> str:
    run, real, passes = bench.run(name, **changes), Objective.losses, iter(range(9999))

    def losses(self: Objective, *rest: Any) -> torch.Tensor:
        return real(self, *rest) * (float("nan") if next(passes) in bad else 1.0)

    with replaced(Objective, "losses", losses), trainer(run):
        pass
    files = list(run.path.rglob("*.safetensors"))
    finite = all(
        bool(torch.isfinite(t).all())
        for file in files
        for t in safetensors.torch.load_file(file).values()
    )
    named = ".png" in notices(run)
    return (
        f"{run.status().state}, {'images named' if named else 'NOT NAMED'}, "
        f"{'every file finite' if finite and files else 'A FILE IS NOT FINITE'}"
    )


def newest_checkpoint_damaged(bench: Bench) -> str:
    run = bench.run("damaged")
    with trainer(run) as process:
        until(lambda: len(said(run, events.CheckpointSaved)) > 1)
        process.kill()
    place = states.newest(run.checkpoints)
    assert place is not None
    file = place / states.TENSORS
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    attempt(run)
    earlier = said(run, events.Started)[-1].from_step < states.step_of(place)
    return f"went on from {'the one before' if earlier else 'IT'}, {bench.ending(run)}"


def image_removed_and_image_torn(bench: Bench) -> str:
    photos = Path(shutil.copytree(bench.photos, bench.folder / "fewer"))
    run = bench.run("removed", dataset=photos, dataset__cache="memory")

    def spoil() -> None:
        (photos / "1.png").unlink()
        (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:60])

    with trainer(run, after(events.Preparing, spoil)):
        pass
    both = all(f"{name}.png is left out" in notices(run) for name in "12")
    return f"{run.status().state}, {'both named' if both else 'NOT NAMED'}"


def second_trainer(bench: Bench) -> str:
    run = bench.run("taken", training__steps=200)
    with trainer(run) as process:
        until(lambda: said(run, events.Ready))
        command = [sys.executable, "-m", "trainer", "resume", str(run.path)]
        second = subprocess.run(command, capture_output=True, text=True)
        run.request("stop")
    told = f"process {process.pid}" in second.stderr and "Traceback" not in second.stderr
    return f"exit code {second.returncode}, {'holder named' if told else 'NOT NAMED'}"


def stop_while_loading(bench: Bench) -> str:
    return _stopped(bench, "loading", events.Preparing)


def stop_while_saving(bench: Bench) -> str:
    return _stopped(bench, "saving", events.CheckpointSaved)


def stop_while_sampling(bench: Bench) -> str:
    return _stopped(bench, "sampling", events.Validated)  # samples come after a validation


def _stopped(bench: Bench, name: str, when: type[events.Event]) -> str:
    """Asked twice to stop; then resumed."""
    run = bench.run(name)

    def ask() -> None:
        run.request("stop")
        run.request("stop")

    with trainer(run, after(when, ask)):
        pass
    before, endings = run.status().state, len(said(run, events.Stopped))
    attempt(run)
    return f"{before} once, then {bench.ending(run)}" if endings == 1 else f"{endings} endings"


def terminated(bench: Bench) -> str:
    run = bench.run("signals", training__steps=5000)
    with trainer(run) as process:
        until(lambda: said(run, events.Step))
        os.kill(process.pid, signal.SIGTERM)
        until(lambda: run.status().state in (State.STOPPING, State.STOPPED))
    return str(run.status().state)


SAME = "finished, same bits"
ROWS: list[tuple[Callable[[Bench], str], str]] = [
    # First: what earlier rows leave in the heap that rows are forked from would count as room.
    (memory_runs_out, "finished, in parts, same result"),
    (killed_while_stepping, f"interrupted, then {SAME}, 0 orphans"),
    (paused_by_SIGSTOP, f"running, then {SAME}"),
    (disk_full_at_a_checkpoint, f"paused, checkpoint intact, then {SAME}"),
    (stopped_on_a_full_disk, f"stopped at step 2, then {SAME}"),
    (checkpoints_become_read_only, f"exit code 1, failed, said, then {SAME}"),
    (memory_never_suffices, "failed, with advice"),
    (one_batch_poisoned, "finished, images named, every file finite"),
    (every_batch_poisoned, "failed, images named, every file finite"),
    (newest_checkpoint_damaged, f"went on from the one before, {SAME}"),
    (image_removed_and_image_torn, "finished, both named"),
    (second_trainer, "exit code 2, holder named"),
    (stop_while_loading, f"stopped once, then {SAME}"),
    (stop_while_saving, f"stopped once, then {SAME}"),
    (stop_while_sampling, f"stopped once, then {SAME}"),
    (terminated, "stopped"),
]


if __name__ == "__main__":
    sys.exit(main())
