"""What the embedded base learns: a held-back character and style, each alone, and both together.

    python -m bench.embedded_adapters --work DIR [--images 25] [--weights FOLDER] [--only style]

Trains an adapter for each with its starter dataset and preset, beside the regularisation images of
`samples/ordinary`, as the app does with its samples, and asks: how far does the loss fall on
drawings that were held out? Does a reader that knows the concept find it, the more the higher the
strength, and not at strength 0? What happens to ordinary prompts and their loss? Do both adapters
at 0.7 show both concepts? Sheets are kept in DIR.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.embedded import (
    NAMES,
    READER_SEED,
    Base,
    Pictures,
    Reader,
    drawings,
    read,
    sheet,
    to_tensor,
    train_reader,
    worn,
)
from trainer.adapter.attach import attach
from trainer.fields import nest
from trainer.model.embedded import WEIGHTS
from trainer.model.embedded.backgrounds import place_phrase
from trainer.model.embedded.canvas import VEX
from trainer.model.embedded.creatures import Creature
from trainer.model.embedded.drawings import PIXELS, labels
from trainer.model.embedded.starter import DATASETS, ORDINARY
from trainer.model.embedded.world import PIP, Scene, caption, random_place, random_scene
from trainer.model.stable_diffusion import BaseModel
from trainer.presets import PRESETS
from trainer.preview.request import Drawing, Strength
from trainer.preview.session import Session, load_for
from trainer.run import Run
from trainer.settings import Base as BaseSettings
from trainer.settings_file import parse
from trainer.training import loss as losses
from trainer.training.attempt import attempt

SAMPLES = Path("samples")
CONCEPTS = ("character", "style")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT, HELD_OUT_SEED = 16, 99
TIMESTEPS = 8


class ConceptReader(nn.Module):
    """Whether a picture shows Pip, and whether it is in the vex style: two answers of yes or no."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Reader(width=24).trunk
        self.head = nn.Linear(384, len(CONCEPTS))

    def forward(self, pictures: Tensor) -> Tensor:
        """A score for each concept, above 0 for yes; pictures [N, 3, 64, 64] in -1..1."""
        scores: Tensor = self.head(self.trunk(pictures))
        return scores


def concept_scenes(count: int, seed: int) -> list[Scene]:
    """Ordinary scenes, Pip in all manners, anything in the vex style, and creatures that have
    Pip's colours but other parts."""
    rng, scenes = Random(seed), []
    for index in range(count):
        scene = random_scene(rng, creatures=0.5)
        if index % 4 == 1:
            scene = replace(scene, subject=PIP, second=None)
        if index % 4 == 2:
            scene = replace(scene, manner=VEX.name)
        if index % 4 == 3 and isinstance(scene.subject, Creature):
            alike = replace(scene.subject, colour=PIP.colour, accent=PIP.accent, belly=PIP.belly)
            scene = replace(scene, subject=alike)
        if index % 12 == 1:
            scene = replace(scene, manner=VEX.name)
        scenes.append(scene)
    return scenes


