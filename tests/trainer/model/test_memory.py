"""What of a base is on the device when, and that its autoencoder cannot overflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from tests.trainer.training.runs import new_run
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel, StableDiffusion
from trainer.preview.render import Picture, render
from trainer.run import State
from trainer.settings import Base
from trainer.training.attempt import attempt


class Moves(nn.Module):
    """Says where a part was sent, instead of going there."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.places = part, []  # type: ignore[var-annotated]
        self.config, self.dtype = part.config, part.dtype

    def to(self, place: object) -> Moves:  # type: ignore[override]
        self.places.append(str(place))
        return self

    def forward(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError


@pytest.fixture
def model(small_base: Path) -> BaseModel:
    return load(Base(model=str(small_base), device="cpu"))


def test_vae_and_text_encoders_leave_the_device_and_come_back(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for a GPU: what is sent where is what counts.
    monkeypatch.setattr(model, "device", torch.device("meta"))
    text, vae = Moves(model.text_encoders["text_encoder"]), Moves(model.vae)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "text_encoder", text)
    monkeypatch.setattr(model, "vae", vae)
    model.release_vae()
    model.release_text_encoders()
    assert (text.places, vae.places) == (["cpu"], ["cpu"])
    with pytest.raises(NotImplementedError):
        model.encode_prompts(["a cat"])
    with pytest.raises(AttributeError):
        model.decode_latents(torch.zeros(1, 4, 8, 8))
    assert (text.places, vae.places) == (["cpu", "meta"], ["cpu", "meta"])


def test_a_vae_that_overflows_in_fp16_gives_images(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "loud"
    shutil.copytree(small_base, base)
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    with torch.no_grad():  # as in SDXL's, values between two layers reach beyond fp16's 65504
        vae.post_quant_conv.weight *= 1e6
    vae.save_pretrained(base / "vae")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.isfinite(vae.half().decode(latents.half()).sample).all()

    monkeypatch.setattr("trainer.model.load.choose_dtype", lambda wanted, device: torch.float16)
    model = load(Base(model=str(base), device="cpu"))
    assert model.unet.dtype == torch.float16
    image = render(model, Picture("a cat", steps=2, width=64, height=64))[0]
    assert len(image.getcolors(maxcolors=4096) or [1, 2]) > 1
    assert torch.isfinite(model.decode_latents(latents)).all()


@pytest.mark.parametrize(("trained", "times"), [(False, 4), (True, 0)])
def test_frozen_text_encoders_are_away_but_for_captions_and_samples(
    small_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    trained: bool, times: int,
) -> None:  # fmt: skip
    released = []
    monkeypatch.setattr(
        StableDiffusion, "release_text_encoders", lambda self: released.append(self)
    )
    run = new_run(
        tmp_path / "run", small_base, photos, training__steps=4, samples__every_steps=2,
        validation__every_steps=4, training__checkpoint_every_steps=4,
        adapter__text_encoder=trained, dataset__shuffle_tags=False, dataset__tag_dropout=0,
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    assert len(released) == times  # after the captions, and after the samples of steps 0, 2, 4
