"""One file, one image: adapters of every kind, family and key format in diffusers and here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from tests import single_files
from trainer import settings
from trainer.adapter.adapter import save
from trainer.adapter.attach import attach_new, read_back
from trainer.adapter.header import Header
from trainer.cli import run
from trainer.model.bases import Family
from trainer.preview import render
from trainer.preview.emphasis import encode
from trainer.preview.request import Drawing, Strength
from trainer.preview.session import Session
from trainer.settings import Base

# The key format is written alike for all kinds, once they are plain.
CASES = (("lora", "kohya"), ("lora", "diffusers"), ("dora", "kohya"), ("loha", "diffusers"),
         ("lokr", "kohya"))  # fmt: skip


@dataclass
class Both:
    """A tiny base of a family here and in diffusers."""

    family: Family
    folder: Path
    session: Session
    pipeline: Any

    def trained(self, kind: str) -> dict[str, Any]:
        """An adapter of a kind that acts on everything that can be trained."""
        wanted = settings.Adapter(
            kind=kind,  # type: ignore[arg-type]
            targets="linear-conv" if kind == "lora" else "attention",
            rank=3,
            alpha=2,
            text_encoder_rank=2,
            block_ranks=("unet.mid_block=4",),
        )
        draws = torch.Generator().manual_seed(0)
        with attach_new(self.session.model.parts, wanted, draws) as attachment:
            for layer in attachment.layers.values():
                for factor in layer.factors.values():
                    factor.data += (0.2 if kind == "lokr" else 0.05) * torch.randn(
                        factor.shape, generator=draws
                    )
            return read_back(attachment)

    def ours(self, *files: Path) -> Tensor:
        """The image [3, H, W] in [0, 1], not rounded."""
        drawing = Drawing(
            base="here", prompt="a cat", negative_prompt="blurry", seed=3, steps=2, guidance=5.0,
            width=64, height=64, adapters=tuple(Strength(file=file) for file in files),
        )  # fmt: skip
        (image,) = self.session.draw(drawing)
        assert isinstance(image, Tensor)
        return (image.clamp(-1, 1) + 1) / 2

    def theirs(self, file: Path) -> Tensor:
        self.pipeline.load_lora_weights(file)
        try:
            images = self.pipeline(
                "a cat", negative_prompt="blurry", num_inference_steps=2, guidance_scale=5.0,
                width=64, height=64, generator=torch.Generator().manual_seed(3), output_type="pt",
            ).images  # fmt: skip
        finally:
            self.pipeline.unload_lora_weights()
        image: Tensor = images[0]
        return image


@pytest.fixture(scope="module", params=list(Family), ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("base") / "folder"
    single_files.pipeline(request.param).save_pretrained(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    session = Session(Base(model=str(folder), device="cpu"))
    return Both(request.param, folder, session, pipeline)


@pytest.fixture(autouse=True)
def not_rounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Images stay tensors, because a step of 1/255 is more than is allowed here."""
    monkeypatch.setattr(render, "to_image", lambda pixels: pixels)
    yield


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_diffusers_draws_our_image_from_what_we_write(
    both: Both, kind: str, form: str, tmp_path: Path
) -> None:
    """Kinds that diffusers does not read are converted to plain LoRA."""
    file, plain = tmp_path / "own.safetensors", tmp_path / "plain.safetensors"
    save(both.trained(kind), file, Header("own", both.family), precision=torch.float32)
    assert run(["convert", str(file), "--to", form, "--base", str(both.folder),
                "--precision", "fp32", "--output", str(plain)]) == 0  # fmt: skip
    ours = both.ours(file)
    assert float((both.theirs(plain) - ours).abs().max()) < 1e-3
    assert float((both.ours(plain) - ours).abs().max()) < 1e-3
    assert float((both.ours() - ours).abs().max()) > 0.02  # and it is not the base's


@pytest.mark.parametrize("both", [Family.SDXL], indirect=True)
def test_clip_skip_of_sdxl_begins_at_the_last_layer_but_one(both: Both) -> None:
    """Which is what SDXL was trained on, so that 1 and 2 are the same, as in diffusers none."""

    def theirs(clip_skip: int | None) -> Tensor:
        hidden: Tensor = both.pipeline.encode_prompt(
            "a cat", device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip
        )[0]
        return hidden

    ours = [encode(both.session.model, ["a cat"], clip_skip=skip).hidden for skip in (1, 2, 3)]
    torch.testing.assert_close(ours[0], theirs(None))
    assert torch.equal(ours[0], ours[1])
    torch.testing.assert_close(ours[2], theirs(1))
    assert not torch.allclose(ours[1], ours[2], atol=1e-2)
