"""The subcommands about adapter files, run as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.trainer.adapter import families
from trainer import cli
from trainer.adapter.adapter import LowRank, load, save
from trainer.adapter.header import Header, read_header
from trainer.cli_adapters import Weighted, parse_weighted
from trainer.errors import UserError
from trainer.model.bases import Family

A, B = (families.random_adapter(families.SMALL, rank=rank, seed=rank) for rank in (3, 4))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the adapters `a` and `b` in it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, adapter in (("a", A), ("b", B)):
        header = Header(name, Family.SD1, base="embedded", trigger_words=(f"{name}word",))
        save(adapter, Path(f"{name}.safetensors"), header, precision=torch.float32)
    return tmp_path


def run(command: str) -> int:
    return cli.run(command.split())


def sum_of(weights: tuple[float, float], path: str) -> torch.Tensor:
    return weights[0] * A[path].delta() + weights[1] * B[path].delta()


def check_against(file: str, weights: tuple[float, float], tolerance: float = 1e-5) -> None:
    for path, layer in load(Path(file)).adapter.items():
        assert families.relative(layer.delta(), sum_of(weights, path)) < tolerance


def test_compose_writes_the_weighted_sum(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("compose a.safetensors=0.5 b.safetensors=-2 --precision fp32 --output m.safetensors")
        == 0
    )
    check_against("m.safetensors", (0.5, -2))
    assert "exact" in capsys.readouterr().out
    header = read_header(Path("m.safetensors")).header
    assert header.trigger_words == ("aword", "bword")
    assert (header.family, header.base, header.name) == (Family.SD1, "embedded", "m")
    recipe = json.loads(header.settings or "")["composed"]
    assert [one["weight"] for one in recipe["adapters"]] == [0.5, -2]


def test_a_weight_of_one_need_not_be_said(folder: Path) -> None:
    assert run("compose a.safetensors b.safetensors --precision fp32 --output m.safetensors") == 0
    check_against("m.safetensors", (1, 1))


def test_blocks_can_be_weighed(folder: Path) -> None:
    assert run("compose a.safetensors b.safetensors=2 --block 2:unet=0 --block text_encoder=0.5 "
               "--precision fp32 --output m.safetensors") == 0  # fmt: skip
    for path, layer in load(Path("m.safetensors")).adapter.items():
        weights = (0.5, 1.0) if path.startswith("text") else (1.0, 0.0)
        assert families.relative(layer.delta(), sum_of(weights, path)) < 1e-5


def test_the_text_encoder_has_a_weight_of_its_own(folder: Path) -> None:
    assert run("compose a.safetensors=2:-0.5 b.safetensors --precision fp32 "
               "--output m.safetensors") == 0  # fmt: skip
    for path, layer in load(Path("m.safetensors")).adapter.items():
        weights = (-0.5 if path.startswith("text") else 2, 1.0)
        assert families.relative(layer.delta(), sum_of(weights, path)) < 1e-5


def test_blocks_can_be_listed(folder: Path) -> None:
    factors = ["0"] * 17
    factors[0], factors[1], factors[10] = "2", "0.5", "1"  # BASE, IN01, OUT05
    assert run(f"compose a.safetensors --block 1:{','.join(factors)} --precision fp32 "
               "--output m.safetensors") == 0  # fmt: skip
    made = load(Path("m.safetensors")).adapter
    assert len(made) == 3
    for path, layer in made.items():
        factor = 2 if path.startswith("text") else 0.5 if "down_blocks.0" in path else 1
        assert families.relative(layer.delta(), factor * A[path].delta()) < 1e-5


def test_svd_and_resize_print_the_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("compose a.safetensors b.safetensors --method svd --rank 5 --output m.safetensors") == 0
    )
    said = capsys.readouterr().out
    assert read_header(Path("m.safetensors")).rank == 5
    printed = float(said.rpartition("relative error ")[2].rstrip(".\n"))
    made = load(Path("m.safetensors")).adapter
    lost = sum(float((made[path].delta() - sum_of((1, 1), path)).square().sum()) for path in A)
    whole = sum(float(sum_of((1, 1), path).square().sum()) for path in A)
    assert printed == pytest.approx((lost / whole) ** 0.5, rel=0.01)
    assert run("resize b.safetensors --energy 0.7 --output r.safetensors") == 0
    assert "relative error" in capsys.readouterr().out
    assert max(read_header(Path("r.safetensors")).ranks) < 4


def test_results_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compose a.safetensors b.safetensors=0.5 --output mix.safetensors --json") == 0
    exact = json.loads(capsys.readouterr().out)
    assert (exact["output"], exact["error"]) == ("mix.safetensors", None)
    assert run("resize mix.safetensors --rank 1 --output small.safetensors --json") == 0
    resized = json.loads(capsys.readouterr().out)
    assert resized["rank"] == "1"
    assert 0 < resized["error"] <= resized["worst_error"]
    assert run("convert a.safetensors --to diffusers --output d.safetensors --json") == 0
    assert json.loads(capsys.readouterr().out)["unused"] == []


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties", "magnitude"])
def test_other_methods(folder: Path, method: str) -> None:
    command = f"compose a.safetensors b.safetensors --method {method} --output m.safetensors"
    assert run(command) == 0
    assert read_header(Path("m.safetensors")).rank == 4
    first = Path("m.safetensors").read_bytes()
    assert run(command) == 0
    tensors = load(Path("m.safetensors")).adapter
    Path("n.safetensors").write_bytes(first)
    assert all(torch.equal(layer.up, load(Path("n.safetensors")).adapter[path].up)
               for path, layer in tensors.items())  # fmt: skip


def test_convert_there_and_back(folder: Path) -> None:
    assert run("convert a.safetensors --to diffusers --precision fp32 --output d.safetensors") == 0
    assert read_header(Path("d.safetensors")).form == "diffusers"
    assert run("convert d.safetensors --to kohya --precision fp32 --output k.safetensors") == 0
    found = read_header(Path("k.safetensors"))
    assert found.form == "kohya"
    assert found.header.trigger_words == ("aword",)
    check_against("k.safetensors", (1, 0))


def test_dora_is_converted_and_composed_with_its_base(
    folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(2, 32),
            f"{name}.lora_up.weight": torch.randn(32, 2),
            f"{name}.dora_scale": torch.rand(1, 32) + 0.5,
        },
        folder / "dora.safetensors",
    )
    command = "convert dora.safetensors --to kohya --family sd1 --output k.safetensors"
    assert run(command) == 2
    assert "DoRA" in capsys.readouterr().err
    assert run(f"{command} --precision fp32 --base {tiny_base}") == 0
    from trainer.adapter.base_weights import read_weights
    from trainer.adapter.kinds import DoRA

    layer = load(folder / "dora.safetensors").layers[path]
    assert isinstance(layer, DoRA)
    wanted = layer.delta(read_weights(tiny_base, [path])[path])
    assert families.relative(load(Path("k.safetensors")).adapter[path].delta(), wanted) < 1e-5
    for command, factor in (("compose dora.safetensors=-0.5", -0.5), ("resize dora.safetensors "
                            "--energy 1", 1)):  # fmt: skip
        assert run(f"{command} --family sd1 --precision fp32 --base {tiny_base} "
                   "--output m.safetensors") == 0  # fmt: skip
        made = load(Path("m.safetensors")).adapter[path].delta()
        assert families.relative(made, factor * wanted) < 1e-5


def test_what_is_not_understood_is_told_by_every_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({**load_file("a.safetensors"), "lora_unet_norm.w_norm": torch.ones(3)},
              "odd.safetensors")  # fmt: skip
    for command in (
        "convert odd.safetensors --to kohya --output m.safetensors",
        "resize odd.safetensors --rank 1 --output m.safetensors",
        "compose odd.safetensors b.safetensors --output m.safetensors",
        "compare odd.safetensors b.safetensors --json",
    ):
        assert run(f"{command} --family sd1" if "--output" in command else command) == 0
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "1 tensors are not understood and left out, such as lora_unet_norm.w_norm" in said
    assert run("inspect odd.safetensors --json") == 0
    assert json.loads(capsys.readouterr().out)["unused"] == ["lora_unet_norm.w_norm"]


def test_inspect_tells_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect a.safetensors --json") == 0
    known = json.loads(capsys.readouterr().out)
    assert known["family"] == "sd1"
    assert known["ranks"] == {"3": len(A)}
    assert known["alphas"] == {"2": len(A)}
    assert known["targets"] == {"unet": 4, "text_encoder": 1}
    assert known["trigger_words"] == ["aword"]
    norm = sum(float(layer.delta().square().sum()) for layer in A.values()) ** 0.5
    assert known["norm"] == pytest.approx(norm, rel=1e-4)
    assert known["metadata"]["ss_network_dim"] == "3"
    assert run("inspect a.safetensors") == 0
    words = capsys.readouterr().out
    for expected in ("sd1", "aword", "unet.mid_block", "F32"):
        assert expected in words


def test_compare_says_draws_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare a.safetensors b.safetensors=0.5 --picture p.png") == 0
    said = capsys.readouterr().out
    assert "In their mix" in said
    assert "\n  unet.mid_block " in said
    assert Image.open("p.png").format == "PNG"
    assert run("compare a.safetensors b.safetensors a.safetensors --json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("inspect none.safetensors", "none.safetensors"),
        ("compose a.safetensors=much --output m.safetensors", "much"),
        ("compose a.safetensors=nan --output m.safetensors", "nan"),
        ("compose a.safetensors --method svd --output m.safetensors", "--rank"),
        ("compose a.safetensors --rank 3 --output m.safetensors", "--method svd"),
        ("compose a.safetensors --method ties --density 2 --output m.safetensors", "density"),
        ("compose a.safetensors --block 3:unet=1 --output m.safetensors", "3"),
        ("compose a.safetensors --block unet --output m.safetensors", "PREFIX=FACTOR"),
        ("compose a.safetensors --block unet.upblocks=1 --output m.safetensors", "unet.upblocks"),
        ("compose a.safetensors --block unet=much --output m.safetensors", "much"),
        ("compose a.safetensors --block 1,0,1 --output m.safetensors", "17 or 26"),
        ("compose a.safetensors=0 --output m.safetensors", "no layers"),
        ("resize a.safetensors --rank 0 --output m.safetensors", "rank"),
        ("resize a.safetensors --energy 1.5 --output m.safetensors", "energy"),
        ("resize a.safetensors --output m.safetensors", "--rank"),
        ("convert a.safetensors --to kohya --output m.ckpt", ".safetensors"),
        ("convert a.safetensors --to kohya --output none/m.safetensors", "none/m.safetensors"),
        ("compare a.safetensors", "two"),
        ("compare a.safetensors b.safetensors --picture none/p.png", "none/p.png"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, expected: str
) -> None:
    before = sorted(folder.iterdir())
    assert run(command) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_adapters_for_different_families_are_not_composed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(A, Path("x.safetensors"), Header("x", Family.SD2))
    assert run("compose a.safetensors x.safetensors --output m.safetensors") == 2
    assert "Stable Diffusion 2.x" in capsys.readouterr().err


def test_files_with_their_weights() -> None:
    assert parse_weighted("a.safetensors=0.5") == Weighted(Path("a.safetensors"), 0.5, 0.5)
    assert parse_weighted("a=b.safetensors") == Weighted(Path("a=b.safetensors"), 1.0, 1.0)
    assert parse_weighted("a=b.safetensors=-1") == Weighted(Path("a=b.safetensors"), -1.0, -1.0)
    assert parse_weighted("a.safetensors=-1:0.3") == Weighted(Path("a.safetensors"), -1.0, 0.3)
    assert parse_weighted("a.safetensors") == Weighted(Path("a.safetensors"), 1.0, 1.0)
    for wrong in ("inf", "0.5:", ":0.5", "1:2:3"):
        with pytest.raises(UserError, match="not a number"):
            parse_weighted(f"a.safetensors={wrong}")


def test_ranks_of_a_mix_with_itself_are_reduced_without_loss(folder: Path) -> None:
    assert run("compose a.safetensors a.safetensors --method svd --energy 1 --precision fp32 "
               "--output m.safetensors") == 0  # fmt: skip
    layers: dict[str, LowRank] = dict(load(Path("m.safetensors")).adapter)
    assert {layer.rank for layer in layers.values()} == {3}
    check_against("m.safetensors", (2, 0))
