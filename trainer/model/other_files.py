"""What a `.safetensors` file is that is no base, by the names of its tensors. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
# Stable Diffusion's UNets by the channels they read: latents alone, or with something else.
UNET_INPUTS = {
    5: "a base for depth images",
    7: "an upscaling model of Stable Diffusion",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}

_SUPPORTED = "Give a Stable Diffusion 1.x, 2.x or SDXL checkpoint"
_WHOLE = f"{_SUPPORTED} that holds UNet, text encoder and VAE."
_SMALL_EMBEDDING = 8  # tensors; a model has hundreds


@dataclass(frozen=True)
class OtherFile:
    """What a file is, as it goes on after “FILE is …”, and what to give instead."""

    what: str
    advice: str = f"{_SUPPORTED}."


_ADAPTER = OtherFile(
    "an adapter (LoRA or LyCORIS), not a base",
    "Give the base it was made for, and the adapter as an adapter.",
)
_CONTROL = OtherFile("a ControlNet, which steers a base and is none")

# The first pattern that a tensor's name matches says what the file is: adapters and ControlNets
# before what they are for, whole models before their parts.
_SIGNS: list[tuple[str, OtherFile]] = [
    (r"\.lora_(up|down|mid|A|B|linear)|_lora\.(up|down)\.|^lora_|^lycoris_|\.hada_w|\.lokr_w"
     r"|\.oft_(blocks|R)|\.dora_scale", _ADAPTER),
    (r"^control_model\.|controlnet_(cond_embedding|down_blocks|mid_block)|^lllite_|zero_convs\."
     r"|input_hint_block\.|^control_(layers|all_x)", _CONTROL),
    (r"motion_modules\.", OtherFile("an AnimateDiff motion module")),
    (r"^ip_adapter\.|^image_proj\.", OtherFile("an IP-Adapter")),
    (r"joint_blocks\.|context_embedder\..*|^transformer_blocks\..*\.add_k_proj",
     OtherFile("a Stable Diffusion 3 model (or another transformer)")),
    (r"double_stream_blocks\.", OtherFile("a HiDream model")),
    (r"distilled_guidance_layer\.", OtherFile("a Chroma model")),
    (r"(^|\.)double_blocks\.|single_transformer_blocks\.", OtherFile("a Flux model")),
    (r"clip_(txt_)?mapper\.|\.channelwise\.", OtherFile("a Stable Cascade model")),
    (r"double_layers\.\d", OtherFile("an AuraFlow model")),
    (r"cap_embedder\.", OtherFile("a Lumina or Z-Image model")),
    (r"head\.modulation$|vace_blocks\.", OtherFile("a Wan video model")),
    (r"adaln_single\.|patchify_proj\.|scale_shift_table",
     OtherFile("a diffusion transformer (PixArt, LTX or Sana)")),
    (r"txt_in\.|img_in\.", OtherFile("a diffusion transformer")),
    (r"^prior\.|embedder\.model\.visual|noise_augmentor\.",
     OtherFile("an unCLIP model")),
    (r"body\.0\.rdb1\.|RRDB_trunk\.|^model\.1\.sub\.|^conv_first\.|residual_group\.",
     OtherFile("an upscaler of finished images")),
    (r"^(down|up)_blocks\.\d+\.(resnets|attentions|downsamplers|upsamplers)\.|^mid_block\.",
     OtherFile("the UNet of a diffusers model alone",
               "Give the folder that holds unet/, vae/, text_encoder/ and model_index.json.")),
    (r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|down|up|mid)",
     OtherFile("a VAE alone", _WHOLE)),
    (r"^encoder\.block\.\d+\.layer|text_model\.|transformer\.resblocks\.|^embeddings\.token_emb",
     OtherFile("a text encoder alone", _WHOLE)),
]  # fmt: skip
_COMPILED = [(re.compile(pattern), other) for pattern, other in _SIGNS]
_QUANTISED = re.compile(
    r"\.(absmax|quant_state\..*|quant_map|nested_absmax|scale_weight|weight_scale|comfy_quant)$"
    r"|^scaled_fp8$|\.SCB$"
)


def quantised(shapes: Shapes) -> bool:
    """Whether the weights are held in a packed form, with scales beside them."""
    return any(_QUANTISED.search(name) for name in shapes)


def other_file(shapes: Shapes) -> OtherFile:
    """What a file without Stable Diffusion's UNet is."""
    if "emb_params" in shapes or "string_to_param" in shapes or _is_embedding(shapes):
        return OtherFile(
            "a textual-inversion embedding, not a base", "Give the base it was made for."
        )
    for pattern, other in _COMPILED:
        if any(pattern.search(name) for name in shapes):
            return other
    return OtherFile("not a Stable Diffusion checkpoint", _WHOLE)


def _is_embedding(shapes: Shapes) -> bool:
    """A few vectors as wide as a text encoder, under the trigger word or its encoders' names."""
    return (
        0 < len(shapes) <= _SMALL_EMBEDDING
        and all(len(shape) <= 2 and "." not in name for name, shape in shapes.items())
        and any(shape[-1] in (768, 1024, 1280) for shape in shapes.values() if shape)
    )
