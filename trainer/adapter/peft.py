"""The scale of PEFT's adapters, which is in a configuration and not among the tensors. No torch.

diffusers writes it into the header under `lora_adapter_metadata`, with the part in front of every
name (`unet.lora_alpha`); PEFT into `adapter_config.json` beside `adapter_model.safetensors`.
Without either the scale is 1, as every tool takes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import AdapterError

METADATA_KEY = "lora_adapter_metadata"
_PEFT_FILE, _CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_ALPHAS = {"lora_alpha", "alpha"}  # LoRA's, and that of the other kinds
# Ways to begin that also change the base, without which the factors mean nothing.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LITERAL = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True)
class Scaling:
    """How PEFT scales the layers of one part: alpha / rank, or alpha / √rank when `rank_stable`.

    Attributes:
        patterns: alphas of single layers, by the end of their path.
        rank_stable: rank-stabilised LoRA (Kalajdzievski, 2023, arXiv:2312.03732).
    """

    alpha: float
    patterns: Mapping[str, float]
    rank_stable: bool = False

    def effective_alpha(self, module: str, rank: int) -> float:
        """The alpha which, divided by the rank, gives the scale of a layer (path without part)."""
        alpha = next(
            (value for name, value in self.patterns.items() if _ends_in(module, name)), self.alpha
        )
        return alpha * math.sqrt(rank) if self.rank_stable else alpha


def scalings(path: Path, metadata: Mapping[str, str]) -> dict[str, Scaling]:
    """The scaling of each part of the pipeline that a file's configuration mentions.

    The key "" stands for every part that has none of its own.

    Raises:
        AdapterError: if there is a configuration that cannot be understood, since guessing would
            give the adapter another strength than its author's.
    """
    if METADATA_KEY in metadata:
        tree = _tree(f"the {METADATA_KEY} of {path}", metadata[METADATA_KEY])
        return {
            part: _scaling(path, config)
            for part, config in _by_part(tree).items()
            if _ALPHAS & config.keys()
        }
    config_file = path.with_name(_CONFIG_FILE)
    if path.name != _PEFT_FILE or not config_file.is_file():
        return {}
    try:
        text = config_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise AdapterError(f"{config_file} cannot be read.", "Check the file.") from None
    config = _tree(str(config_file), text)
    return {"": _scaling(config_file, config)} if _ALPHAS & config.keys() else {}


def _by_part(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for key, value in tree.items():
        part, dot, name = key.partition(".")
        parts.setdefault(part if dot else "", {})[name if dot else key] = value
    return parts


def _scaling(path: Path, config: Mapping[str, Any]) -> Scaling:
    alpha = config["lora_alpha"] if "lora_alpha" in config else config["alpha"]
    patterns = config.get("alpha_pattern") or {}
    if not _is_number(alpha) or not isinstance(patterns, dict):
        raise AdapterError(f"{path} states its lora_alpha or alpha_pattern in an unknown way.")
    if str(start := config.get("init_lora_weights")).lower().startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{path} is for a base that was changed when its training began ({start}).",
            "Save it from PEFT with path_initial_model_for_weight_conversion, as a plain LoRA.",
        )
    for name, value in patterns.items():
        if not _LITERAL.fullmatch(name) or not _is_number(value):
            raise AdapterError(f"{path} has an alpha_pattern that is not understood: {name!r}.")
    return Scaling(float(alpha), patterns, bool(config.get("use_rslora")))


def _tree(name: str, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise AdapterError(f"{name} is not a JSON object.", "Get the file again.")
    return tree


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _ends_in(module: str, name: str) -> bool:
    """PEFT's rule: the whole path from a caret on, else its end after a dot."""
    if name.startswith("^"):
        return module == name[1:]
    return module == name or module.endswith(f".{name}")
