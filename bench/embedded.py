"""Scores the embedded base: does it draw what prompts say, how cleanly, how fast?

    python -m bench.embedded --work DIR [--images 500] [--seed 7] [--guidance 3.5] [--steps 20]

A reader (a small classifier) is trained on the world's own drawings, kept in DIR, and asked what it
sees in drawings it has not seen, in the VAE's reconstructions of them, and in generated pictures.
Only what a prompt says is asked. Since a reader forgives ragged shapes, silhouettes and ink lines
are compared as well: intersection over union with the nearest true rendering of the same subject.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from trainer.model.embedded import WEIGHTS
from trainer.model.embedded.backgrounds import TINTS
from trainer.model.embedded.captions import CREATURE_NAMES, EYES
from trainer.model.embedded.creatures import Creature
from trainer.model.embedded.drawings import ATTRIBUTES, PIXELS, attributes, labels
from trainer.model.embedded.starter import DATASETS
from trainer.model.embedded.subjects import THINGS
from trainer.model.embedded.world import (
    DEFAULT_MANNER,
    Scene,
    Thing,
    caption,
    draw,
    random_creature,
    random_scene,
)

NAMES = list(ATTRIBUTES)
PARTS = ("body", "eyes", "head", "crest", "mouth", "marks", "belly")
READER_SEED, TEST_SEED = 1_001, 1_002
Pictures = NDArray[np.uint8]  # [N, 64, 64, 3]


class Reader(nn.Module):
    """A convolutional classifier with one answer for each attribute."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, width, 2 * width, 4 * width, 6 * width)
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, 2, 1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, 1, 1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels[-1] * 16, 384), nn.SiLU(), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleList(nn.Linear(384, len(values)) for values in ATTRIBUTES.values())

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Scores of all values of each attribute, from pictures [N, 3, 64, 64] in -1..1."""
        features = self.trunk(pictures)
        return [head(features) for head in self.heads]


def to_tensor(pictures: Pictures) -> Tensor:
    """Pictures as the reader and the VAE take them: [N, 3, 64, 64] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def drawings(scenes: list[Scene]) -> Pictures:
    """The true renderings of scenes."""
    return np.stack([np.asarray(draw(scene, PIXELS)) for scene in scenes])


def worn(pictures: Tensor, blurred: float = 0.3, times: int = 1) -> Tensor:
    """Pictures as a base may draw them: at times blurred, some times over, and a little noisy."""
    if torch.rand(()) < blurred:
        for _ in range(times):
            pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), "replicate"), 3, 1)
    return pictures + 0.05 * torch.rand(()) * torch.randn_like(pictures)


