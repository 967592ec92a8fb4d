"""LoHa, LoKr, full differences and DoRA: ΔW against formulas and PEFT, and as plain LoRA."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.trainer.adapter.families import relative
from trainer.adapter.adapter import LowRank, load
from trainer.adapter.algebra import Cut
from trainer.adapter.assemble import assemble
from trainer.adapter.kinds import DoRA, Full, Layer, LoHa, LoKr
from trainer.adapter.plain import to_low_rank
from trainer.errors import AdapterError

ROLES = (
    ("down", "up", "mid", "dora_scale", "magnitude"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("diff", "alpha", "dora_scale"),
)
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
CONV_PATH = "unet.down_blocks.0.resnets.0.conv1"


@pytest.fixture(autouse=True, scope="module")
def seeded() -> None:
    torch.manual_seed(0)


class Pair(nn.Module):
    """A linear layer and a convolution, for PEFT to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(12, 20)
        self.conv1 = nn.Conv2d(8, 12, 3)


def lora_parts() -> dict[str, Tensor]:
    return {"down": torch.randn(3, 8), "up": torch.randn(6, 3), "alpha": torch.tensor(2.0)}


def rebuilt(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """LyCORIS' `rebuild_tucker`."""
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a).contiguous()


def kronecker(small: Tensor, large: Tensor) -> Tensor:
    return torch.kron(small[:, :, None, None], large.contiguous())


