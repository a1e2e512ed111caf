"""Decision Transformer: control as sequence modelling, conditioned on the return that is asked for (Chen et al. 2021).

    model = DecisionTransformer.of(trajectories)               # fresh, with the data's normalisation
    loss = model.loss(batch)
    controller = model.controller(target_return=900.0)         # for lib.study.evaluate.rollout
    controller.observe(rewards)                                # after every decision: less is left to reach

A decision is three tokens: return to go R_t, observation o_t, action a_t. The model is transformers'
`DecisionTransformerModel`, a causal GPT-2 without positions, to whose tokens an embedding of the time in the episode is
added; a_t is predicted from the token of o_t, which sees all that came before and not a_t itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.config import ConfigError
from lib.protocols import answered, rows_of, unsound
from lib.study.sequence.windows import OfflinePolicy, WindowBatch


@dataclass(frozen=True)
class Shape:
    """Sizes of a Decision Transformer; the defaults are those of Chen et al. 2021, appendix A, for locomotion."""

    obs_dim: int
    action_dim: int
    context: int = 20  # decisions
    max_decisions: int = 1000  # of an episode; later ones count as this one
    width: int = 128
    layers: int = 3
    heads: int = 1
    dropout: float = 0.1
    return_scale: float = 1000.0  # what returns to go are divided by; in training, see `return_scale` of the windows


class DecisionTransformer(OfflinePolicy):
    """Actions from the last `context` decisions and what is left of the return that was asked for."""

    arm, Shape = "decision-transformer", Shape

    def __init__(self, shape: Shape):
        super().__init__(shape)
        # Imported here: it takes seconds.
        from transformers import DecisionTransformerConfig, DecisionTransformerModel

        config = DecisionTransformerConfig(
            state_dim=shape.obs_dim,
            act_dim=shape.action_dim,
            hidden_size=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_positions=1,  # every token is at position 0, as time has an embedding of its own
            max_ep_len=shape.max_decisions,
            action_tanh=True,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.transformer = DecisionTransformerModel(config)

    def forward(self, obs: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor) -> Tensor:
        """Action (B, K, A) in [−1, 1] for every decision of B windows.

        obs (B, K, obs_dim), actions (B, K, A), returns_to_go (B, K) in units of reward, timesteps (B, K). There is no
        mask: padding stands behind what counts, see `lib.study.sequence.windows`.
        """
        return self.transformer(
            states=self.normalised(obs),
            actions=actions,
            returns_to_go=(returns_to_go / self.shape.return_scale).unsqueeze(-1),
            timesteps=timesteps.clamp(max=self.shape.max_decisions - 1),
            attention_mask=torch.ones_like(timesteps),
            return_dict=True,
        ).action_preds

    def loss(self, batch: WindowBatch) -> Tensor:
        """Mean squared error to the actions of the decisions that count."""
        predicted = self(batch.obs, batch.actions, batch.returns_to_go, batch.timesteps)
        return (predicted - batch.actions)[batch.mask].square().mean()

    def controller(self, target_return: float | Tensor) -> DecisionTransformerController:
        """The model as a controller that is asked for a return, one or (B,) of them for a batch of episodes."""
        return DecisionTransformerController(self, target_return)


class DecisionTransformerController:
    """Acts in a batch of episodes that go in step, each towards its own return.

    The caller reports the rewards of every decision with `observe`, as `lib.study.sequence.evaluate.returned` does.
    """

    def __init__(self, model: DecisionTransformer, target_return: float | Tensor):
        self.model, self.target_return = model.eval(), torch.as_tensor(target_return, dtype=torch.float32)
        self._to_go = torch.zeros(0)  # `reset` begins

    def reset(self, batch_size: int = 1, generators=None) -> None:
        """Start `batch_size` episodes. Nothing is drawn, so `generators` are not used.

        Raises `ConfigError` for another number of returns than of episodes.
        """
        shape, device = self.model.shape, self.model.device
        if self.target_return.dim() and len(self.target_return) != batch_size:
            raise ConfigError(
                f"{len(self.target_return)} returns are asked for in {batch_size} episodes; ask for one, or one each."
            )
        self._to_go = self.target_return.expand(batch_size).to(device)
        self._decision = 0
        # What the model sees: the last decisions, none yet.
        self._obs = torch.zeros(batch_size, 0, shape.obs_dim, device=device)
        self._actions = torch.zeros(batch_size, 0, shape.action_dim, device=device)
        self._returns = torch.zeros(batch_size, 0, device=device)

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        for name in ("_to_go", "_obs", "_actions", "_returns"):
            setattr(self, name, getattr(self, name)[rows])

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict]:
        """Actions (B, A) for observations (B, obs_dim), and no records; `ValueError` when one is not finite."""
        last, device = self.model.shape.context, self.model.device
        obs, alone = rows_of(obs, len(self._to_go), device, self.model.shape.obs_dim)
        # The action that is to be found has a token too, which nothing sees.
        unknown = torch.zeros(len(obs), 1, self._actions.shape[2], device=device)
        parts = (self._obs, obs.unsqueeze(1)), (self._actions, unknown), (self._returns, self._to_go.unsqueeze(1))
        seen, actions, returns = (torch.cat(part, 1)[:, -last:] for part in parts)
        length = seen.shape[1]
        timesteps = torch.arange(self._decision - length + 1, self._decision + 1, device=device)
        action = self.model(seen, actions, returns, timesteps.expand(len(obs), length))[:, -1]
        if not (torch.isfinite(obs).all() and torch.isfinite(action).all()):  # before it is remembered
            raise ValueError(unsound(obs))
        actions[:, -1] = action
        self._obs, self._actions, self._returns = seen, actions, returns
        self._decision += 1
        return answered(action, {}, alone)

    def observe(self, rewards: np.ndarray) -> None:
        """The rewards (B,) of the last decision: what is left to reach is so much less."""
        self._to_go = self._to_go - torch.as_tensor(rewards, dtype=torch.float32, device=self._to_go.device)
