"""The samplers people use, by diffusers' schedulers. Each follows what the base predicts (noise or
velocity) and its noise schedule, zero terminal SNR included (Lin et al., 2023, arXiv:2305.08891).

Nothing heavy is imported until a sampler is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Sampler = Literal["ddim", "euler", "euler-a", "dpm++-2m-karras", "unipc"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


@dataclass(frozen=True)
class Kind:
    """A sampler: diffusers' class, what makes it this one, and its name in A1111 and Forge."""

    scheduler: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adds_noise: bool = False  # at every step, not only before the first


_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
        "use_karras_sigmas": True, "thresholding": False}  # fmt: skip
_UNIPC = {"solver_order": 2, "solver_type": "bh2", "thresholding": False}
KINDS: Mapping[Sampler, Kind] = {
    # Song et al., 2020, arXiv:2010.02502. Clipping is for models of pixels.
    "ddim": Kind("DDIMScheduler", "DDIM", {"clip_sample": False, "thresholding": False}),
    # Algorithm 2 of Karras et al., 2022, arXiv:2206.00364, without churn.
    "euler": Kind("EulerDiscreteScheduler", "Euler"),
    "euler-a": Kind("EulerAncestralDiscreteScheduler", "Euler a", adds_noise=True),
    # Lu et al., 2022, arXiv:2211.01095, at the noise levels of Karras et al.
    "dpm++-2m-karras": Kind("DPMSolverMultistepScheduler", "DPM++ 2M Karras", _DPM),
    # Zhao et al., 2023, arXiv:2302.04867.
    "unipc": Kind("UniPCMultistepScheduler", "UniPC", _UNIPC),
}
# Of another sampler's configuration, these would make a different one of ours.
_FOREIGN = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
            "use_flow_sigmas", "algorithm_type", "solver_order", "solver_type", "sigma_min",
            "sigma_max", "final_sigmas_type", "euler_at_final", "lower_order_final",
            "interpolation_type", "timestep_type", "variance_type", "lambda_min_clipped",
            "disable_corrector", "predict_x0")  # fmt: skip


def scheduler_of(sampler: Sampler, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler for a base whose own scheduler is configured by `config`."""
    import diffusers

    kind = KINDS[sampler]
    noise = {name: value for name, value in config.items() if name not in _FOREIGN}
    return getattr(diffusers, kind.scheduler).from_config({**noise, **kind.options})
