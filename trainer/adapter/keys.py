"""Names of adapter tensors: kohya, diffusers and PEFT spellings <-> one canonical module path.

The canonical path is diffusers' own module name with the part in front:
`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`,
`text_encoder.text_model.encoder.layers.0.self_attn.q_proj`, `text_encoder_2.…`. Everything here is
a pure function of strings; the map between diffusers' and the original (sgm) UNet names is one
formula for Stable Diffusion 1, 2 and XL.
"""

from __future__ import annotations

import re
from typing import Literal

from trainer.model.bases import Family

Form = Literal["kohya", "diffusers"]

# Module names that contain an underscore: only these survive the way back from kohya's flat names.
_COMPOUNDS = (
    r"down_blocks|up_blocks|mid_block|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out"
    r"|time_embedding|add_embedding|linear_[12]|time_emb_proj|conv_in|conv_out|conv_shortcut"
    r"|text_model|self_attn|[qkv]_proj|out_proj|layer_norm[12]|final_layer_norm"
    r"|token_embedding|position_embedding|text_projection"
    r"|input_blocks|middle_block|output_blocks|in_layers|out_layers|emb_layers|skip_connection"
    r"|time_embed|label_emb"
)
_WORD = re.compile(rf"({_COMPOUNDS}|[a-z0-9]+)(?:_|$)")

_FLAT_PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_": "unet",
}
FLAT_PREFIXES = tuple(_FLAT_PARTS)
_DOTTED_PARTS = {
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
_BARE_UNET = re.compile(
    r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding"
    r"|input_blocks|middle_block|output_blocks|time_embed|label_emb)\b"
)
_BARE_TEXT_ENCODER = re.compile(r"(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\b")

# How each spelling of a tensor's role ends a key. Order matters only where one ending ends another.
_ROLES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), role)
    for pattern, role in (
        (r"\.lora_down\.weight", "down"),
        (r"\.lora_up\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.lora_A(\.[\w-]+)?\.weight", "down"),
        (r"\.lora_B(\.[\w-]+)?\.weight", "up"),
        (r"\.(lora|lora_linear_layer)\.down\.weight", "down"),
        (r"\.(lora|lora_linear_layer)\.up\.weight", "up"),
        (r"_lora\.down\.weight", "down"),
        (r"_lora\.up\.weight", "up"),
        (r"(_lora|\.lora|\.lora_linear_layer)?\.alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.lora_magnitude_vector(\.[\w-]+)?(\.weight)?", "magnitude"),
        (r"\.(?P<role>hada_(w[12]_[ab]|t[12]))", ""),
        (r"\.(?P<role>lokr_(w[12](_[ab])?|t2))", ""),
        (r"\.diff", "diff"),
    )
)

# Projections as the attention processors of older diffusers versions called them.
_OLD_UNET = {"to_out": "to_out.0"}
_OLD_TEXT_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_RESNET_FROM_SGM = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_RESNET_TO_SGM = {new: old for old, new in _RESNET_FROM_SGM.items()}
_EDGES_FROM_SGM = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_EDGES_TO_SGM = {new: old for old, new in _EDGES_FROM_SGM.items()}

_THREE_BY_THREE = re.compile(r"^unet\.(.*\.(conv[12]|conv)|conv_in|conv_out)$")


def split(key: str) -> tuple[str, str] | None:
    """The canonical module path and the role of one tensor of an adapter file.

    Roles: `down`, `up`, `mid`, `alpha`, `dora_scale`, `magnitude`, `diff`, and LyCORIS' own
    (`hada_w1_a`, `lokr_w2`, …). None if the key is not understood.
    """
    for pattern, role in _ROLES:
        match = pattern.search(key)
        if match:
            path = canonical(key[: match.start()], old="_lora" in match.group()[:5])
            return None if path is None else (path, role or match["role"])
    return None


def canonical(name: str, *, old: bool = False) -> str | None:
    """The canonical path of a module named in any of the known ways; None if it is not understood.

    `old` marks a name taken from a key of the `to_q_lora.down` kind, whose projections have names
    of their own.
    """
    for prefix, part in _FLAT_PARTS.items():
        if name.startswith(prefix):
            return _under(part, _unflatten(name.removeprefix(prefix)))
    name = name.removeprefix("base_model.model.")
    for prefix, part in _DOTTED_PARTS.items():
        if name.startswith(prefix):
            return _under(part, _modern(part, name.removeprefix(prefix), old))
    if _BARE_UNET.match(name):
        return _under("unet", _modern("unet", name, old))
    if _BARE_TEXT_ENCODER.match(name):
        return _under("text_encoder", _modern("text_encoder", name, old))
    return None


def kohya_name(path: str, family: Family) -> str | None:
    """The name before `.lora_down.weight` by which every tool finds a module.

    SDXL takes the original UNet names, the others diffusers' own. None if the module has no such
    name, or has one that does not lead back to it.
    """
    part, _, module = path.partition(".")
    if part == "unet":
        prefix = "lora_unet_"
        target = to_sgm(module, family) if family is Family.SDXL else module
    elif part in ("text_encoder", "text_encoder_2"):
        encoders = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
        prefix = encoders[part] if family is Family.SDXL else "lora_te_"
        target = module
    else:
        return None
    if target is None:
        return None
    name = prefix + target.replace(".", "_")
    return name if canonical(name) == path else None


