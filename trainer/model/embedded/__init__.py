"""The embedded base: a tiny Stable Diffusion that ships with the project.

`world` draws what the base knows, `build` trains it, `starter` draws the sample datasets of what it
does not know. Importing this package needs no torch.
"""

from pathlib import Path

__all__ = ["WEIGHTS"]

WEIGHTS = Path(__file__).parent / "weights"
"""The weights: a folder in the layout of a diffusers `StableDiffusionPipeline`."""
