"""Correctors start as the identity, stay within the action bounds, can learn, and are refused when they do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ACTIONS, BUDGET, LATENT, latents, tiny_model

from lib.config import ConfigError
from lib.correctors import CorrectorError, TwoTowerCorrector, load_corrector, save_corrector
from lib.planner import MPPI
from lib.speculation import SpeculativeController


def inputs(batch=64, seed=0):
    """Real and predicted latents, plans with some actions at their bounds, depths."""
    g = torch.Generator().manual_seed(seed)
    plan = (3 * torch.randn(batch, ACTIONS, generator=g)).clamp(-1, 1)
    return latents(batch, seed + 1), latents(batch, seed + 2), plan, torch.randint(1, 6, (batch,), generator=g)


def corrector(seed=0, scale=1.0, **sizes):
    """A corrector that is random in every layer."""
    torch.manual_seed(seed)
    made = TwoTowerCorrector(**{"latent_dim": LATENT, "action_dim": ACTIONS, "width": 8} | sizes)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * torch.randn_like(p))
    return made.eval()


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_corrector_executes_the_plan_exactly(seed):
    torch.manual_seed(seed)
    given = inputs(seed=seed)
    assert torch.equal(TwoTowerCorrector(LATENT, ACTIONS)(*given), given[2])


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_actions_stay_within_their_bounds(scale):
    given = inputs()
    action = corrector(scale=scale)(*given)
    assert torch.isfinite(action).all() and action.abs().max() <= 1
    assert (action - given[2]).abs().max() > 0.5  # it does act


def test_any_action_can_be_reached_from_any_other():
    made = corrector()
    with torch.no_grad():
        for head, bias in ((made.update_head, -50.0), (made.gate_head, 50.0)):
            head.weight.zero_(), head.bias.fill_(bias)
    z, z_pred, _, depth = inputs()
    assert torch.equal(made(z, z_pred, torch.ones(len(z), ACTIONS), depth), -torch.ones(len(z), ACTIONS))


@pytest.mark.parametrize("which", range(4))
def test_every_input_matters(which):
    given, other = list(inputs()), inputs(seed=10)
    before = corrector()(*given) - given[2]
    given[which] = other[which] if which < 3 else given[3] + 1
    after = corrector()(*given) - given[2]
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_it_can_overfit_a_tiny_set(seed):
    """Also where a plan lies at its bound: a clamp without gradient gets stuck there (error 0.1)."""
    torch.manual_seed(seed)
    given, target = inputs(8, seed), 1.8 * torch.rand(8, ACTIONS) - 0.9
    made = TwoTowerCorrector(LATENT, ACTIONS)
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(150):
        loss = (made(*given) - target).square().mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert (made.eval()(*given) - target).square().mean() < 1e-3


def test_a_saved_corrector_comes_back(tmp_path):
    made = corrector()
    save_corrector(made, tmp_path / "c.safetensors", "teacher-a")
    back = load_corrector(tmp_path / "c.safetensors", "teacher-a")
    assert torch.equal(back(*inputs()), made(*inputs()))
    assert not back.training and not any(p.requires_grad for p in back.parameters())


def test_another_teachers_corrector_is_refused(tmp_path):
    save_corrector(corrector(), tmp_path / "c.safetensors", "teacher-a")
    with pytest.raises(CorrectorError, match="another teacher; train it again"):
        load_corrector(tmp_path / "c.safetensors", "teacher-b")


def damage(path, how):
    """Make the file at `path` unusable."""
    tensors, shape = load_file(path), {"latent_dim": LATENT, "action_dim": ACTIONS, "width": 8}

    def save(**changes):
        about = {"arch": "two_tower", "shape": shape, "teacher": "t"} | changes
        save_file(tensors, path, {"corrector": json.dumps(about)})

    match how:
        case "cut short":
            path.write_bytes(path.read_bytes()[:-40])
        case "text":
            path.write_text("not weights")
        case "gone":
            path.unlink()
        case "no metadata":
            save_file(tensors, path)
        case "metadata not JSON":
            save_file(tensors, path, {"corrector": "{"})
        case "unknown arch":
            save(arch="three_tower")
        case "no shape":
            save(shape={})
        case "another shape":
            save(shape=shape | {"width": 9})
        case "tensor gone":
            tensors.pop("update_head.bias")
            save()
        case "not finite":
            tensors["update_head.bias"][0] = float("nan")
            save()


def test_equal_correctors_are_equal_files(tmp_path):
    for number in range(12):  # keys of costly results hash the file
        save_corrector(corrector(), tmp_path / str(number), "t")
    assert len({(tmp_path / str(number)).read_bytes() for number in range(12)}) == 1


@pytest.mark.parametrize(
    "how",
    ["cut short", "text", "gone", "no metadata", "metadata not JSON", "unknown arch", "no shape", "another shape",
     "tensor gone", "not finite"],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_one_sentence(tmp_path, how):
    path = tmp_path / "c.safetensors"
    save_corrector(corrector(), path, "t")
    damage(path, how)
    with pytest.raises(CorrectorError) as error:
        load_corrector(path, "t")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("sizes", [{"latent_dim": LATENT + 8}, {"action_dim": ACTIONS + 1}])
def test_a_corrector_of_another_size_is_refused(sizes):
    with pytest.raises(ConfigError, match="train one for this teacher"):
        SpeculativeController(MPPI(tiny_model(), BUDGET), corrector(**sizes))
