"""A trainer that trains nothing: it keeps to the run directory's contract, fast and without torch.

    python fake_trainer.py resume DIR

The run's output name says how it goes: `fails` ends in an error, `crashes` dies without a word,
`mute` dies before its first event, `lasts` goes on until it is asked to stop, `waits` stays
half-way until it is asked to save.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

from tests.app.adapters import write_adapter
from tests.app.fakes import until
from trainer import events
from trainer.run import Run

PACE_SECONDS = float(os.environ.get("FAKE_TRAINER_PACE", "0.005"))
EVERY_STEPS = 10


def main(command: str, folder: str) -> int:
    run = Run(Path(folder))
    settings = run.settings()
    assert command == "resume"
    print(f"training {settings.output.name}", flush=True)
    if settings.output.name == "mute":
        print("ModuleNotFoundError: No module named 'torch'", file=sys.stderr)
        return 1
    with run.lock():
        return _attempt(run, settings.output.name, settings.training.steps)


def _attempt(run: Run, name: str, steps: int) -> int:
    before = run.status()
    files = sorted(run.checkpoints.glob("step-*.safetensors"))
    first = int(files[-1].stem.removeprefix("step-")) if files else 0
    run.append(events.Started(attempt=before.attempt + 1, pid=os.getpid(), from_step=first))
    run.append(events.Preparing(stage="Encoding the images", done=1, total=2))
    run.append(
        events.Ready(device="cpu", precision="fp32", steps=steps, images=12, held_out=2,
                     trained_parameters=1000, base_parameters=100000, file_bytes=2000)
    )  # fmt: skip
    if first == 0:
        _validate(run, 0)
        _sample(run, 0)
    step = first
    while step < steps or name == "lasts":
        step += 1
        time.sleep(PACE_SECONDS)
        loss = 0.1 + 0.4 * math.exp(-step / 40) + 0.03 * math.sin(step * 1.7)
        run.append(
            events.Step(step=step, loss=loss, learning_rate=1e-4,
                        steps_per_second=1 / PACE_SECONDS,
                        eta_seconds=(steps - step) * PACE_SECONDS)
        )  # fmt: skip
        if step == first + 5:
            run.append(
                events.Forecast(seconds_per_step=PACE_SECONDS, total_seconds=steps * PACE_SECONDS,
                                peak_memory=2 * 10**9, memory=16 * 10**9, fits=True)
            )  # fmt: skip
        if name == "fails" and step == 15:
            run.append(
                events.Failed(step=step, message="The GPU has no memory left at batch size 4.",
                              advice="Set training.batch_size to 2 or less.")
            )  # fmt: skip
            print("torch.OutOfMemoryError: CUDA out of memory", flush=True)
            return 1
        if name == "crashes" and step == 15:
            os._exit(9)
        if name == "waits" and step == steps // 2:
            until(lambda: run.take("save") or "stop" in run.requested(), 120)
        if run.take("stop"):
            run.append(events.Stopping(step=step))
            _checkpoint(run, step)
            run.append(events.Stopped(step=step))
            return 0
        if step % EVERY_STEPS == 0 or run.take("sample"):
            _sample(run, step)
        # A run that waits to be asked to save leaves the request for that moment.
        may_save = name != "waits" or step >= steps // 2
        if step % EVERY_STEPS == 0 or (may_save and run.take("save")):
            _checkpoint(run, step)
            _validate(run, step)
            if step == EVERY_STEPS:
                said = "Learning (loss on training images +25.0% better)."
                run.append(events.Verdict(step=step, kind="learning", message=said))
        if name == "lasts" and step >= steps - 1:
            step = steps - 2
            time.sleep(0.1)
    shutil.copyfile(_checkpoint(run, steps), run.adapter_file)
    run.append(
        events.Recommended(step=EVERY_STEPS, file=f"checkpoints/step-{EVERY_STEPS:06}.safetensors",
                           why=f"Step {EVERY_STEPS} has the lowest loss on held-out images.")
    )  # fmt: skip
    run.append(events.Finished(step=steps, adapter=run.adapter_file.name))
    return 0


def _validate(run: Run, step: int) -> None:
    run.append(
        events.Validated(step=step, training=0.5 / (1 + step / 30), base_training=0.5,
                         held_out=0.52 / (1 + step / 60), base_held_out=0.52)
    )  # fmt: skip


def _sample(run: Run, step: int) -> None:
    prompts = run.settings().samples.prompts
    folder = run.samples / f"step-{step:06}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(prompts)):
        colour = (40 + step * 3 % 200, 120, 60 + number * 90 % 190)
        Image.new("RGB", (64, 64), colour).save(folder / f"{number:02}.png")
    files = tuple(f"samples/{folder.name}/{number:02}.png" for number in range(len(prompts)))
    run.append(events.Sampled(step=step, files=files, prompts=prompts))


def _checkpoint(run: Run, step: int) -> Path:
    run.checkpoints.mkdir(exist_ok=True)
    file = run.checkpoints / f"step-{step:06}.safetensors"
    write_adapter(file, run.settings().output.name)
    run.append(events.CheckpointSaved(step=step, file=f"checkpoints/{file.name}"))
    return file


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
