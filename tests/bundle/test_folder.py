"""Controllers come back from their folders as they were, whatever is wrong with one is one sentence, and no save that
was stopped leaves half a controller."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lib
from lib.bundle import BundleError, checksum, load_controller, read_about, save_controller
from lib.bundle.parts import CONTROLLERS as KINDS
from lib.bundle.parts import GATES
from lib.correctors import MAX_DEPTH
from lib.drafts import DraftController
from lib.gates import DriftGate, Gate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.realtime import BackgroundController, RealTimeController
from lib.speculation import SpeculativeController
from lib.weights.names import file_hash
from tests.bare import run_bare
from tests.bundle.made import CONTROLLERS, speculative
from tests.test_correctors import corrector, fresh
from tests.test_drafts import random_draft
from tests.tiny import ACTIONS, BUDGET, OBS, LatentModel, streams, tiny_model

ROWS, DECISIONS = 4, 9
FILES = ["controller.json", "weights.safetensors"]


def played(controller):
    """Actions and records of some decisions, of rows that are still at first and then are not, one of which ends."""
    torch.manual_seed(3)
    start, moves = torch.randn(ROWS, OBS), torch.randn(DECISIONS, ROWS, OBS)
    controller.reset(ROWS, streams(*range(ROWS)))
    records = []
    for t in range(DECISIONS):
        if t == 5:
            controller.keep([0, 2, 3])
        actions, info = controller.act(start[: 4 - (t >= 5)] + (0.05 if t < 4 else 0.6) * moves[t, : 4 - (t >= 5)])
        records.append(info | {"actions": actions})
    return records


# ------------------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_loaded_controller_acts_as_the_saved_one_did(tmp_path, name):
    saved = CONTROLLERS[name]()
    save_controller(saved, tmp_path / "c", {"task": "walker-walk"})
    assert sorted(os.listdir(tmp_path / "c")) == FILES and os.listdir(tmp_path) == ["c"]
    loaded = lib.load_controller(tmp_path / "c")
    assert type(loaded) is type(saved) and loaded.wm.config == saved.wm.config and loaded.wm.task == saved.wm.task
    want, got = played(saved), played(loaded)
    for old, new in zip(want, got, strict=True):
        assert old.keys() == new.keys()
        for key, value in old.items():
            torch.testing.assert_close(new[key], value, rtol=0, atol=0, equal_nan=True)
    for part in ("wm", "corrector", "draft", "fallback"):
        if made := getattr(loaded, part, None):
            assert not made.training and not any(p.requires_grad for p in made.parameters())
    save_controller(loaded, tmp_path / "again", {"task": "walker-walk"})
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()


def test_gates_of_the_cases_ask_and_do_not_ask():
    """Else nothing of a gate would be compared above."""
    for name in ("drift", "drift in L2", "sensitivity of the action", "sensitivity of the value", "value", "ladder",
                 "draft and planner", "real time, with all parts"):  # fmt: skip
        asked = torch.cat([info["fallback"] for info in played(CONTROLLERS[name]())])
        assert 2 < asked.sum() < len(asked) - 2, name
    assert torch.cat([info["refined"] for info in played(CONTROLLERS["refined"]())]).any()


def test_the_lists_hold_every_gate_and_every_controller_of_the_library():
    found, pending = set(), [Gate]
    while pending:
        pending += (below := pending.pop().__subclasses__())
        found |= {gate for gate in below if gate.__module__ == "lib.gates"}
    assert found | {type(CONTROLLERS["draft and planner"]().gate)} == {made for made, _ in GATES.values()}
    assert {made for made, _ in KINDS.values()} == {
        SpeculativeController, DraftController, PolicyController, RealTimeController, BackgroundController,
    }  # fmt: skip
    assert all(made.kind == kind for kind, (made, _) in GATES.items())


def test_a_delay_is_numbers(tmp_path):
    save_controller(CONTROLLERS["real time, with all parts"](), tmp_path / "c")
    assert read_about(tmp_path / "c")["settings"] == {"delay": [2, 0, 1]}
    assert load_controller(tmp_path / "c").delay == [2, 0, 1]
    with pytest.raises(BundleError, match="a delay that a function draws cannot be saved; give a number of decisions"):
        save_controller(RealTimeController(MPPI(tiny_model(), BUDGET), delay=lambda generator: 1), tmp_path / "d")
    assert os.listdir(tmp_path) == ["c"]
    settings = tmp_path / "c" / "controller.json"
    told = json.loads(settings.read_text())
    for delay, said in (
        ([], r"delay=\(\) has none"), ([-1], "delay=-1 must be a whole"), ([[1]], r"delay=\[1\] must be"),
        (2, "delay='2', which is no list"), ([True], "delay=True must be a whole number"),
    ):  # fmt: skip
        settings.write_text(json.dumps(told | {"settings": {"delay": delay}}))
        with pytest.raises(BundleError, match=said):
            load_controller(tmp_path / "c")


def test_what_plans_in_the_background_says_when_plans_are_expected(tmp_path):
    parts = MPPI(tiny_model(num_q=3), BUDGET), corrector("temporal").requires_grad_(False), DriftGate(0.4)
    saved = BackgroundController(*parts, 0.02, random_draft().requires_grad_(False), 3)
    save_controller(saved, tmp_path / "c")
    assert read_about(tmp_path / "c")["settings"] == {"period": 0.02, "expected": 3}
    with saved, load_controller(tmp_path / "c") as loaded:
        assert type(loaded) is BackgroundController and (loaded.period, loaded.expected) == (0.02, 3)
        for controller in (saved, loaded):
            controller.reset(1, streams(4))
        obs = torch.randn(1, OBS)
        action, info = loaded.act(obs)
        torch.testing.assert_close(action, saved.act(obs)[0], rtol=0, atol=0)  # the draft's: no plan is there yet
        assert info["planner_called"] and info["fallback"]
    for period, expected, said in (
        (None, 3, "cannot be saved without its period; give it in seconds."),
        (0.02, None, "cannot be saved without the decisions expected of a plan; give them."),
    ):
        with pytest.raises(BundleError, match=said):
            save_controller(BackgroundController(*parts, period, None, expected), tmp_path / "d")
    settings = tmp_path / "c" / "controller.json"
    told = json.loads(settings.read_text())
    for wrong, said in (
        ({"period": 0.0}, "period=0.0 must be the seconds of a decision"), ({"period": None}, "which is no float"),
        ({"expected": 0}, "expected=0 would be no delay"), ({"expected": 10**6}, "delay=1000000 must be a whole"),
    ):  # fmt: skip
        settings.write_text(json.dumps(told | {"settings": told["settings"] | wrong}))
        with pytest.raises(BundleError, match=said):
            load_controller(tmp_path / "c")


def test_the_folder_says_whose_it_is(tmp_path):
    controller = CONTROLLERS["value that never asks"]()
    save_controller(controller, tmp_path, {"rate": 50, "kept": [0.98, None]})
    told = read_about(tmp_path)
    assert told["about"] == {"rate": 50, "kept": [0.98, None]} and told["gate"]["thresholds"] == {"threshold": "inf"}
    assert told["planner"] == dataclasses.asdict(BUDGET) and told["settings"]["execution_horizon"] == 4
    assert told["teacher"] == checksum(controller.wm) == checksum(load_controller(tmp_path).wm)
    assert checksum(tiny_model(3, seed=1)) != told["teacher"]
    changed = tiny_model(3)
    with torch.no_grad():
        changed.target_q_heads.layers[0].weight.add_(1.0)
    assert checksum(changed) == told["teacher"]  # nothing that acts reads them
    assert not [name for name in load_file(tmp_path / FILES[1]) if "target" in name]
    with torch.no_grad():
        changed.pi[0].bias[0] += 1e-6
    assert checksum(changed) != told["teacher"]


def test_targets_of_a_loaded_model_are_its_own(tmp_path):
    save_controller(CONTROLLERS["policy"](), tmp_path)
    wm = load_controller(tmp_path).wm
    for name, value in wm.q_heads.named_parameters():
        target = wm.target_q_heads.get_parameter(name)
        assert torch.equal(target, value) and target.data_ptr() != value.data_ptr()


@pytest.mark.parametrize("name", ["value", "policy", "draft"])
def test_how_it_is_run_is_kept_or_chosen(tmp_path, name):
    save_controller(CONTROLLERS[name](), tmp_path)
    run = {"value": "_look", "policy": "_act", "draft": "_look"}[name]
    assert type(getattr(load_controller(tmp_path), run)).__name__ == "partial"
    compiled = load_controller(tmp_path, mode="compiled")
    assert type(getattr(compiled, run)).__name__ == "Compiled"
    if name != "value":
        save_controller(compiled, tmp_path)
        assert read_about(tmp_path)["settings"]["mode"] == "auto"
    with pytest.raises(BundleError, match="mode='cudagraph' needs a CUDA device"):
        load_controller(tmp_path, mode="cudagraph")
    with pytest.raises(BundleError, match="mode='fast' is not known"):
        load_controller(tmp_path, mode="fast")
    with pytest.raises(BundleError, match="device='cuda:7' is not here"):
        load_controller(tmp_path, "cuda:7")


def test_it_loads_and_acts_where_only_torch_numpy_and_safetensors_are_installed(tmp_path):
    controller = CONTROLLERS["trusted by depth"]()
    save_controller(controller, tmp_path)
    actions = run_bare(f"""
        import torch
        from lib import load_controller
        controller = load_controller({str(tmp_path)!r})
        controller.reset(2, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
        print([controller.act(torch.full((2, {OBS}), 0.1 * t))[0].tolist() for t in range(5)])
        assert not [name for name in sys.modules if name.startswith(("lib.records", "lib.teachers", "lib.study"))]
    """)
    controller.reset(2, streams(1, 2))
    want = [controller.act(torch.full((2, OBS), 0.1 * t))[0] for t in range(5)]
    torch.testing.assert_close(torch.tensor(json.loads(actions)), torch.stack(want), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- damages


def rewritten(change=lambda told: None, tensors=lambda tensors: None):
    """A damage: other settings or tensors in a folder that else is whole, its checksums right."""

    def damage(folder):
        told, weights = json.loads((folder / FILES[0]).read_text()), load_file(folder / FILES[1])
        tensors(weights)
        save_file(weights, folder / FILES[1])
        told["weights"] = file_hash(folder / FILES[1])
        change(told)
        (folder / FILES[0]).write_text(json.dumps(told))

    return damage


def put(value, *path):
    """A setting changed, or taken away where the value is `...`."""

    def change(told):
        for name in path[:-1]:
            told = told[name]
        told.update({path[-1]: value})
        if value is ...:
            del told[path[-1]]

    return rewritten(change)


def filled(name, value, index=(0,)):
    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[index[0]] = value

    return rewritten(tensors=change)


def cast(tensors):
    tensors["corrector.update_head.bias"] = tensors["corrector.update_head.bias"].half()


def exchanged(folder):
    """The weights of another controller of the same teacher and shape."""
    save_controller(speculative("temporal", ValueGate(0.06), 6), folder.parent / "other")
    shutil.copy(folder.parent / "other" / FILES[1], folder / FILES[1])


def text(value, file=FILES[0]):
    return lambda folder: (folder / file).write_bytes(value)


DAMAGES = {
    "gone": (shutil.rmtree, "c is no controller's folder: there is no file controller.json in it."),
    "no settings": (lambda folder: (folder / FILES[0]).unlink(), "is no controller's folder"),
    "no weights": (lambda folder: (folder / FILES[1]).unlink(), "there is no file weights.safetensors in it"),
    "settings a folder": (lambda folder: ((folder / FILES[0]).unlink(), (folder / FILES[0]).mkdir()), "is no contr"),
    "settings cut short": (lambda f: (f / FILES[0]).write_bytes((f / FILES[0]).read_bytes()[:-40]), "cannot be read"),
    "settings empty": (text(b""), "cannot be read: Expecting value"),
    "settings not text": (text(b"\xff\xfe\x00"), "cannot be read: 'utf-8' codec"),
    "settings nested": (text(b"[" * 100_000), "cannot be read: .*recursion"),
    "settings a list": (text(b"[]"), "does not describe a controller: it says no format"),
    "settings of another": (text(b'{"name": "eslint", "format": 1}'), "does not describe a controller"),
    "settings endless": (text(b" " * 2**21), "cannot be read: it is too large"),
    "settings with NaN": (put(float("nan"), "planner", "temperature"), "NaN is no number of JSON"),
    "weights cut short": (
        lambda folder: (folder / FILES[1]).write_bytes((folder / FILES[1]).read_bytes()[:-8]),
        "weights.safetensors is not the file that controller.json was saved with; save the controller again",
    ),
    "weights of another": (exchanged, "is not the file that controller.json was saved with"),
    "weights text": (
        lambda folder: (text(b"not weights", FILES[1])(folder), put(file_hash(folder / FILES[1]), "weights"))[0],
        "is not the file",
    ),
    "a later format": (put("speculative-tdmpc2/controller/2", "format"), "it is of format 'speculative-tdmpc2/contro"),
    "unknown kind": (put("magic", "kind"), "kind=.magic. is not known; use one of: speculative, draft, policy, real"),
    "kind a list": (put(["policy"], "kind"), r"kind=\['policy'\] is not known"),
    "kind of a module": (put("os.system", "kind"), "kind='os.system' is not known"),
    "another kind": (put("policy", "kind"), "controller.json has an unknown 'corrector'"),
    "another kind, with a draft": (put("draft", "kind"), "controller.json has an unknown 'corrector'"),
    "more than there is": (put(1, "extra"), "controller.json has an unknown 'extra'"),
    "about a text": (put("me", "about"), "'about' must be an object"),
    "no teacher": (put(..., "teacher"), "controller.json has no 'teacher'"),
    "another teacher": (put("0" * 64, "teacher"), "its world model is not the one of the checksum 'teacher'"),
    "another world model": (filled("world_model.pi.0.bias", 3.0), "its world model is not the one of the checksum"),
    "world model a text": (put("tiny", "world_model"), "world_model must be an object, not str"),
    "width of text": (put("16", "world_model", "config", "latent_dim"), "latent_dim='16', which is no int"),
    "width true": (put(True, "world_model", "config", "num_q"), "num_q='True', which is no int"),
    "width negative": (put(-16, "world_model", "config", "mlp_dim"), "cannot be used: mlp_dim=-16"),
    "heads without end": (put(2**19, "world_model", "config", "num_q"), "num_q=524288 is not what its tensors have"),
    "width endless": (put(10**400, "world_model", "config", "mlp_dim"), "cannot be used: mlp_dim=1000"),
    "another width": (put(24, "world_model", "config", "mlp_dim"), "the world model: 'dynamics.0.bias' has shape"),
    "discount endless": (put(10**400, "world_model", "config", "discount"), "not finite, or too large"),
    "no memory for it": (put(2**19, "world_model", "config", "enc_dim"), "the world model: 'encoder.0.bias' has shape"),
    "sizes past all numbers": (
        rewritten(lambda told: told["world_model"]["config"].update(mlp_dim=2**20 - 1, num_q=2**20 - 1)),
        "world_model.config cannot be used|has shape",
    ),
    "a head that is not there": (put(True, "world_model", "config", "episodic"), "has no tensor 'termination_head"),
    "not finite": (filled("world_model.pi.0.bias", torch.nan), "'pi.0.bias' holds values that are not finite"),
    "corrector not finite": (filled("corrector.age", torch.inf), "the corrector: 'age' holds values that are not fin"),
    "threshold NaN": (filled("gate.threshold", torch.nan), "the gate: 'threshold' holds values that are not finite"),
    "tensor gone": (rewritten(tensors=lambda t: t.pop("corrector.age")), "the corrector has no tensor 'age'"),
    "tensor too many": (
        rewritten(tensors=lambda t: t.update({"draft.head": torch.zeros(2)})), "of a part 'draft', which a specul"),
    "tensor of a half": (rewritten(tensors=cast), "'corrector.update_head.bias' is torch.float16, not torch.float32"),
    "gate's tensor gone": (rewritten(tensors=lambda t: t.pop("gate.threshold")), "the gate has no tensor 'threshold'"),
    "unknown planner setting": (put(3, "planner", "workers"), "planner has an unknown 'workers'"),
    "no planner": (put(None, "planner"), "'planner' is missing in controller.json"),
    "no corrector for its tensors": (put(None, "corrector"), "'corrector' is missing in controller.json"),
    "samples of no memory": (put(2**40, "planner", "samples"), "samples=.* must be at most 32,768"),
    "samples true": (put(True, "planner", "samples"), "samples='True', which is no int"),
    "no elites": (put(0, "planner", "elites"), "PlannerConfig.elites=0 must be at least 1"),
    "unknown dtype": (put("__import__", "planner", "dtype"), "dtype='__import__' is not known"),
    "graphs without a GPU": (put("cudagraph", "planner", "mode"), "mode='cudagraph' needs a CUDA device"),
    "unknown corrector": (put("three_tower", "corrector", "arch"), "corrector.arch='three_tower' is not known"),
    "corrector of a module": (put("torch.nn.Linear", "corrector", "arch"), "corrector.arch='torch.nn.Linear' is not"),
    "corrector without shape": (put(..., "corrector", "shape"), "corrector has no 'shape'"),
    "corrector of no memory": (put(300_000, "corrector", "shape", "width"), "has shape .* expected"),
    "corrector of past all numbers": (put(2**40, "corrector", "shape", "width"), "shape must be an object of whole"),
    "corrector of text": (put("12", "corrector", "shape", "width"), "shape must be an object of whole numbers above 0"),
    "corrector of a width that its heads do not have": (put(13, "corrector", "shape", "width"), "that 3 divides"),
    "corrector with more": (put(2, "corrector", "shape", "depth"), "shape cannot be used: .*argument 'depth'"),
    "trusted at no depth": (put([1.5], "corrector", "trust"), "trust must be a list of a corrector's shares"),
    "trusted everywhere": (put("all", "corrector", "trust"), "trust must be a list"),
    "unknown gate": (put("vibes", "gate", "kind"), "gate.kind='vibes' is not known"),
    "a gate of drafts": (
        rewritten(
            lambda told: told.update(
                gate={"kind": "draft", "settings": {"looks": []}, "thresholds": {"thresholds": [1.0, 1.0, 1.0]}}
            ),
            lambda t: (t.pop("gate.threshold"), t.update({"gate.thresholds": torch.ones(3)})),
        ),
        "a speculative controller cannot have a gate of kind 'draft'",
    ),
    "gate with more settings": (put({"of": "action"}, "gate", "settings"), "gate.settings has an unknown 'of'"),
    "another threshold": (put({"threshold": 9.0}, "gate", "thresholds"), "are not those of weights.safetensors"),
    "a long way": (put(10**9, "settings", "execution_horizon"), "execution_horizon=1000000000 must lie in 0…500"),
    "no way": (put(0, "settings", "execution_horizon"), "execution_horizon=0 must be at least 1"),
    "unknown tail": (put("wag", "settings", "tail"), "tail='wag' is not known"),
    "settings of another kind": (put({"samples": 3}, "settings"), "settings has no 'execution_horizon'"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_folder_is_refused_with_one_sentence(tmp_path, how):
    damage, sentence = DAMAGES[how]
    save_controller(speculative("temporal", ValueGate(0.05), 6), tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(BundleError, match=sentence) as raised:
        load_controller(tmp_path / "c")
    said = str(raised.value)
    assert "\n" not in said and len(said) < 700 and str(tmp_path / "c") in said and said[-1] == "." != said[-2]


@pytest.mark.parametrize("value, path, sentence", [
    (dict(latent_dim=16, action_dim=2, width=1, members=3, modes=2), ("draft", "shape"), "draft.shape cannot be used"),
    ({k: 2**20 - 1 for k in ("latent_dim", "action_dim", "width", "members", "modes")}, ("draft", "shape"), "draft"),
    ("temporal", ("draft", "arch"), "draft.arch='temporal' is not known; use one of: ensemble, prior"),
    ([1.0], ("draft", "trust"), "draft.trust must be a list of a corrector's shares"),
    (None, ("draft",), "'draft' is missing in controller.json"),
    (["os"], ("gate", "settings", "looks"), "gate.looks='os' is not known; use one of: doubt, value, mismatch"),
    (None, ("planner",), "a draft needs a planner of its own world model and a gate, or neither"),
    (4, ("settings", "execution_horizon"), "execution_horizon=4 must lie between 1 and the plan's 3"),
])  # fmt: skip
def test_a_damaged_draft_is_refused_with_one_sentence(tmp_path, value, path, sentence):
    save_controller(CONTROLLERS["draft and planner"](), tmp_path / "c")
    put(value, *path)(tmp_path / "c")
    with pytest.raises(BundleError, match=sentence) as raised:
        load_controller(tmp_path / "c")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_a_corrector_that_is_trusted_by_depth_must_know_the_depths(tmp_path):
    far = speculative("two_tower", horizon=MAX_DEPTH, trusted=(1.0,))
    save_controller(far, tmp_path / "c")
    load_controller(tmp_path / "c")
    put(MAX_DEPTH + 1, "settings", "execution_horizon")(tmp_path / "c")
    with pytest.raises(BundleError, match="execution_horizon=13 exceeds the depths that its corrector knows, 12."):
        load_controller(tmp_path / "c")


# ---------------------------------------------------------------------------------------------- what is not saved


def half(module):
    return module.half()


class MyGate(ValueGate):
    """Whose code is its user's."""


class MyPlanner(MPPI):
    pass


def with_planner(controller, planner):
    controller.planner = planner
    return controller


def of_weights(value):
    wm = tiny_model()
    wm.pi[0].bias[0] = value
    return PolicyController(wm)


REFUSED = {
    "no controller": (nn.Identity, "a controller of class Identity cannot be saved as a folder; use one of: Speculat"),
    "a gate of one's own": (lambda: speculative(gate=MyGate(0.1)), "a gate of class MyGate cannot be saved"),
    "a planner of one's own": (
        lambda: SpeculativeController(MyPlanner(tiny_model(), BUDGET)), "a planner of class MyPlanner cannot be saved"),
    "networks of one's own": (
        lambda: SpeculativeController(MPPI(tiny_model(), BUDGET, type("Mine", (type(MPPI(tiny_model()).networks),), {})(
            tiny_model()))), "a planner's networks of class Mine cannot"),
    "a model of one's own": (
        lambda: PolicyController(tiny_model(kind=LatentModel)), "a world model of class LatentModel cannot be saved"),
    "another model's planner": (
        lambda: with_planner(CONTROLLERS["draft and planner"](), MPPI(tiny_model(), BUDGET)), "another world model"),
    "a corrector of one's own": (
        lambda: SpeculativeController(
            MPPI(tiny_model(), BUDGET), type("Mine", (type(corrector("two_tower")),), {})(16, ACTIONS).eval()),
        "a corrector of class Mine cannot be saved"),
    "in training": (
        lambda: SpeculativeController(MPPI(tiny_model(), BUDGET), fresh().train()), "the corrector is in training"),
    "a draft in training": (
        lambda: DraftController(tiny_model(), random_draft().train()), "the draft is in training mode, and would act"),
    "half": (lambda: PolicyController(half(tiny_model())), "is torch.float16; a folder holds float32: call float"),
    "not finite": (lambda: of_weights(torch.nan), "world_model.pi.0.bias holds values that are not finite"),
    "a threshold that is none": (
        lambda: speculative(gate=DriftGate(torch.nan)), "gate.threshold holds values that are not finite; nothing was"),
    "trusted too far": (lambda: speculative("two_tower", horizon=13, trusted=(1.0,)), "execution_horizon=13 exceeds"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_folder_cannot_hold_is_refused_and_nothing_written(tmp_path, what):
    make, sentence = REFUSED[what]
    with pytest.raises(BundleError, match=sentence) as raised:
        save_controller(make(), tmp_path / "c")
    assert "\n" not in str(raised.value) and str(raised.value)[-1] == "." and os.listdir(tmp_path) == []


@pytest.mark.parametrize("about, why", [
    ({"when": object()}, "about cannot be written as JSON"), ({"x": float("nan")}, "about cannot be written as JSON"),
    (["a"], "about must be an object"), ({"x": "y" * 2**20}, "about must be an object of at most 524,288 bytes"),
])  # fmt: skip
def test_what_the_caller_adds_must_be_json(tmp_path, about, why):
    with pytest.raises(BundleError, match=why):
        save_controller(CONTROLLERS["policy"](), tmp_path / "c", about)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ where it is saved


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    controller = CONTROLLERS["policy"]()
    for name, content in {
        "thesis.tex": "all of it",
        "weights.safetensors": "mine",
        "controller.json": '{"a": 1}',
    }.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(BundleError, match=f"{folder} holds '{name}' and no controller of this project, so nothing"):
            save_controller(controller, folder)
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, content)]
    with pytest.raises(BundleError, match="thesis.tex is a file; give a folder that is new or empty."):
        save_controller(controller, tmp_path / "thesis" / "thesis.tex")
    with pytest.raises(BundleError, match="weights.safetensors.deep cannot be (read|written): "):
        save_controller(controller, tmp_path / "weights" / "weights.safetensors" / "deep")


def test_an_earlier_controller_is_replaced_and_what_stands_beside_it_stays(tmp_path):
    save_controller(CONTROLLERS["refined"](), tmp_path / "deep" / "c")
    (tmp_path / "deep" / "c" / "report.html").write_text("<html>")
    save_controller(CONTROLLERS["policy"](), tmp_path / "deep" / "c")
    assert type(load_controller(tmp_path / "deep" / "c")) is PolicyController
    assert sorted(os.listdir(tmp_path / "deep" / "c")) == ["controller.json", "report.html", "weights.safetensors"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    save_controller(CONTROLLERS["policy"](), tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "empty")) == FILES and (tmp_path / "link").is_symlink()


def killed_save(controller, folder, at):
    """Save in a process that dies at its `at`-th call that writes; whether it died."""
    process = os.fork()
    if process == 0:
        left = iter(range(at))

        def dying(function):
            def call(*args, **kwargs):
                if next(left, None) is None:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        from lib.bundle import folder as place

        place.save_file = dying(place.save_file)
        for name in ("fsync", "replace"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            save_controller(controller, folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_killed_save_leaves_no_half_controller(tmp_path, earlier):
    old, new = CONTROLLERS["policy"](), CONTROLLERS["policy samples"]()
    folder, kills, ends = tmp_path / "c", 0, set()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if earlier:
            save_controller(old, folder)
        if not killed_save(new, folder, at=kills):
            break
        kills += 1
        try:
            ends.add(f"{load_controller(folder).samples} samples")
        except BundleError as error:
            ends.add(
                next(w for w in ("is no controller's folder", "is not the file", "other") if w in f"{error} other")
            )
        save_controller(new, folder)  # the next one goes as if nothing had been
        assert load_controller(folder).samples == new.samples
        assert os.listdir(tmp_path) == ["c"] and sorted(os.listdir(folder)) == FILES
    assert load_controller(folder).samples == new.samples
    if earlier:
        assert kills == 5 and ends == {"0 samples"}  # equal weights: their exchange alone changes nothing
    else:
        assert kills == 4 and ends == {"is no controller's folder"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_save_that_is_killed_between_its_files_is_refused_until_the_next(tmp_path):
    folder = tmp_path / "c"
    save_controller(CONTROLLERS["value"](), folder)
    other = speculative("temporal", ValueGate(0.06), 6)
    assert killed_save(other, folder, at=4)
    with pytest.raises(
        BundleError, match="is not the file that controller.json was saved with; save the controller ag"
    ):
        load_controller(folder)
    save_controller(other, folder)
    assert load_controller(folder).gate.threshold == other.gate.threshold and sorted(os.listdir(folder)) == FILES


def test_a_disk_that_is_full_is_told_of_and_the_earlier_controller_stays(tmp_path, monkeypatch):
    save_controller(CONTROLLERS["policy samples"](), tmp_path / "c")

    def full(tensors, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lib.bundle.folder.save_file", full)
    with pytest.raises(BundleError, match="c cannot be written: there is no space left on the disk; make room"):
        save_controller(CONTROLLERS["policy"](), tmp_path / "c")
    assert load_controller(tmp_path / "c").samples == 5 and sorted(os.listdir(tmp_path / "c")) == FILES
