"""Correctors and drafts come back from their files as they were, and damaged files are refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.correctors import CORRECTORS
from lib.drafts import DRAFTS, PriorDraft
from lib.weights.distilled import MADE_IN, NetworkError, load_network, save_network
from tests.test_correctors import K, corrector
from tests.test_correctors import inputs as corrected
from tests.test_drafts import inputs as drafted
from tests.test_drafts import random_draft
from tests.tiny import ACTIONS, LATENT

FOREIGN = {"two_tower": "state", "ensemble": "prior"}  # a class of the same role
every_network = pytest.mark.parametrize("arch", [*CORRECTORS, *DRAFTS])


def network(arch):
    """One that is random in every layer, and its inputs; a draft's weights are of half precision."""
    if arch in CORRECTORS:
        return corrector(arch).requires_grad_(False), corrected()
    made = random_draft(modes=2) if arch == "ensemble" else PriorDraft(LATENT, ACTIONS, 16)
    return made.half().float().eval().requires_grad_(False), drafted()


def role(arch):
    return "corrector" if arch in CORRECTORS else "draft"


@every_network
def test_a_saved_network_comes_back(tmp_path, arch):
    made, given = network(arch)
    save_network(made, tmp_path / "n.safetensors", "teacher-a")
    back = load_network(tmp_path / "n.safetensors", "teacher-a")
    assert type(back) is type(made) and back.shape == made.shape and not back.training
    assert not any(p.requires_grad for p in back.parameters())
    for got, wanted in zip(back(*given), made(*given), strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(NetworkError, match=f"another teacher; train it again with {MADE_IN[role(arch)]}"):
        load_network(tmp_path / "n.safetensors", "teacher-b")


@every_network
def test_equal_networks_are_equal_files(tmp_path, arch):
    for number in range(12):  # keys of costly results hash the file
        save_network(network(arch)[0] if arch != "prior" else prior(), tmp_path / str(number), "t")
    assert len({(tmp_path / str(number)).read_bytes() for number in range(12)}) == 1


def prior():
    torch.manual_seed(0)
    return PriorDraft(LATENT, ACTIONS, 16)


def saved(made, path, change=lambda tensors: None, **about):
    """The file with other metadata, or after a change of its tensors."""
    tensors = load_file(path)
    change(tensors)
    about = {"arch": made.arch, "shape": made.shape, "teacher": "t"} | about
    save_file(tensors, path, {role(made.arch): json.dumps(about)})


def reshaped(**changes):
    return lambda made, path: saved(made, path, shape=made.shape | changes)


def of_another_arch(made, path):
    other = FOREIGN.get(made.arch, "two_tower" if made.arch in CORRECTORS else "ensemble")
    saved(made, path, arch=other, shape=network(other)[0].shape)


DAMAGES = {
    "cut short": lambda made, path: path.write_bytes(path.read_bytes()[:-40]),
    "text": lambda made, path: path.write_text("not weights"),
    "gone": lambda made, path: path.unlink(),
    "no metadata": lambda made, path: save_file(load_file(path), path),
    "metadata not JSON": lambda made, path: save_file(load_file(path), path, {role(made.arch): "{"}),
    "metadata a list": lambda made, path: save_file(load_file(path), path, {role(made.arch): "[]"}),
    "of no role": lambda made, path: save_file(load_file(path), path, {"planner": "{}"}),
    "of two roles": lambda made, path: save_file(load_file(path), path, {"corrector": "{}", "draft": "{}"}),
    "unknown arch": lambda made, path: saved(made, path, arch="three_tower"),
    "another arch": of_another_arch,
    "no shape": lambda made, path: saved(made, path, shape={}),
    "another shape": reshaped(width=15),
    "a shape that fits no memory": reshaped(width=400_000),
    "negative shape": reshaped(width=-12),
    "shape of text": reshaped(latent_dim="16"),
    "unknown part of the shape": reshaped(history_len=-1, depth=3),
    "tensor gone": lambda made, path: saved(made, path, lambda tensors: tensors.popitem()),
    "not finite": lambda made, path: saved(made, path, lambda tensors: next(iter(tensors.values())).fill_(torch.nan)),
}


@pytest.mark.parametrize("how", DAMAGES)
@every_network
def test_a_damaged_file_is_refused_with_one_sentence(tmp_path, arch, how):
    made, path = network(arch)[0], tmp_path / "n.safetensors"
    save_network(made, path, "t")
    DAMAGES[how](made, path)
    with pytest.raises(NetworkError) as error:
        load_network(path, "t")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("history_len", [0, -1, K + 1, 10**12, True, 2.0, "3"])
def test_a_damaged_history_length_is_refused(tmp_path, history_len):
    made, path = corrector("temporal"), tmp_path / "n.safetensors"
    save_network(made, path, "t")
    reshaped(history_len=history_len)(made, path)
    with pytest.raises(NetworkError, match="is no corrector or draft of this project"):
        load_network(path, "t")