def train_reader(work: Path, seed: int, count: int = 24_000, epochs: int = 8) -> Reader:
    """A reader trained on `count` drawings, blurred and noisy at times; kept in the work folder."""
    torch.manual_seed(seed)
    reader, path = Reader(), work / f"reader-{count}-{epochs}-{seed}.pt"
    if path.exists():
        reader.load_state_dict(torch.load(path, weights_only=True))
        return reader.eval()
    rng = Random(seed)
    scenes = [random_scene(rng, creatures=0.5) for _ in range(count)]
    pictures, truths = drawings(scenes), torch.from_numpy(labels(scenes))
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * count // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        picks = torch.randint(0, count, (64,))
        answers = reader(worn(to_tensor(pictures[picks.numpy()])))
        loss = sum(
            (F.cross_entropy(a, truths[picks, i]) for i, a in enumerate(answers)), torch.zeros(())
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save(reader.state_dict(), path)
    return reader.eval()


@torch.no_grad()
def read(reader: Reader, pictures: Pictures) -> NDArray[np.int64]:
    """What a reader sees: an index for each attribute, [N, number of attributes]."""
    chunks = to_tensor(pictures).split(100)
    rows = [torch.stack([a.argmax(1) for a in reader(chunk)], 1) for chunk in chunks]
    return torch.cat(rows).numpy()


def said(scene: Scene, text: str) -> NDArray[np.bool_]:
    """Which attributes a caption says, of those a scene has."""
    values, subject = attributes(scene), scene.subject
    saying = dict.fromkeys(("subject", "colour", "place", "manner"), True)
    saying |= {"size": bool(scene.size), "side": bool(scene.side)}
    saying |= dict.fromkeys(("second", "second colour"), scene.second is not None)
    if isinstance(subject, Creature):
        saying |= {
            "body": any(f"{subject.body} {name}" in text for name in CREATURE_NAMES),
            "eyes": EYES[subject.eyes] in text,
            "belly": subject.belly is not None and "belly" in text,
        }
        words = {
            "head": values["head"],
            "crest": values["crest"].split()[-1],
            "mouth": values["mouth"],
            "marks": values["marks"],
        }
        saying |= {name: word in text for name, word in words.items()}
        saying["crest"] &= subject.crest != "no crest"
    return np.array([saying.get(name, False) for name in NAMES])


def score(seen: NDArray[np.int64], scenes: list[Scene], texts: list[str]) -> dict[str, float]:
    """The share of what was said that was seen: by attribute, parts together, and all of the first
    three (subject, colour, place) at once."""
    right = seen == labels(scenes)
    asked = np.stack([said(scene, text) for scene, text in zip(scenes, texts, strict=True)])
    result = {
        name: float(right[asked[:, i], i].mean())
        for i, name in enumerate(NAMES)
        if asked[:, i].any()
    }
    columns = [NAMES.index(name) for name in PARTS]
    result["parts"] = float(right[:, columns][asked[:, columns]].mean())
    result["all three"] = float(right[:, [0, 1, 2]].all(1).mean())
    return {name: round(value, 4) for name, value in result.items()}


class Base:
    """The embedded base, and how pictures come out of it."""

    def __init__(self, weights: Path, steps: int, guidance: float, seed: int) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(weights, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.seed = steps, guidance, seed

    def generate(self, texts: list[str], batch: int = 16) -> Pictures:
        """One picture for each prompt, each from a seed of its own."""
        pictures: list[NDArray[np.uint8]] = []
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            noise = [
                torch.Generator().manual_seed(self.seed * 10_000 + start + i)
                for i in range(len(some))
            ]
            images = self.pipeline(
                some,
                num_inference_steps=self.steps,
                generator=noise,
                guidance_scale=self.guidance,
                height=PIXELS,
                width=PIXELS,
            ).images
            pictures += [np.asarray(image) for image in images]
        return np.stack(pictures)

    @torch.no_grad()
    def reconstruct(self, pictures: Pictures) -> Pictures:
        """Pictures through the VAE and back."""
        vae = self.pipeline.vae
        out = torch.cat(
            [
                vae.decode(vae.encode(chunk).latent_dist.mode()).sample
                for chunk in to_tensor(pictures).split(50)
            ]
        )
        rounded = ((out.clamp(-1, 1) + 1) * 127.5).round().byte()
        return rounded.permute(0, 2, 3, 1).numpy()

    def seconds_per_image(self, runs: int = 5) -> float:
        """The median time of one picture on one core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self.generate(["a red house in a meadow"])
            times.append(time.perf_counter() - start)
        torch.set_num_threads(threads)
        return median(times)


def psnr(pictures: Pictures, others: Pictures) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels of all pictures."""
    error = ((pictures.astype(float) - others) / 255).__pow__(2).mean()
    return float(-10 * np.log10(error))


def contour_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes whose contours can be told from the background: one subject, plain, dark outline."""
    rng, scenes = Random(seed), []
    colours = ("red", "orange", "green", "blue", "purple", "brown")
    for i in range(count):
        noun = [*THINGS, "creature"][i % (len(THINGS) + 1)]
        colour = rng.choice(colours)
        subject = (
            replace(random_creature(rng), colour=colour)
            if noun == "creature"
            else Thing(noun, colour)
        )
        scenes.append(Scene(subject, rng.choice(list(TINTS)), DEFAULT_MANNER))
    return scenes


def silhouette(picture: Pictures) -> NDArray[np.bool_]:
    """Pixels unlike the background, whose colour is the median along the picture's border."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.abs(picture.astype(int) - np.median(border, axis=0)).max(-1) > 60


def ink(picture: Pictures) -> NDArray[np.bool_]:
    """Pixels as dark as the lines of the drawings."""
    return picture.astype(int).sum(-1) < 240


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def contour(picture: Pictures, scene: Scene) -> tuple[float, float]:
    """Overlap of silhouettes and of ink with the nearest true rendering: shifted, mirrored."""
    best = (0.0, 0.0)
    for mirrored in (False, True):
        for x in (-0.03, -0.015, 0.0, 0.015, 0.03):
            for y in (-0.03, -0.015, 0.0, 0.015, 0.03):
                true = np.asarray(draw(replace(scene, shift=(x, y), mirrored=mirrored), PIXELS))
                both = (
                    overlap(silhouette(picture), silhouette(true)),
                    overlap(ink(picture), ink(true)),
                )
                best = max(best, both, key=sum)
    return best


def contour_score(pictures: Pictures, scenes: list[Scene]) -> dict[str, float]:
    """Mean overlaps over pictures."""
    pairs = np.array([contour(p, s) for p, s in zip(pictures, scenes, strict=True)])
    return {
        "silhouette": round(float(pairs[:, 0].mean()), 4),
        "ink": round(float(pairs[:, 1].mean()), 4),
    }


def sheet(pictures: Pictures, path: Path, columns: int = 12, cell: int = 128) -> None:
    """Pictures side by side in one file, enlarged."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture).resize((cell, cell), Image.Resampling.BICUBIC)
        page.paste(image, (i % columns * cell, i // columns * cell))
    page.save(path)


def vae_scores(base: Base, scenes: list[Scene]) -> dict[str, float]:
    """PSNR of reconstructions: of scenes, and of everything that is held back."""
    kinds: dict[str, Callable[[], list[Scene]]] = {"scenes": lambda: scenes[:300]}
    kinds |= {
        name: (lambda make=make: [scene for scene, _ in make(60, 99)])
        for name, make in DATASETS.items()
    }
    result = {}
    for name, make in kinds.items():
        pictures = drawings(make())
        result[name] = round(psnr(pictures, base.reconstruct(pictures)), 2)
    return result


def main() -> None:
    """Prints the scores as JSON, and keeps sheets of what was generated in the work folder."""
    parser = argparse.ArgumentParser(description="Scores the embedded base.")
    parser.add_argument("--work", type=Path, required=True, help="folder for readers and sheets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--contours", type=int, default=102)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reader = train_reader(options.work, READER_SEED)
    base = Base(options.weights, options.steps, options.guidance, options.seed)

    rng = Random(TEST_SEED + options.seed)
    scenes = [random_scene(rng) for _ in range(options.images)]
    texts = [caption(scene, rng) for scene in scenes]
    true = drawings(scenes)
    generated = base.generate(texts)
    sheet(generated[:96], options.work / "generated.png")
    lines = contour_scenes(options.contours, options.seed)
    outlined = base.generate([caption(scene, rng) for scene in lines])
    sheet(outlined, options.work / "contours.png", columns=17)
    print(
        json.dumps(
            {
                "seed": options.seed,
                "guidance": options.guidance,
                "steps": options.steps,
                "images": options.images,
                "drawings": score(read(reader, true), scenes, texts),
                "reconstructions": score(read(reader, base.reconstruct(true)), scenes, texts),
                "generated": score(read(reader, generated), scenes, texts),
                "contours of reconstructions": contour_score(
                    base.reconstruct(drawings(lines)), lines
                ),
                "contours of generated": contour_score(outlined, lines),
                "psnr": vae_scores(base, scenes),
                "seconds per image on one core": round(base.seconds_per_image(), 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
