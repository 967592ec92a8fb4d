"""Bases from the hub: downloaded once, then read from the cache, with or without a network."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.errors import BaseModelError
from trainer.model.bases import HubBase, read_config

# What a base is made of; nothing else is downloaded, least of all a pickle.
_WANTED = ["*.json", "*.txt", "*/*.json", "*/*.txt", "unet/*.safetensors", "vae/*.safetensors",
           "text_encoder/*.safetensors", "text_encoder_2/*.safetensors"]  # fmt: skip
_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.")
# The same weights again, in another precision or before averaging.
_HALF, _BEFORE_AVERAGING = "*.fp16.*", "*non_ema*"


def download(base: HubBase) -> Path:
    """The diffusers folder, or the single file, of a base on the hub.

    Raises:
        BaseModelError: if there is none, or it is not in the cache and the hub is out of reach.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = base.id if base.revision is None else f"{base.id}@{base.revision}"
    try:
        return _fetch(base)
    except RevisionNotFoundError:
        raise BaseModelError(
            f"The base {base.id} has no revision {base.revision!r} on the hub.",
            "Give a branch, a tag or a commit that its page lists.",
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"There is no base {name!r} on the hub, nor a folder of that name.",
            "Check the name; a gated model needs `hf auth login` first.",
        ) from None
    except LocalEntryNotFoundError as error:
        raise _out_of_reach(name, error) from None
    except EntryNotFoundError:
        raise BaseModelError(
            f"{name} on the hub has no file {base.file}.", "Check the name of the file."
        ) from None
    except OSError as error:
        raise _out_of_reach(name, error) from None


def _fetch(base: HubBase) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if base.file is not None:
        return Path(hf_hub_download(base.id, base.file, revision=base.revision))
    if (cached := _commit_in_cache(base)) is not None:
        return cached
    folder = Path(
        snapshot_download(
            base.id,
            revision=base.revision,
            allow_patterns=_WANTED,
            ignore_patterns=[_HALF, _BEFORE_AVERAGING],
        )
    )
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(
            f"{base.id} on the hub is not a diffusers model: it has no model_index.json.",
            f"Name the checkpoint in it: {base.id}/FILE.safetensors.",
        )
    if not any((folder / "unet").glob("*.safetensors")):  # there may be half precision alone
        snapshot_download(
            base.id,
            revision=base.revision,
            allow_patterns=_WANTED,
            ignore_patterns=[_BEFORE_AVERAGING],
        )
    return folder


def _commit_in_cache(base: HubBase) -> Path | None:
    """The folder of a commit that is in the cache as a whole: it never changes, so the hub need not
    be asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if base.revision is None or not _COMMIT.fullmatch(base.revision):
        return None
    try:
        folder = Path(snapshot_download(base.id, revision=base.revision, local_files_only=True))
        named = read_config(folder / "model_index.json")
    except (LocalEntryNotFoundError, BaseModelError):
        return None
    weights = all(_has_weights(folder / part) for part in _WITH_WEIGHTS if part in named)
    words = all((folder / part).is_dir() for part in ("tokenizer", "tokenizer_2") if part in named)
    return folder if weights and words else None


def _has_weights(part: Path) -> bool:
    """Whether a part is there, with all of the files into which large ones are split."""
    names = [file.name for file in part.glob("*.safetensors")]
    split = [found for name in names if (found := _SPLIT.search(name))]
    whole = all(sum(other[1] == one[1] for other in split) == int(one[1]) for one in split)
    return (part / "config.json").is_file() and bool(names) and whole


def _out_of_reach(name: str, error: Exception) -> BaseModelError:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    if HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return BaseModelError(
        f"The base {name!r} is neither a folder here nor in the cache, and the hub could not be "
        f"reached ({reason}).",
        "Check the name and the network, or use `embedded`.",
    )
