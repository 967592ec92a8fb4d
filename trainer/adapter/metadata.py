"""What adapter files say of themselves, written to and read from the safetensors header. No torch.

Three vocabularies side by side: `ss_*` (kohya's, read by A1111, Forge and training tools),
`modelspec.*` (Stability's model metadata 1.0.1) and `atelier.*` (ours, the only one read back in
full, so that a file explains how it was made).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal

from trainer.adapter.recognise import family_in_metadata
from trainer.model.bases import EMBEDDED, Family, is_on_hub

FORMAT_VERSION = 1

_KOHYA_BASES = {
    (Family.SD1, "epsilon"): "sd_v1",
    (Family.SD1, "v_prediction"): "sd_v1",
    (Family.SD2, "epsilon"): "sd_v2",
    (Family.SD2, "v_prediction"): "sd_v2_v",
    (Family.SDXL, "epsilon"): "sdxl_base_v1-0",
    (Family.SDXL, "v_prediction"): "sdxl_base_v1-0",
}
_ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
}
# Whose names a file's layers have, in modelspec's words.
_ORIGINAL, _DIFFUSERS = "https://github.com/Stability-AI/generative-models", "diffusers"
_DEFAULT_RESOLUTION = {Family.SD1: 512, Family.SD2: 768, Family.SDXL: 1024}
_MOST_TAGS = 5000
# By kind, as LyCORIS states its options; other kinds are their own algorithm.
_NETWORK_ARGS: dict[str, dict[str, str]] = {
    "lora": {},
    "dora": {"algo": "lora", "dora_wd": "True"},
}

Tags = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Header:
    """All that a file says of the adapter in it.

    Attributes:
        name: shown by the tools that load the file.
        rank, alpha, kind: of most layers; each layer's own are in the tensors.
        trigger_words: words that call the adapter in a prompt.
        base: the reference it was trained on (`embedded`, a hub id, a folder or a file).
        base_hash: SHA-256 of the base's weights, in hex.
        resolution: side of the training images in pixels.
        images, steps: number of training images, and optimizer steps done.
        settings: the run's settings as JSON, or of a composed adapter its recipe.
        created: when it was made, in UTC.
        tags: how often each tag occurs in the captions, by dataset.
        folders: the datasets' folders.
        other: further `metadata`, kept as it is (of a file made by another program).
    """

    name: str
    family: Family | None
    rank: int | None = None
    alpha: float | None = None
    kind: str = "lora"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    trigger_words: tuple[str, ...] = ()
    base: str | None = None
    base_hash: str | None = None
    resolution: int | None = None
    images: int | None = None
    steps: int | None = None
    seed: int | None = None
    settings: str | None = None
    description: str = ""
    author: str = ""
    license: str = ""
    created: datetime | None = None
    tags: Tags = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict)

    def without_private_parts(self) -> Header:
        """The same without what could leak: paths, captions and tags."""
        return replace(
            self,
            base=_public_base(self.base),
            settings=_public_settings(self.settings),
            tags={},
            folders=(),
            other={},
        )

    def to_metadata(self, *, private: bool = False) -> dict[str, str]:
        """The header as safetensors wants it: flat, text to text. Hashes are added by `save`.

        With `private`, paths, captions and tags are left out.
        """
        header = self.without_private_parts() if private else self
        created = header.created or datetime.now(UTC)
        values = {**_kohya(header, created), **_modelspec(header, created), **_own(header, created)}
        return {**header.other, **{key: text for key, text in values.items() if text is not None}}

    @staticmethod
    def from_metadata(metadata: Mapping[str, str], *, name: str = "") -> Header:
        """The header of any file: in full if it is ours, else what others' vocabularies tell.

        `name` is used when the file says none. Values that make no sense are taken as absent.
        """
        get = metadata.get
        family = get("atelier.family")
        known = family in tuple(Family)
        kohya_v = get("ss_base_model_version", "").lower().startswith("sd_v2_v")
        v_prediction = "v" in (get("modelspec.prediction_type") or "")[:1] or kohya_v
        triggers = _strings(get("atelier.trigger_words"))
        if not triggers and (phrase := get("modelspec.trigger_phrase")):
            triggers = (phrase,)
        return Header(
            name=get("ss_output_name") or get("modelspec.title") or name,
            family=Family(family) if known and family else family_in_metadata(metadata),
            rank=_integer(get("ss_network_dim")),
            alpha=_number(get("ss_network_alpha")),
            kind=get("atelier.kind", "lora"),
            prediction_type="v_prediction" if v_prediction else "epsilon",
            trigger_words=triggers,
            base=get("atelier.base") or get("ss_sd_model_name"),
            base_hash=get("atelier.base_hash") or get("ss_new_sd_model_hash"),
            resolution=_resolution(get("atelier.resolution") or get("ss_resolution")),
            images=_integer(get("ss_num_train_images")),
            steps=_integer(get("ss_steps")),
            seed=_integer(get("ss_seed")),
            settings=get("atelier.settings"),
            description=get("modelspec.description", ""),
            author=get("modelspec.author", ""),
            license=get("modelspec.license", ""),
            created=_date(get("modelspec.date")),
            tags=_tags(get("ss_tag_frequency")),
            folders=_strings(get("atelier.folders")),
            other={key: text for key, text in metadata.items() if key not in _written()},
        )


def _kohya(header: Header, created: datetime) -> dict[str, str | None]:
    base = _KOHYA_BASES.get((header.family, header.prediction_type)) if header.family else None
    return {
        "ss_output_name": header.name,
        "ss_base_model_version": base,
        "ss_v2": str(header.family is Family.SD2),
        "ss_network_module": "networks.lora" if header.kind == "lora" else "lycoris.kohya",
        "ss_network_dim": _text(header.rank),
        "ss_network_alpha": _text(header.alpha),
        "ss_network_args": json.dumps(_NETWORK_ARGS.get(header.kind, {"algo": header.kind})),
        "ss_sd_model_name": PurePath(header.base).name if header.base else None,
        "ss_new_sd_model_hash": header.base_hash,
        "ss_resolution": f"({header.resolution}, {header.resolution})"
        if header.resolution
        else None,
        "ss_num_train_images": _text(header.images),
        "ss_steps": _text(header.steps),
        "ss_seed": _text(header.seed),
        "ss_tag_frequency": _tag_frequency(header.tags),
        "ss_training_started_at": str(created.timestamp()),
    }


def _tag_frequency(tags: Tags) -> str | None:
    """The most frequent tags: half a million have made headers that no tool could read."""
    if not tags:
        return None
    most = {
        folder: dict(sorted(counts.items(), key=lambda item: -item[1])[:_MOST_TAGS])
        for folder, counts in tags.items()
    }
    return json.dumps(most, ensure_ascii=False)


def _modelspec(header: Header, created: datetime) -> dict[str, str | None]:
    base = _KOHYA_BASES.get((header.family, header.prediction_type)) if header.family else None
    side = header.resolution or (_DEFAULT_RESOLUTION[header.family] if header.family else None)
    v_prediction = header.prediction_type == "v_prediction"
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _ARCHITECTURES[base] if base else None,
        "modelspec.implementation": _ORIGINAL if header.family is Family.SDXL else _DIFFUSERS,
        "modelspec.title": header.name,
        "modelspec.resolution": f"{side}x{side}" if side else None,
        "modelspec.date": created.isoformat(timespec="seconds"),
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
        "modelspec.trigger_phrase": ", ".join(header.trigger_words) or None,
        "modelspec.description": header.description or None,
        "modelspec.author": header.author or None,
        "modelspec.license": header.license or None,
    }


def _own(header: Header, created: datetime) -> dict[str, str | None]:
    return {
        "atelier.version": str(FORMAT_VERSION),
        "atelier.family": header.family.value if header.family else None,
        "atelier.kind": None if header.kind == "lora" else header.kind,
        "atelier.base": header.base,
        "atelier.base_hash": header.base_hash,
        "atelier.resolution": _text(header.resolution),
        "atelier.trigger_words": _list(header.trigger_words),
        "atelier.folders": _list(header.folders),
        "atelier.settings": header.settings,
    }


@functools.cache
def _written() -> frozenset[str]:
    """Every key that a Header writes by itself, or that `save` computes anew."""
    header, created = Header("", None), datetime.now(UTC)
    own = {**_kohya(header, created), **_modelspec(header, created), **_own(header, created)}
    return frozenset(own) | {
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
        "lora_adapter_metadata",
        "format",
    }


def _public_base(base: str | None) -> str | None:
    if base is None or base == EMBEDDED or is_on_hub(base):
        return base
    return PurePath(base).name


def _public_settings(settings: str | None) -> str | None:
    """Settings without the values that are paths or texts of one's own."""
    tree = _json(settings)
    if not isinstance(tree, dict):
        return None
    removals: dict[str, dict[str, Any]] = {
        "dataset": {"folder": None},
        "samples": {"prompts": [], "negative_prompt": ""},
        "adapter": {"start_from": None},
    }
    for section, values in removals.items():
        part = tree.get(section)
        if isinstance(part, dict):
            part.update({key: value for key, value in values.items() if key in part})
    base = tree.get("base")
    if isinstance(base, dict) and isinstance(base.get("model"), str):
        base["model"] = _public_base(base["model"])
    return json.dumps(tree, ensure_ascii=False)


def _text(value: float | None) -> str | None:
    """16.0 as `16`, so that every reader of integers accepts it."""
    if value is None:
        return None
    return str(int(value)) if float(value).is_integer() else str(value)


def _list(values: tuple[str, ...]) -> str | None:
    return json.dumps(values, ensure_ascii=False) if values else None


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _strings(text: str | None) -> tuple[str, ...]:
    values = _json(text)
    return tuple(str(value) for value in values) if isinstance(values, list) else ()


def _tags(text: str | None) -> Tags:
    tree = _json(text)
    if not isinstance(tree, dict):
        return {}
    return {
        str(folder): {str(tag): count for tag, count in counts.items() if isinstance(count, int)}
        for folder, counts in tree.items()
        if isinstance(counts, dict)
    }


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and abs(value) < float("inf") else None


def _integer(text: str | None) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value.is_integer() else None


def _resolution(text: str | None) -> int | None:
    digits = re.search(r"\d{1,5}", text or "")
    return int(digits[0]) if digits else None


def _date(text: str | None) -> datetime | None:
    try:
        date = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return date.replace(tzinfo=UTC) if date and date.tzinfo is None else date
