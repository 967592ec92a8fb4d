"""Builds the embedded base from nothing: draws, trains every part, writes the weights.

    python -m trainer.model.embedded.build --work DIR

Everything under way is in DIR, outside the repository: run the same command again after an
interruption and it goes on from what was last saved. With the DIR gone, `--from-weights` starts
every part from the weights that ship instead. Runs on a GPU where there is one, in bfloat16.

Parts and minutes can be chosen: `--parts unet,export --minutes-unet 60 --run second --after unet`
trains the UNet for another hour, as a run of its own that starts where the run `unet` ended.

Wall time of the weights that ship, on two cores: drawings 1 minute, VAE 17 and 25 more with Muon on
whole pictures (16,800 of them), text encoder 3 and 3.5 more with the captions of now, UNet 61
(95,000 pictures in batches of 32), about 46 more on the new latents with Muon (27,000 pictures),
all of them while other work took more than half of the cores, and 85 with the cores free (215,000
pictures). Then VAE 30 on one core, with a second residual block in every stage that at first did
nothing, and UNet 64 on the latents of that VAE (135,000 pictures). The defaults below ask for four
hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.model.embedded import WEIGHTS
from trainer.model.embedded.build_loop import DEVICE, launch, save
from trainer.model.embedded.build_text import corpus, new_encoder, tokenise, train_text
from trainer.model.embedded.build_unet import (
    EASY_SHARE,
    Denoising,
    Latents,
    easy_scenes,
    new_scheduler,
    new_unet,
    train_unet,
)
from trainer.model.embedded.build_vae import new_vae, train_decoder, train_vae
from trainer.model.embedded.drawings import SEED, draw_all, stored

PARTS = ("vae", "text", "unet", "decoder", "export")


def _state(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, map_location=DEVICE, weights_only=True)
    return state


def load_vae(work: Path) -> AutoencoderKL:
    """The VAE that the work folder holds, with its decoder's further training if there was any."""
    vae = new_vae()
    tuned = work / "decoder-done.pt"
    vae.load_state_dict(_state(tuned if tuned.exists() else work / "vae-done.pt"))
    return vae.eval()


def load_text(work: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and the text encoder that the work folder holds."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encoder = new_encoder(tokenizer)
    encoder.load_state_dict(_state(work / "text-done.pt"))
    return tokenizer, encoder.eval().requires_grad_(False)


def load_unet(work: Path, run: str) -> UNet2DConditionModel:
    """The averaged UNet of a run, finished or not; an untrained one if there is no such run."""
    unet = new_unet()
    if (work / f"{run}.pt").exists():
        unet.load_state_dict(_state(work / f"{run}.pt")["average"])
    return unet


def unet_stage(
    work: Path,
    run: str,
    before: str,
    minutes: float,
    rate: float,
    flat: float,
    batch: int,
    scenes: int,
) -> None:
    """Trains the UNet as run `run`, from the end of run `before` where that exists."""
    tokenizer, encoder = load_text(work)
    tokens, truths = corpus(work, scenes, SEED)
    latents = Latents(load_vae(work), stored(work, "scenes"), work)
    empty = tokenise(tokenizer, [""])[0]
    torch.manual_seed(2)
    unet = load_unet(work, before)
    task = Denoising(
        unet,
        encoder,
        latents,
        tokens[:scenes],
        empty,
        batch,
        easy_scenes(truths[:scenes]),
        0.0 if before else EASY_SHARE,
    )
    train_unet(work, run, unet, task, tokenizer, minutes, rate, flat)


def export(work: Path, run: str, folder: Path) -> None:
    """Writes everything as a diffusers `StableDiffusionPipeline` in half precision."""
    tokenizer, encoder = load_text(work)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=load_unet(work, run),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    _suit_older_tools(work, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def _suit_older_tools(work: Path, folder: Path) -> None:
    """Tokenizer files and key names as Stable Diffusion's own folders have them, and a text encoder
    that loads in the precision of the rest, float32 unless another is asked for."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, folder / "tokenizer" / name)
    _edit(folder / "tokenizer" / "tokenizer_config.json", is_local=None, local_files_only=None)
    _edit(folder / "text_encoder" / "config.json", dtype="float32")
    path = folder / "text_encoder" / "model.safetensors"
    state = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in load_file(path).items()
    }
    save_file(state, path, {"format": "pt"})
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def _edit(path: Path, **changes: str | None) -> None:
    """Sets entries of a JSON file; None removes one."""
    values = json.loads(path.read_text("utf-8")) | changes
    kept = {k: v for k, v in values.items() if v is not None or k not in changes}
    path.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def from_weights(work: Path) -> None:
    """Lets every part that the work folder has not begun start from the weights that ship.

    Parts that are not asked for count as done.
    """
    if (work / "shipped.pt").exists():
        return
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None)
    shutil.copytree(WEIGHTS / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    for name, module in (("vae", pipeline.vae), ("text", pipeline.text_encoder)):
        save(work / f"{name}-start.pt", module.state_dict())
        save(work / f"{name}-done.pt", module.state_dict())
    save(work / "shipped.pt", {"average": dict(pipeline.unet.named_parameters())})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.model.embedded.build", description="Builds the embedded base."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for everything under way")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, in order")
    parser.add_argument("--processes", type=int, default=1, help="processes that share gradients")
    parser.add_argument("--batch", type=int, default=32, help="UNet pictures per process and step")
    parser.add_argument(
        "--scenes",
        type=int,
        default=50_000,
        help="scenes to learn from, in 500s; fewer save encoding where time is short",
    )
    parser.add_argument("--minutes-vae", type=float, default=15)
    parser.add_argument("--minutes-text", type=float, default=3)
    parser.add_argument("--minutes-unet", type=float, default=240)
    parser.add_argument("--minutes-decoder", type=float, default=8)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="the UNet's learning rate")
    parser.add_argument(
        "--flat",
        type=float,
        default=0.5,
        help="share of the UNet's budget before its learning rate falls",
    )
    parser.add_argument("--run", default="unet", help="name of the UNet's run")
    parser.add_argument("--after", default="", help="run whose UNet this run starts from")
    parser.add_argument("--from-weights", action="store_true", help="start from what ships")
    return parser.parse_args()


def main() -> None:
    """Runs the parts asked for, one after the other."""
    options = _arguments()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    parts, processes = options.parts.split(","), options.processes
    if options.from_weights:
        from_weights(work)
    draw_all(work, options.scenes)
    if "vae" in parts:
        launch(train_vae, processes, work, options.minutes_vae)
    if "text" in parts:
        corpus(work, options.scenes, SEED)
        launch(train_text, processes, work, options.scenes, SEED, options.minutes_text)
    if "unet" in parts:
        corpus(work, options.scenes, SEED)
        before = options.after or ("shipped" if options.from_weights else "")
        launch(
            unet_stage,
            processes,
            work,
            options.run,
            before,
            options.minutes_unet,
            options.rate,
            options.flat,
            options.batch,
            options.scenes,
        )
    if "decoder" in parts:
        launch(train_decoder, processes, work, options.minutes_decoder)
    if "export" in parts:
        export(work, options.run, options.output)


if __name__ == "__main__":
    main()