def concepts(scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Which concepts are in scenes, [N, 2]."""
    return np.array([[scene.subject == PIP, scene.manner == VEX.name] for scene in scenes])


def train_concept_reader(work: Path, seed: int, count: int, epochs: int = 6) -> ConceptReader:
    """A reader of concepts trained on `count` drawings; kept in the work folder."""
    torch.manual_seed(seed)
    reader, path = ConceptReader(), work / f"concepts-{count}-{epochs}-{seed}.pt"
    if path.exists():
        reader.load_state_dict(torch.load(path, weights_only=True))
        return reader.eval()
    scenes = concept_scenes(count, seed)
    pictures, truths = drawings(scenes), torch.from_numpy(concepts(scenes)).float()
    steps = epochs * count // 64
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        picks = torch.randint(0, count, (64,))
        batch = worn(to_tensor(pictures[picks.numpy()]), blurred=0.5, times=3)
        loss = F.binary_cross_entropy_with_logits(reader(batch), truths[picks])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    torch.save(reader.state_dict(), path)
    return reader.eval()


@torch.no_grad()
def found(reader: ConceptReader, pictures: Pictures) -> NDArray[np.bool_]:
    """Which concepts the reader finds in pictures, [N, 2]."""
    answers: NDArray[np.bool_] = (reader(to_tensor(pictures)) > 0).numpy()
    return answers


def train(concept: str, weights: Path, work: Path) -> tuple[Run, float]:
    """Trains the starter dataset with its preset; returns the run and its seconds."""
    run = Run(work / concept)
    shutil.rmtree(run.path, ignore_errors=True)
    values: dict[str, Any] = {
        "dataset.folder": SAMPLES / concept,
        "dataset.class_folder": SAMPLES / ORDINARY,
        "base.model": str(weights),
    }
    run.create(parse(nest(PRESETS[f"embedded-{concept}"].values | values)))
    began = time.monotonic()
    attempt(run)
    return run, time.monotonic() - began


@dataclass(frozen=True)
class Probe:
    """Drawings to measure a loss on: latents [N, 4, 16, 16] and captions."""

    latents: Tensor
    captions: list[str]


@torch.no_grad()
def probe(base: Base, captioned: Sequence[tuple[Scene, str]]) -> Probe:
    """Drawings and captions to measure a loss on."""
    vae = base.pipeline.vae
    latents = vae.encode(to_tensor(drawings([scene for scene, _ in captioned]))).latent_dist.mode()
    return Probe(latents * vae.config.scaling_factor, [text for _, text in captioned])


@torch.no_grad()
def measure(model: BaseModel, images: Probe) -> float:
    """The mean squared error of the prediction at evenly spread timesteps, with fixed noise."""
    noise = torch.randn(images.latents.shape, generator=torch.Generator().manual_seed(1))
    conditioning = model.encode_prompts(images.captions)
    errors = []
    for part in range(TIMESTEPS):
        timestep = round((part + 0.5) * len(model.alphas_cumprod) / TIMESTEPS)
        timesteps = torch.full((len(noise),), timestep)
        alpha_bar = model.alphas_cumprod[timesteps]
        noisy = losses.add_noise(images.latents, noise, alpha_bar)
        wanted = losses.target(images.latents, noise, alpha_bar, model.prediction_type)
        errors.append(F.mse_loss(model.predict(noisy, timesteps, conditioning), wanted))
    return torch.stack(errors).mean().item()


def ordinary(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Random scenes with captions, as the base knows them."""
    rng = Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def loss_changes(session: Session, file: Path, probes: dict[str, Probe]) -> dict[str, float]:
    """How much each probe's loss changes from strength 0 to 1, in per cent."""
    model = session.model
    adapter = load_for(model.family, model.place, file)
    changes = {}
    with attach(model.parts, {"adapter": adapter}) as attachment:
        for name, images in probes.items():
            attachment.set({"adapter": 0.0})
            before = measure(model, images)
            attachment.set({"adapter": 1.0})
            changes[name] = round(100 * (measure(model, images) / before - 1), 1)
    return changes


def strip(
    session: Session, adapters: dict[Path, float], prompts: Sequence[str], factors: Sequence[float]
) -> Pictures:
    """Pictures of every prompt at every factor of the strengths, [prompts, factors, 64, 64, 3]."""
    rows = []
    for seed, prompt in enumerate(prompts):
        wanted = Drawing(
            base="embedded",
            adapters=tuple(Strength(file=file, unet=s) for file, s in adapters.items()),
            prompt=prompt,
            strip=tuple(factors),
            seed=seed,
            guidance=3.5,
            width=PIXELS,
            height=PIXELS,
        )
        rows.append([np.asarray(image) for image in session.draw(wanted)])
    return np.array(rows)


def prompts_for(concept: str, count: int) -> list[str]:
    """Prompts that ask for a concept, or for both."""
    rng = Random(5)
    if concept == "style":
        return [text for _, text in DATASETS["style"](count, seed=98)]
    ending = {"character": "", "both": ", vex style"}[concept]
    return [f"pip the creature {place_phrase(random_place(rng))}{ending}" for _ in range(count)]


def proof(
    concept: str, session: Session, file: Path, readers: tuple[Reader, ConceptReader], count: int
) -> tuple[dict[str, Any], Pictures]:
    """What one adapter does to pictures, and those that were asked to show its concept."""
    reader, concept_reader = readers
    pictures = strip(session, {file: 1.0}, prompts_for(concept, count), STRENGTHS)
    which = CONCEPTS.index(concept)
    shares = [found(concept_reader, pictures[:, i])[:, which].mean() for i in range(len(STRENGTHS))]
    usual = [pair for pair in ordinary(4 * count, seed=6) if pair[0].second is None][:count]
    drawn = strip(session, {file: 1.0}, [text for _, text in usual], (1.0,))[:, 0]
    subject = NAMES.index("subject")
    kept = read(reader, drawn)[:, subject] == labels([scene for scene, _ in usual])[:, subject]
    result = {
        "found by strength": {
            str(s): round(float(x), 3) for s, x in zip(STRENGTHS, shares, strict=True)
        },
        "ordinary prompts keep their subject": round(float(kept.mean()), 3),
        "found in ordinary prompts": round(float(found(concept_reader, drawn)[:, which].mean()), 3),
    }
    return result, pictures


def main() -> None:
    """Prints what was found as JSON; keeps runs and sheets in the work folder."""
    parser = argparse.ArgumentParser(description="What the embedded base learns.")
    parser.add_argument("--work", type=Path, required=True, help="folder for readers, runs, sheets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=25, help="pictures for each figure")
    parser.add_argument("--reader-drawings", type=int, default=24_000)
    parser.add_argument("--only", choices=CONCEPTS, help="one concept, and not both together")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reader = train_reader(options.work, READER_SEED, options.reader_drawings)
    concept_reader = train_concept_reader(options.work, READER_SEED, options.reader_drawings)
    test = concept_scenes(1000, READER_SEED + 1)
    right = (found(concept_reader, drawings(test)) == concepts(test)).mean()
    base = Base(options.weights, steps=20, guidance=3.5, seed=0)
    session = Session(BaseSettings(model=str(options.weights)))
    results: dict[str, Any] = {"concept reader right on drawings": round(float(right), 4)}
    files: dict[Path, float] = {}
    for concept in [options.only] if options.only else CONCEPTS:
        run, seconds = train(concept, options.weights, options.work)
        found_there, pictures = proof(
            concept, session, run.adapter_file, (reader, concept_reader), options.images
        )
        probes = {
            "held out": probe(base, DATASETS[concept](HELD_OUT, seed=HELD_OUT_SEED)),
            "ordinary": probe(base, ordinary(HELD_OUT, seed=7)),
        }
        changes = loss_changes(
            Session(BaseSettings(model=str(options.weights))), run.adapter_file, probes
        )
        results[concept] = {"seconds": round(seconds), "loss, per cent": changes, **found_there}
        sheet(
            pictures[:8].reshape(-1, PIXELS, PIXELS, 3),
            options.work / f"{concept}.png",
            len(STRENGTHS),
        )
        files[run.adapter_file] = 0.7
    if not options.only:
        pictures = strip(session, files, prompts_for("both", options.images), (1.0,))[:, 0]
        both = found(concept_reader, pictures).all(1).mean()
        results["both at 0.7"] = {"both found": round(float(both), 3)}
        sheet(pictures[:24], options.work / "both.png", columns=6)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
