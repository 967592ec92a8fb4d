"""The layers of a base and their shapes, from its configuration alone: nothing is loaded. No torch.

What a run will train, and the file that it will write, can be told from these before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from trainer.errors import BaseModelError
from trainer.model.bases import (
    Family,
    FileBase,
    FolderBase,
    HubBase,
    family_of,
    read_config,
    resolve,
)
from trainer.model.configurations import text_config, unet_config
from trainer.model.single_file import read_single_file

Shape = tuple[int, ...]
Config = Mapping[str, Any]


@dataclass
class Layers:
    """The linear layers and convolutions of one part, by module path: shapes of their weights.

    `others` counts the remaining parameters: biases, norms, embeddings.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    others: int = 0

    def add(self, path: str, *shape: int, bias: bool = True) -> None:
        self.shapes[path] = shape
        self.others += shape[0] * bias

    def norms(self, *widths: int) -> None:
        self.others += 2 * sum(widths)


@dataclass(frozen=True)
class Outline:
    """A base without its weights: its family, and the layers of each part that can be adapted."""

    family: Family
    parts: Mapping[str, Layers]

    @property
    def parameters(self) -> int:
        """Of all parts that can be adapted."""
        weights = chain.from_iterable(part.shapes.values() for part in self.parts.values())
        return sum(map(_size, weights)) + sum(part.others for part in self.parts.values())


def outline(reference: str) -> Outline | None:
    """The outline of a base; None if it has yet to be downloaded and is none of the well-known.

    Raises:
        BaseModelError: if there is no such base, or it is broken.
    """
    match resolve(reference):
        case FolderBase(path):
            return _of_folder(path)
        case FileBase(path):
            return _of_file(path)
        case HubBase() as base:
            return _of_hub(base)


def _of_folder(folder: Path) -> Outline:
    family = family_of(folder)
    configs = {part: read_config(folder / part / "config.json")
               for part in ("unet", *_encoders(family))}  # fmt: skip
    try:
        parts = {part: text_layers(part, config) if part != "unet" else unet_layers(config)
                 for part, config in configs.items()}  # fmt: skip
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"The configurations of {folder} are not those of a base ({error!r}).",
            "The base is broken; get it again.",
        ) from None
    return Outline(family, parts)


def _of_file(path: Path) -> Outline:
    file = read_single_file(path)
    try:
        parts = {"unet": unet_layers(unet_config(file))}
        for part in _encoders(file.family):
            parts[part] = text_layers(part, text_config(file, part))
    except (KeyError, StopIteration, IndexError):
        raise BaseModelError(f"{path} lacks parts of a base.", "Get it again.") from None
    return Outline(file.family, parts)


def _of_hub(base: HubBase) -> Outline | None:
    from huggingface_hub import try_to_load_from_cache

    file = base.file or "unet/config.json"
    cached = try_to_load_from_cache(base.id, file, revision=base.revision)
    if isinstance(cached, str):
        place = Path(cached)
        return _of_file(place) if base.file else _of_folder(place.parents[1])
    family = next((f for start, f in _WELL_KNOWN.items() if base.id.startswith(start)), None)
    if family is None or base.file:
        return None
    texts = {part: text_layers(part, config) for part, config in _TEXTS[family].items()}
    return Outline(family, {"unet": unet_layers(_UNETS[family]), **texts})


def _encoders(family: Family) -> tuple[str, ...]:
    return ("text_encoder", "text_encoder_2") if family is Family.SDXL else ("text_encoder",)


def unet_layers(config: Config) -> Layers:
    """The layers of diffusers' UNet2DConditionModel, as Stable Diffusion 1, 2 and XL have it."""
    widths = list(config["block_out_channels"])
    top, time = widths[0], 4 * widths[0]
    layers = Layers()
    layers.add("unet.conv_in", top, config.get("in_channels", 4), 3, 3)
    layers.add("unet.time_embedding.linear_1", time, top)
    layers.add("unet.time_embedding.linear_2", time, time)
    if pooled := config.get("projection_class_embeddings_input_dim"):
        layers.add("unet.add_embedding.linear_1", time, pooled)
        layers.add("unet.add_embedding.linear_2", time, time)
    unet = _Unet(layers, config, time)
    skips = unet.down(widths)
    unet.resnet("unet.mid_block.resnets.0", widths[-1], widths[-1])
    unet.attention("unet.mid_block.attentions.0", widths[-1], unet.depths[-1])
    unet.resnet("unet.mid_block.resnets.1", widths[-1], widths[-1])
    unet.up(widths, skips)
    layers.norms(top)
    layers.add("unet.conv_out", config.get("out_channels", 4), top, 3, 3)
    return layers


