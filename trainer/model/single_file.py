"""Single `.safetensors` checkpoints in the original layout: which family, and what they predict.

Only the header is read, without torch, so the web app may ask too. What the header does not say:

* The family is that of its text encoders: CLIP's alone is SD 1, OpenCLIP's alone SD 2, both SDXL.
* The prediction is what the metadata say (`modelspec.prediction_type`, `modelspec.architecture`).
  Else a tensor called `v_pred` means velocity. Else SD 2 predicts velocity where the bias of its
  last block's first normalisation spreads by more than 0.09, a sign of the 768 models' weights that
  ComfyUI goes by, and noise otherwise; the other families predict noise. `base.prediction_type`
  overrides it.
* A tensor called `ztsnr` means zero terminal SNR; `base.zero_terminal_snr` overrides it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Literal

from trainer.adapter.container import Container, read_container
from trainer.errors import AdapterError, BaseModelError
from trainer.model.bases import Family
from trainer.model.other_files import UNET, UNET_INPUTS, other_file, quantised

VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
XL_CLIP = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP = "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."

_V_SPREAD = 0.09
_WIDEST = 1 << 16
_LAST_NORM = re.compile(
    re.escape(UNET) + r"output_blocks\.(\d+)\.1\.transformer_blocks\.0\.norm1\.bias"
)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint that can be loaded.

    Attributes:
        shapes: of all its tensors, by their names in the file.
        size: side in pixels of the images it was made for.
    """

    path: Path
    family: Family
    prediction_type: Literal["epsilon", "v_prediction"]
    zero_terminal_snr: bool
    size: int
    shapes: Mapping[str, tuple[int, ...]]

    def prefixes(self) -> dict[str, str]:
        """How the names of each part's tensors begin, by diffusers' name of the part."""
        text = {
            Family.SD1: {"text_encoder": CLIP},
            Family.SD2: {"text_encoder": OPEN_CLIP},
            Family.SDXL: {"text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP},
        }
        return {"unet": UNET, "vae": VAE, **text[self.family]}


def read_single_file(path: Path) -> SingleFile:
    """What a checkpoint is, from its header.

    Raises:
        BaseModelError: if it is broken, is something else than a base, or is one that cannot be
            trained; the message says which, and what to give instead.
    """
    try:
        container = read_container(path)
    except AdapterError as error:
        raise BaseModelError(
            error.what, "Give a diffusers folder, or a .safetensors checkpoint that is whole."
        ) from None
    shapes = {name: entry.shape for name, entry in container.tensors.items()}
    family = _family(path, shapes)
    prediction_type = _prediction_type(path, container, family)
    return SingleFile(
        path=path,
        family=family,
        prediction_type=prediction_type,
        zero_terminal_snr="ztsnr" in shapes,
        size=_size(container.metadata, family, prediction_type),
        shapes=shapes,
    )


def _family(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if len(first) != 4 or any(name.startswith("control_model.") for name in shapes):
        other = other_file(shapes)
        raise BaseModelError(f"{path} is {other.what}.", other.advice)
    supported = "Give a Stable Diffusion 1.x, 2.x or SDXL checkpoint"
    if first[1] != 4:
        what = UNET_INPUTS.get(first[1], f"a model that reads {first[1]} channels")
        raise BaseModelError(f"{path} is {what}.", f"{supported} that draws from text alone.")
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        raise BaseModelError(
            f"{path} is a model with EDM's noise levels, such as Playground 2.5.", f"{supported}."
        )
    if quantised(shapes):
        raise BaseModelError(
            f"{path} holds packed 4-bit or 8-bit weights.",
            "Give the same model in fp16, bf16, fp32 or plain fp8; base.quantization packs it.",
        )
    has = {
        prefix: any(name.startswith(prefix) for name in shapes)
        for prefix in (CLIP, OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP, _REFINER, VAE)
    }
    if has[_REFINER]:
        raise BaseModelError(f"{path} is SDXL's refiner.", "Give the SDXL base.")
    if any(name.startswith(("embedder.", "noise_augmentor.")) for name in shapes):
        raise BaseModelError(f"{path} is an unCLIP model.", f"{supported}.")
    is_xl = f"{UNET}label_emb.0.0.weight" in shapes
    families = {
        Family.SDXL: has[XL_CLIP] and has[XL_OPEN_CLIP],
        Family.SD2: has[OPEN_CLIP],
        Family.SD1: has[CLIP],
    }
    family = next((family for family, there in families.items() if there), None)
    if family is None or is_xl is not (family is Family.SDXL) or not has[VAE]:
        missing = "VAE" if family is not None and not has[VAE] else "text encoder"
        raise BaseModelError(
            f"{path} has a UNet but no {missing} that fits it.",
            f"{supported} that holds UNet, text encoder and VAE.",
        )
    return family


def _prediction_type(
    path: Path, container: Container, family: Family
) -> Literal["epsilon", "v_prediction"]:
    metadata = container.metadata
    said = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if said.startswith("v") or "768-v" in architecture:
        return "v_prediction"
    if said.startswith("eps") or "v2-512" in architecture:
        return "epsilon"
    if "v_pred" in container.tensors:
        return "v_prediction"
    if family is Family.SD2 and _spread_of_last_norm(path, container) > _V_SPREAD:
        return "v_prediction"
    return "epsilon"


def _spread_of_last_norm(path: Path, container: Container) -> float:
    """The standard deviation of the last transformer's first bias; 0 where it cannot be read."""
    found = {int(match[1]): name for name in container.tensors
             if (match := _LAST_NORM.fullmatch(name))}  # fmt: skip
    if not found:
        return 0.0
    entry = container.tensors[found[max(found)]]
    if entry.size > _WIDEST:
        return 0.0
    with path.open("rb") as file:
        file.seek(container.start + entry.begin)
        match entry.dtype:
            case "F32":
                numbers = struct.unpack(f"<{entry.size}f", file.read(4 * entry.size))
            case "F16":
                numbers = struct.unpack(f"<{entry.size}e", file.read(2 * entry.size))
            case "BF16":  # the upper half of an fp32 number
                halves = file.read(2 * entry.size)
                whole = b"".join(b"\0\0" + halves[i : i + 2] for i in range(0, len(halves), 2))
                numbers = struct.unpack(f"<{entry.size}f", whole)
            case _:
                return 0.0
    return float(pstdev(numbers))


def _size(metadata: Mapping[str, str], family: Family, prediction_type: str) -> int:
    said = re.fullmatch(r"(\d{2,4})x\d{2,4}", metadata.get("modelspec.resolution", ""))
    if said:
        return int(said[1])
    if family is Family.SD2:
        return 768 if prediction_type == "v_prediction" else 512
    return {Family.SD1: 512, Family.SDXL: 1024}[family]
