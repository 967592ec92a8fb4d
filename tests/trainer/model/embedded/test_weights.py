"""The weights that ship: small, loadable by plain diffusers, and a Stable Diffusion that works."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from trainer.model.embedded import WEIGHTS
from trainer.model.embedded.captions import TRIGGERS
from trainer.model.embedded.world import draw, random_scene


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder_is_small_and_in_half_precision() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) <= 32 * 2**20
    for path in WEIGHTS.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert not list(WEIGHTS.rglob("*.bin"))


def test_older_tools_find_the_tokenizer_files_they_read() -> None:
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {
        file.name for file in (WEIGHTS / "tokenizer").iterdir()
    }


def test_importing_the_package_and_drawing_need_no_torch() -> None:
    code = (
        "import sys; from trainer.model.embedded import WEIGHTS, world, starter, drawings; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_any_text_has_tokens_and_triggers_are_no_words_of_the_base(
    pipeline: StableDiffusionPipeline,
) -> None:
    tokenizer = pipeline.tokenizer
    text = "Żółć, 日本語 🎉 & a red house"
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]
    assert len(tokenizer.tokenize("umbrella")) == 1
    assert all(len(tokenizer.tokenize(word)) > 1 for word in TRIGGERS)


def test_latents_are_scaled_and_pictures_survive_the_vae(pipeline: StableDiffusionPipeline) -> None:
    rng = Random(8)
    pictures = np.stack([np.asarray(draw(random_scene(rng), 64)) for _ in range(24)])
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(tensor).latent_dist.mode()
        out = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    scaled = latents * pipeline.vae.config.scaling_factor
    assert latents.shape == (24, 4, 16, 16)
    assert scaled.mean().abs() < 0.2
    assert 0.85 < scaled.std() < 1.15
    assert -10 * ((out - tensor) / 2).square().mean().log10() > 25  # dB


def test_a_prompt_makes_the_picture_it_asks_for(pipeline: StableDiffusionPipeline) -> None:
    def picture(prompt: str) -> np.ndarray:
        result = pipeline(
            prompt,
            num_inference_steps=8,
            guidance_scale=3.5,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(1),
        )
        return np.asarray(result.images[0], dtype=float)

    red, blue = (
        picture(f"a big {colour} heart on a white background") for colour in ("red", "blue")
    )
    assert red.shape == (64, 64, 3)
    middle = slice(24, 40)
    assert red[middle, middle, 0].mean() > red[middle, middle, 2].mean() + 60
    assert blue[middle, middle, 2].mean() > blue[middle, middle, 0].mean() + 60
    assert red[:4, :4].mean() > 225
    assert np.array_equal(red, picture("a big red heart on a white background"))
