"""Training drafts: what is learnt, what is held out, and the mixture against a sum by hand."""

import math

import pytest
import torch

from lib.config import ConfigError
from lib.distil.draft_training import DraftTraining, draft_errors, draft_loss, split_states, train_draft
from lib.distil.labels import LabelledStates
from lib.distil.states import DistillationError
from lib.drafts import Draft
from tests.tiny import ACTIONS, LATENT


def made_up(label, episodes=10, length=40, rounds=1, seed=0):
    """States whose label is a function of the latent; the same planner's second label is 0.1 off."""
    random = torch.Generator().manual_seed(seed)
    n = episodes * length
    z = (2 * torch.randn(n, LATENT // 8, 8, generator=random)).softmax(-1).flatten(1)
    z = z.half()
    labels = label(z.float(), random)
    again = torch.arange(0, n, 10)
    return LabelledStates(
        z, torch.zeros(n, ACTIONS), labels, torch.arange(n) // length, torch.arange(n) % length,
        torch.arange(n) // length % rounds + 1, again, labels[again] + 0.1, labels[again] + 0.2,
    )  # fmt: skip


def smooth(z, random):
    return torch.stack([(4 * (z[:, 0] - z[:, 1])).tanh(), (2 * z[:, 2] - z[:, 9]).tanh()], -1)


def test_a_smooth_function_is_learnt_far_better_than_the_prior():
    trained = train_draft(made_up(smooth), DraftTraining(epochs=60, width=64), progress=False)
    errors = draft_errors(trained.held_out, trained.draft)
    assert errors["draft_mse"] < 0.1 * errors["policy_mse"]
    assert errors["draft_mse"] == pytest.approx(min(row["held_out_mse"] for row in trained.curve))
    assert errors["floor"] == pytest.approx(0.005, rel=1e-3) and errors["to_standard"] == pytest.approx(0.04, rel=1e-3)
    assert not trained.draft.training


def test_of_two_good_actions_one_is_taken_and_not_their_mean():
    """Left or right are equally good: the mean of them, which one mode learns, is neither."""

    def either(z, random):
        side = torch.randint(0, 2, (len(z), 1), generator=random) * 2.0 - 1
        return 0.8 * side.expand(-1, ACTIONS)

    states = made_up(either)
    one = train_draft(states, DraftTraining(epochs=40, batch_size=64, width=32), progress=False).draft
    two = DraftTraining(epochs=40, batch_size=64, width=32, modes=2, patience=40)
    several = train_draft(states, two, progress=False).draft
    z, prior = states.z[:50].float(), states.a_policy[:50]
    assert one(z, prior)[0].abs().max() < 0.5
    torch.testing.assert_close(several(z, prior)[0].abs(), torch.full((50, ACTIONS), 0.8), rtol=0, atol=0.15)


def test_the_mixture_is_the_sum_by_hand():
    torch.manual_seed(0)
    draft = Draft(LATENT, ACTIONS, width=8, members=2, modes=3).eval().requires_grad_(False)
    z, prior, label = torch.rand(2, 4, LATENT), torch.rand(2, 4, ACTIONS), torch.rand(2, 4, ACTIONS)
    loss, (actions, weights) = draft_loss(draft, z, prior, label, 0.3), draft.components(z, prior)
    for m in range(2):
        for i in range(4):
            density = sum(
                math.exp(weights[m, i, k]) * math.exp(-float((actions[m, i, k] - label[m, i]).square().sum()) / 0.18)
                for k in range(3)
            )
            assert loss[m, i].item() == pytest.approx(-math.log(density), rel=1e-4)


def test_an_episode_is_on_one_side_alone_and_every_round_is_held_out():
    states = made_up(smooth, episodes=12, rounds=3)
    learnt, held = split_states(states)
    assert torch.equal(learnt, ~held)
    assert not set(states.episode[learnt].tolist()) & set(states.episode[held].tolist())
    assert states.round[held].unique().tolist() == [1, 2, 3]
    with pytest.raises(DistillationError, match="of one episode"):
        split_states(made_up(smooth, episodes=1))


def test_training_is_repeatable():
    states, training = made_up(smooth), DraftTraining(epochs=3, width=16)
    first, second = (train_draft(states, training, progress=False) for _ in range(2))
    assert first.curve == second.curve


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="modes=0 must be at least 1"):
        DraftTraining(modes=0)
    with pytest.raises(ConfigError, match="spread=0 must be above 0"):
        DraftTraining(spread=0)
    states = made_up(smooth)
    states.a_label.fill_(torch.nan)
    with pytest.raises(DistillationError, match="no held-out error of 2 epochs is finite"):
        train_draft(states, DraftTraining(epochs=2, width=16), progress=False)