def text_layers(part: str, config: Config) -> Layers:
    """The layers of CLIP's text encoder."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    layers = Layers()
    for index in range(config["num_hidden_layers"]):
        path = f"{part}.text_model.encoder.layers.{index}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            layers.add(f"{path}.self_attn.{name}", width, width)
        layers.add(f"{path}.mlp.fc1", inner, width)
        layers.add(f"{path}.mlp.fc2", width, inner)
        layers.norms(width, width)
    layers.norms(width)
    places = config.get("max_position_embeddings", 77)
    layers.others += (config.get("vocab_size", 49408) + places) * width
    if part == "text_encoder_2":
        layers.add(f"{part}.text_projection", config["projection_dim"], width, bias=False)
    return layers


@dataclass
class _Unet:
    """Adds blocks to layers. `depths` are the transformer blocks of each level's attentions."""

    layers: Layers
    config: Config
    time: int
    depths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        depths = self.config.get("transformer_layers_per_block", 1)
        levels = len(self.config["block_out_channels"])
        self.depths = [depths] * levels if isinstance(depths, int) else list(depths)

    def down(self, widths: list[int]) -> list[int]:
        """The way down; returns the widths that the way up meets again."""
        each, before = self.config.get("layers_per_block", 2), widths[0]
        skips = [before]
        for level, (width, kind) in enumerate(
            zip(widths, self.config["down_block_types"], strict=True)
        ):
            block = f"unet.down_blocks.{level}"
            for index in range(each):
                self.resnet(f"{block}.resnets.{index}", before, width)
                if "CrossAttn" in kind:
                    self.attention(f"{block}.attentions.{index}", width, self.depths[level])
                before = width
                skips.append(width)
            if level < len(widths) - 1:
                self.layers.add(f"{block}.downsamplers.0.conv", width, width, 3, 3)
                skips.append(width)
        return skips

    def up(self, widths: list[int], skips: list[int]) -> None:
        each, before = self.config.get("layers_per_block", 2) + 1, widths[-1]
        levels = list(
            zip(widths[::-1], self.config["up_block_types"], self.depths[::-1], strict=True)
        )
        for level, (width, kind, depth) in enumerate(levels):
            block = f"unet.up_blocks.{level}"
            for index in range(each):
                self.resnet(f"{block}.resnets.{index}", before + skips.pop(), width)
                if "CrossAttn" in kind:
                    self.attention(f"{block}.attentions.{index}", width, depth)
                before = width
            if level < len(widths) - 1:
                self.layers.add(f"{block}.upsamplers.0.conv", width, width, 3, 3)

    def resnet(self, path: str, inputs: int, width: int) -> None:
        self.layers.norms(inputs, width)
        self.layers.add(f"{path}.conv1", width, inputs, 3, 3)
        self.layers.add(f"{path}.time_emb_proj", width, self.time)
        self.layers.add(f"{path}.conv2", width, width, 3, 3)
        if inputs != width:
            self.layers.add(f"{path}.conv_shortcut", width, inputs, 1, 1)

    def attention(self, path: str, width: int, depth: int) -> None:
        pixels = () if self.config.get("use_linear_projection") else (1, 1)
        self.layers.norms(width)
        self.layers.add(f"{path}.proj_in", width, width, *pixels)
        for index in range(depth):
            block = f"{path}.transformer_blocks.{index}"
            self.layers.norms(width, width, width)
            for name, inputs in _projections(width, self.config["cross_attention_dim"]):
                self.layers.add(f"{block}.{name}", width, inputs, bias=name.endswith("out.0"))
            self.layers.add(f"{block}.ff.net.0.proj", 8 * width, width)
            self.layers.add(f"{block}.ff.net.2", width, 4 * width)
        self.layers.add(f"{path}.proj_out", width, width, *pixels)


def _projections(width: int, text: int) -> Iterator[tuple[str, int]]:
    for attention, read in (("attn1", width), ("attn2", text)):
        yield f"{attention}.to_q", width
        yield f"{attention}.to_k", read
        yield f"{attention}.to_v", read
        yield f"{attention}.to_out.0", width


def _size(shape: Shape) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


# What the released models are, for those that are not downloaded yet.
_WELL_KNOWN = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Family.SD1,
    "runwayml/stable-diffusion-v1-5": Family.SD1,
    "CompVis/stable-diffusion-v1-": Family.SD1,
    "stabilityai/stable-diffusion-2": Family.SD2,
    "stabilityai/stable-diffusion-xl-base-": Family.SDXL,
}
_SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_UNETS: dict[Family, Config] = {
    Family.SD1: {**_SD, "cross_attention_dim": 768},
    Family.SD2: {**_SD, "cross_attention_dim": 1024, "use_linear_projection": True},
    Family.SDXL: {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
           "projection_dim": 1280}  # fmt: skip
_TEXTS: dict[Family, Mapping[str, Config]] = {
    Family.SD1: {"text_encoder": _CLIP_L},
    Family.SD2: {"text_encoder": _CLIP_H},
    Family.SDXL: {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
}