def of_kind(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors by role as LyCORIS writes them, for a weight [6, 4, 3, 3], and ΔW by its formulas."""

    def number(value: float) -> Tensor:
        return torch.tensor(value)

    r = torch.randn
    match name:
        case "locon":
            down, up = r(3, 4, 3, 3), r(6, 3, 1, 1)
            delta = 2 / 3 * (up.flatten(1) @ down.flatten(1)).reshape(6, 4, 3, 3)
            return {"down": down, "up": up, "alpha": number(2.0)}, delta
        case "locon-mid":
            down, mid, up = r(3, 4, 1, 1), r(3, 3, 3, 3), r(6, 3, 1, 1)
            delta = 0.5 * torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
            return {"down": down, "mid": mid, "up": up, "alpha": number(1.5)}, delta
        case "loha":
            a1, b1, a2, b2 = r(6, 2), r(2, 36), r(6, 2), r(2, 36)
            delta = 0.5 * ((a1 @ b1) * (a2 @ b2)).reshape(6, 4, 3, 3)
            parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
            return {**parts, "alpha": number(1.0)}, delta
        case "loha-tucker":
            t1, a1, b1, t2, a2, b2 = (
                r(2, 2, 3, 3),
                r(2, 6),
                r(2, 4),
                r(2, 2, 3, 3),
                r(2, 6),
                r(2, 4),
            )
            parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
            delta = rebuilt(t1, a1, b1) * rebuilt(t2, a2, b2)
            return {**parts, "hada_t1": t1, "hada_t2": t2}, delta
        case "lokr-whole":
            w1, w2 = r(2, 2), r(3, 2, 3, 3)
            ignored = number(7.0)
            return {"lokr_w1": w1, "lokr_w2": w2, "alpha": ignored}, kronecker(w1, w2)
        case "lokr":
            w1, a, b = r(2, 2), r(3, 2), r(2, 18)
            delta = 0.5 * kronecker(w1, (a @ b).reshape(3, 2, 3, 3))
            return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": number(1.0)}, delta
        case "lokr-tucker":
            w1_a, w1_b, core, a, b = r(2, 1), r(1, 2), r(2, 2, 3, 3), r(2, 3), r(2, 2)
            delta = 0.5 * kronecker(w1_a @ w1_b, rebuilt(core, a, b))
            parts = {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b, "lokr_w2_a": a, "lokr_w2_b": b}
            return {**parts, "lokr_t2": core, "alpha": number(1.0)}, delta
    full = r(6, 4, 3, 3)
    return {"diff": full}, full


NAMES = ("locon", "locon-mid", "loha", "loha-tucker", "lokr-whole", "lokr", "lokr-tucker", "full")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_has_the_weight_that_its_formula_gives(name: str) -> None:
    parts, wanted = of_kind(name)
    layer = assemble(parts, kernel=3)
    assert not isinstance(layer, DoRA)
    assert layer.delta().shape == wanted.shape
    assert relative(layer.delta(), wanted) < 1e-6
    plain, lost, energy = to_low_rank(layer)
    assert relative(plain.delta(), wanted) < 1e-5
    assert lost < 1e-10 * energy
    assert energy == pytest.approx(float(wanted.square().sum()), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_every_kind_round_trip_as_plain_adapters(tmp_path: Path, name: str) -> None:
    """Read, made plain, written, read: the same ΔW."""
    from trainer.adapter.adapter import save

    parts, wanted = of_kind(name)
    file = tmp_path / "a.safetensors"
    endings = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    save_file(
        {f"{CONV}.{endings.get(role, role)}": tensor for role, tensor in parts.items()},
        file,
        metadata={"ss_base_model_version": "sd_v1"},
    )
    loaded = load(file)
    assert not loaded.unused
    save(loaded.adapter, file, loaded.header, precision=torch.float32)
    assert relative(load(file).adapter[CONV_PATH].delta(), wanted) < 1e-5


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr-whole"])
def test_peft_agrees(kind: str) -> None:
    config = {
        "LoHa": peft.LoHaConfig(r=2, alpha=3, target_modules=["to_q", "conv1"], init_weights=False),
        "LoKr": peft.LoKrConfig(
            r=1, alpha=3, target_modules=["to_q", "conv1"], init_weights=False, decompose_both=True
        ),
        "LoKr-whole": peft.LoKrConfig(
            r=64, alpha=64, target_modules=["to_q", "conv1"], init_weights=False
        ),
    }[kind]
    model = peft.get_peft_model(Pair(), config)  # type: ignore[arg-type]
    state = peft.get_peft_model_state_dict(model)
    for name, kernel in (("to_q", 1), ("conv1", 3)):
        prefix = f"base_model.model.{name}."
        parts = {
            key.removeprefix(prefix): tensor
            for key, tensor in state.items()
            if key.startswith(prefix)
        }
        layer = assemble(parts, kernel=kernel, alpha=float(config.alpha))
        wanted = getattr(model.base_model.model, name).get_delta_weight("default").detach()
        assert isinstance(layer, LoHa | LoKr)
        assert relative(layer.delta().reshape(wanted.shape), wanted) < 1e-5


@pytest.mark.parametrize("name", ["to_q", "conv1"])
def test_dora_on_the_output_axis_is_peft_s(name: str) -> None:
    base = Pair()
    weight = getattr(base, name).weight.detach().clone()
    config = peft.LoraConfig(
        r=2, lora_alpha=3, use_dora=True, init_lora_weights=False, target_modules=[name]
    )
    model = peft.get_peft_model(base, config)  # type: ignore[arg-type]
    adapted = getattr(model.base_model.model, name)
    for parameter in adapted.lora_magnitude_vector.parameters():
        parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
    layer = assemble(
        {
            "down": adapted.lora_A["default"].weight.detach(),
            "up": adapted.lora_B["default"].weight.detach(),
            "magnitude": adapted.lora_magnitude_vector["default"].weight.detach(),
        },
        kernel=1,
        alpha=3.0,
    )
    assert isinstance(layer, DoRA)
    model.merge_adapter()
    wanted = adapted.weight.detach() - weight
    assert relative(layer.delta(weight), wanted) < 1e-5


def test_dora_on_the_input_axis_gives_each_input_its_magnitude() -> None:
    weight = torch.randn(6, 8)
    magnitude = torch.rand(1, 8) + 0.5
    layer = assemble({**lora_parts(), "dora_scale": magnitude}, kernel=1)
    assert isinstance(layer, DoRA)
    assert torch.allclose((weight + layer.delta(weight)).norm(dim=0), magnitude[0], atol=1e-5)


def test_dora_at_the_base_s_own_norms_is_plain_lora_of_a_zero_delta() -> None:
    weight = torch.randn(6, 8)
    parts = {**lora_parts(), "up": torch.zeros(6, 3)}
    layer = assemble({**parts, "dora_scale": weight.norm(dim=1, keepdim=True)}, kernel=1)
    assert isinstance(layer, DoRA)
    assert layer.delta(weight).abs().max() < 1e-6


@settings(max_examples=400)
@given(
    st.dictionaries(
        st.sampled_from([role for kind in ROLES for role in kind]),
        st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=4),
    ),
    st.sampled_from([1, 3]),
)
def test_any_tensors_make_a_layer_or_a_clear_error(
    shapes: dict[str, list[int]], kernel: int
) -> None:
    check_any({role: torch.ones(shape) for role, shape in shapes.items()}, kernel)


@settings(max_examples=400)
@given(st.sampled_from(ROLES), st.data())
def test_tensors_of_one_kind_make_a_layer_or_a_clear_error(
    roles: tuple[str, ...], data: st.DataObject
) -> None:
    size = st.sampled_from([2, 2, 2, 3])
    parts = {}
    for role in roles:
        dims = data.draw(st.sampled_from([None, 2, 2, 2, 4]), label=role)
        if dims is not None:
            parts[role] = torch.ones([data.draw(size) for _ in range(dims)])
    check_any(parts, data.draw(st.sampled_from([1, 3])))


def check_any(parts: dict[str, Tensor], kernel: int) -> None:
    """A layer whose ΔW has the shape it says, and exactly the same as plain factors."""
    try:
        layer = assemble(parts, kernel=kernel)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    if isinstance(layer, DoRA):
        assert layer.delta(torch.ones(layer.direction.shape)).shape == layer.direction.shape
        return
    delta = layer.delta()
    assert delta.shape == layer.shape
    assert torch.allclose(to_low_rank(layer)[0].delta(), delta, atol=1e-3, rtol=1e-3)


def test_dora_files_need_their_base_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(
        {
            f"{LINEAR}.lora_down.weight": torch.randn(2, 8),
            f"{LINEAR}.lora_up.weight": torch.randn(6, 2),
            f"{LINEAR}.dora_scale": torch.rand(1, 8),
        },
        file,
    )
    loaded = load(file)
    assert loaded.kinds == {"DoRA": 1}
    with pytest.raises(AdapterError, match="DoRA"):
        _ = loaded.adapter
    (path, layer), weight = next(iter(loaded.layers.items())), torch.randn(6, 8)
    with pytest.raises(AdapterError, match="another base"):
        loaded.plain(base_weights={path: torch.randn(6, 9)})
    assert isinstance(layer, DoRA)
    adapter, error = loaded.plain(base_weights={path: weight})
    assert relative(adapter[path].delta(), layer.delta(weight)) < 1e-5
    assert error.total < 1e-6
    cut, error = loaded.plain(Cut(rank=3), {path: weight})
    wanted = layer.delta(weight)
    assert error.total == pytest.approx(relative(cut[path].delta(), wanted), abs=1e-5)


def test_the_rank_of_a_hadamard_product_is_the_product_of_ranks() -> None:
    layer = LoHa(torch.randn(40, 3), torch.randn(3, 50), torch.randn(40, 3), torch.randn(3, 50), 1)
    plain, _, _ = to_low_rank(layer)
    assert plain.rank == 9
    assert torch.linalg.matrix_rank(layer.delta()) == 9


@pytest.mark.parametrize(
    "layer",
    [
        LoHa(torch.randn(9, 4), torch.randn(4, 9), torch.randn(9, 4), torch.randn(4, 9), 0.5),
        LoKr(torch.randn(4, 4), torch.randn(5, 3), torch.randn(3, 6), 0.5),
        Full(torch.randn(12, 7)),
        LowRank(torch.randn(4, 9), torch.randn(8, 4), 3.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_cut_loses_the_tail_of_the_spectrum(layer: Layer) -> None:
    assert not isinstance(layer, DoRA)
    plain, lost, energy = to_low_rank(layer, Cut(rank=2))
    values = torch.linalg.svdvals(layer.delta().double())
    assert plain.rank == 2
    assert lost == pytest.approx(float(values[2:].square().sum()), rel=1e-5)
    assert energy == pytest.approx(float(values.square().sum()), rel=1e-5)
    left = (plain.delta() - layer.delta()).double().square().sum()
    assert float(left) == pytest.approx(lost, rel=1e-5)