def kohya_key(name: str, role: str) -> str:
    """The key of one tensor of a module, by kohya's name of it; LyCORIS' roles are their own."""
    return f"{name}.lora_{role}.weight" if role in ("down", "up") else f"{name}.{role}"


def kernel_size(path: str) -> int:
    """The side of a layer's convolution kernel, which is the same in all families: 3, or 1 where
    the layer is linear or a convolution of single pixels."""
    return 3 if _THREE_BY_THREE.search(path) else 1


def from_sgm(module: str) -> str:
    """diffusers' name of a UNet module from its original one; other names come back unchanged."""
    if module in _EDGES_FROM_SGM:
        return _EDGES_FROM_SGM[module]
    match module.split("."):
        case ["input_blocks", n, "0", "op"] if _is_index(n):
            return f"down_blocks.{int(n) // 3 - 1}.downsamplers.0.conv"
        case ["input_blocks", n, kind, *rest] if _is_index(n):
            block, index = divmod(int(n) - 1, 3)
            return _member(f"down_blocks.{block}", kind, index, rest)
        case ["middle_block", "1", *rest]:
            return _member("mid_block", "1", 0, rest)
        case ["middle_block", n, *rest] if _is_index(n):
            return _member("mid_block", "0", int(n) // 2, rest)
        case ["output_blocks", n, "1" | "2", "conv"] if _is_index(n):
            return f"up_blocks.{int(n) // 3}.upsamplers.0.conv"
        case ["output_blocks", n, kind, *rest] if _is_index(n):
            block, index = divmod(int(n), 3)
            return _member(f"up_blocks.{block}", kind, index, rest)
    return module


def to_sgm(module: str, family: Family) -> str | None:
    """The original name of a UNet module from diffusers' one; None if it has none.

    Only the first upsampler differs between families: it follows an attention in SDXL alone.
    """
    if module in _EDGES_TO_SGM:
        return _EDGES_TO_SGM[module]
    match module.split("."):
        case ["down_blocks", i, "downsamplers", "0", "conv"] if _is_index(i):
            return f"input_blocks.{3 + 3 * int(i)}.0.op"
        case ["down_blocks", i, kind, j, *rest] if _is_index(i, j):
            return _original(f"input_blocks.{1 + 3 * int(i) + int(j)}", kind, rest)
        case ["mid_block", "attentions", "0", *rest]:
            return ".".join(["middle_block.1", *rest])
        case ["mid_block", "resnets", j, *rest] if _is_index(j):
            inside = _RESNET_TO_SGM.get(".".join(rest))
            return None if inside is None else f"middle_block.{2 * int(j)}.{inside}"
        case ["up_blocks", i, "upsamplers", "0", "conv"] if _is_index(i):
            place = 1 if i == "0" and family is not Family.SDXL else 2
            return f"output_blocks.{3 * int(i) + 2}.{place}.conv"
        case ["up_blocks", i, kind, j, *rest] if _is_index(i, j):
            return _original(f"output_blocks.{3 * int(i) + int(j)}", kind, rest)
    return None


def _is_index(*words: str) -> bool:
    # Names come from files: int() refuses very long numbers.
    return all(word.isdecimal() and len(word) < 5 for word in words)


def _member(block: str, kind: str, index: int, rest: list[str]) -> str:
    """A module inside resnet (kind 0) or attention (kind 1) `index` of a diffusers block."""
    inside = ".".join(rest)
    if kind == "0":
        return f"{block}.resnets.{index}.{_RESNET_FROM_SGM.get(inside, inside)}"
    return f"{block}.attentions.{index}.{inside}"


def _original(block: str, kind: str, rest: list[str]) -> str | None:
    inside = ".".join(rest)
    if kind == "resnets":
        original = _RESNET_TO_SGM.get(inside)
        return None if original is None else f"{block}.0.{original}"
    return f"{block}.1.{inside}" if kind == "attentions" else None


def _unflatten(flat: str) -> str | None:
    """`down_blocks_0_attn1_to_q` -> `down_blocks.0.attn1.to_q`; None if a word is unknown."""
    words = []
    position = 0
    while position < len(flat):
        match = _WORD.match(flat, position)
        if match is None:
            return None
        words.append(match[1])
        position = match.end()
    return ".".join(words)


def _modern(part: str, module: str, old: bool) -> str:
    """A dotted name without the attention processors of older diffusers versions."""
    module = module.replace(".processor.", ".")
    if not old:
        return module
    renames = _OLD_UNET if part == "unet" else _OLD_TEXT_ENCODER
    parent, _, last = module.rpartition(".")
    return f"{parent}.{renames.get(last, last)}"


def _under(part: str, module: str | None) -> str | None:
    """The canonical path of a module of one part of the pipeline."""
    if not module:
        return None
    if part == "unet":
        return f"unet.{from_sgm(module)}"
    if module.startswith(("encoder.", "embeddings.", "final_layer_norm")):
        module = f"text_model.{module}"  # transformers 5 dropped this level, files never do
    return f"{part}.{module}"
