"""The action head against the reference's own numbers (tools/make_golden_action.py)."""

import json
from math import prod

import numpy as np
import pytest
import torch

from teacher_torch.action_head import ActionHead, ActionHeadConfig
from tests.conftest import ROOT
from tests.golden import formula

GOLDEN = ROOT / "tests" / "golden"
F32, BF16 = 1e-4, 2e-2  # absolute; relative to the largest value


@pytest.fixture(scope="module")
def facts():
    return json.loads((GOLDEN / "action_head.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "action_head.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def head(facts):
    return make_head(facts["config"])


def make_head(config, dtype=torch.float32):
    """The head of a golden config with the formula's weights."""
    ours = ActionHeadConfig.of_checkpoint(config)
    with torch.device("meta"):
        head = ActionHead(ours)
    weights = {name: weight(name, tensor.shape) for name, tensor in head.state_dict().items()}
    head.load_state_dict(weights, assign=True)
    return head.to(dtype).eval()


def weight(name, shape):
    values = formula.weight(f"action_head.{name}", shape)
    if name.endswith(".W"):  # as in the golden's generator
        values = values * np.float32(shape[-1] ** 0.5)
    return torch.from_numpy(values)


def given(golden, **changes):
    names = ("backbone_features", "backbone_attention_mask", "state", "embodiment_id", "noise")
    return {**{name: golden[name] for name in names}, **changes}


def max_error(actual, expected):
    return (actual.float() - expected).abs().max().item()


def test_full_size_has_the_releases_tensors_and_parameter_count():
    """Oracle: the released checkpoint's tensor list, counted part by part."""
    tensors = json.loads((GOLDEN / "n15_tensors.json").read_text())
    prefix = "action_head."
    released = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    with torch.device("meta"):
        head = ActionHead()
    assert {name: list(tensor.shape) for name, tensor in head.state_dict().items()} == released
    assert len(released) == 314
    counts = {n: sum(p.numel() for p in part.parameters()) for n, part in head.named_children()}
    assert counts == {
        "model": 550_386_688,
        "state_encoder": 52_510_720,
        "action_encoder": 228_212_736,
        "action_decoder": 34_636_800,
        "future_tokens": prod((32, 1536)),
        "position_embedding": prod((1024, 1536)),
        "vlln": 2 * 2048,
        "vl_self_attention": 201_433_088,
    }
    assert sum(counts.values()) == 1_068_806_144


def test_encode_backbone_equals_the_reference(head, golden):
    with torch.no_grad():
        vl_embs = head.encode_backbone(golden["backbone_features"])
    assert max_error(vl_embs, golden["vl_embs"]) <= F32


def test_velocity_at_every_step_equals_the_reference(head, golden):
    """Each step starts from the reference's own trajectory, so that errors do not add up."""
    trajectory = golden["noise"]
    for step, expected in enumerate(golden["velocities"]):
        timestep = torch.full((len(trajectory),), step * 250)
        with torch.no_grad():
            velocity = head(
                golden["vl_embs"], golden["state"], golden["embodiment_id"], trajectory, timestep
            )
        assert max_error(velocity, expected) <= F32
        trajectory = trajectory + expected / 4
    assert max_error(trajectory, golden["actions"]) <= F32  # the golden file agrees with itself


def test_get_action_equals_the_reference(head, golden):
    actions = head.get_action(**given(golden))
    assert actions.dtype == torch.float32
    assert max_error(actions, golden["actions"]) <= F32


def test_get_action_in_bf16_equals_the_reference_in_bf16(facts, golden):
    actions = make_head(facts["config"], torch.bfloat16).get_action(**given(golden))
    expected = golden["actions_bf16_as_f32"]
    assert actions.dtype == torch.bfloat16
    assert max_error(actions, expected) <= BF16 * expected.abs().max()


def test_get_action_twice_gives_the_same_bits_and_leaves_its_inputs_alone(head, golden):
    inputs = given(golden)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    assert torch.equal(head.get_action(**inputs), head.get_action(**inputs))
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_mask_changes_nothing_and_padding_does_as_in_the_reference(head, facts, golden):
    """A flaw of the reference, kept: no attention of the action head looks at the mask."""
    mask = golden["backbone_attention_mask"]
    (row,) = (mask == 0).any(dim=1).nonzero()[:, 0].tolist()
    valid = mask[row] == 1
    assert not facts["mask_changes_actions"]
    padded = head.get_action(**given(golden))
    unmasked = head.get_action(**given(golden, backbone_attention_mask=torch.ones_like(mask)))
    assert torch.equal(unmasked, padded)

    alone = {name: tensor[row : row + 1] for name, tensor in given(golden).items()}
    alone["backbone_features"] = alone["backbone_features"][:, valid]
    alone["backbone_attention_mask"] = alone["backbone_attention_mask"][:, valid]
    unpadded = head.get_action(**alone)
    assert max_error(unpadded, golden["actions_unpadded"]) <= F32
    assert max_error(unpadded[0], padded[row]) > 100 * F32


def test_get_action_with_another_embodiment_gives_other_actions(head, golden):
    other = head.get_action(**given(golden, embodiment_id=torch.tensor([2, 1, 3])))
    changed = (other - golden["actions"]).abs().amax(dim=(1, 2)) > 100 * F32
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embodiment_id": torch.tensor([0, 4, 1])}, r"embodiment_id: expected 0 to 3, got \[0, 4"),
        ({"embodiment_id": torch.tensor([0, -1, 1])}, "embodiment_id: expected 0 to 3"),
        ({"embodiment_id": torch.tensor([0.0, 1.0, 1.0])}, "embodiment_id: expected int64, got"),
        ({"embodiment_id": torch.tensor([0])}, r"embodiment_id: expected \[3\], got \[1\]"),
        ({"backbone_features": torch.zeros(3, 8, 17)}, r"expected \[3, 8, 16\], got \[3, 8, 17\]"),
        ({"backbone_features": torch.zeros(8, 16)}, r"backbone_features: expected \[8, 16, 16\]"),
        ({"backbone_attention_mask": torch.ones(3, 7)}, r"attention_mask: expected \[3, 10\]"),
        ({"state": torch.zeros(3, 6)}, r"state: expected \[3, 1, 6\], got \[3, 6\]"),
        ({"noise": torch.zeros(3, 7, 6)}, r"noise: expected \[3, 7, 5\], got \[3, 7, 6\]"),
    ],
)
def test_get_action_with_inputs_that_do_not_fit_raises(head, golden, changes, message):
    with pytest.raises(ValueError, match=message):
        head.get_action(**given(golden, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_timesteps": 0}, "num_inference_timesteps: expected at least 1, got 0"),
        ({"dit_heads": 3, "dit_head_dim": 5}, "expected an even width, got 15"),
        ({"max_positions": 8}, "action_horizon: expected at most max_positions = 8, got 16"),
    ],
)
def test_config_of_an_impossible_head_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        ActionHeadConfig(**changes)
