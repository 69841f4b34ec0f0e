import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bridge.arc import all_questions
from bridge.errors import InputError
from bridge.views import task_view
from teacher_torch.action_head import ActionHead, ActionHeadConfig
from teacher_torch.backbone import empty_backbone
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.policy import UNUSED, load_policy
from teacher_torch.weights import load_action_head
from tests.conftest import ROOT
from tests.golden import formula

GOLDEN = ROOT / "tests" / "golden"


def test_whole_model_sums_to_the_released_files_parameters():
    """Oracle: 2,724,163,520, as reported for the released file."""
    with torch.device("meta"):
        head = ActionHead(ActionHeadConfig())
    backbone = empty_backbone(Gr00tConfig.of_size("full"))
    used = sum(p.numel() for module in (backbone, head) for p in module.parameters())
    assert used == 2_398_284_528
    assert used + sum(UNUSED.values()) == 2_724_163_520


def test_components_are_counted_once_each():
    counts = load_policy().parameter_counts()
    assert counts.pop("taking part") == sum(counts.values())
    assert "action head, vl_self_attention" in counts


def test_policy_acts_on_a_view_and_depends_on_it(task):
    policy = load_policy()
    views = [task_view(question) for question in all_questions(task)[:2]]
    rng = torch.Generator().manual_seed(0)
    state, noise = torch.zeros(1, 1, 64), torch.randn(1, 16, 32, generator=rng)
    robot = torch.tensor([1])
    actions = [
        policy.get_action(policy.prepare([view]), state, robot, noise).numpy() for view in views
    ]
    assert actions[0].shape == (1, 16, 32)
    assert np.isfinite(actions[0]).all()
    assert not np.array_equal(actions[0], actions[1])
    again = policy.get_action(policy.prepare([views[0]]), state, robot, noise).numpy()
    np.testing.assert_array_equal(actions[0], again)


def write_head(folder, drop=()):
    about = json.loads((GOLDEN / "action_head.json").read_text())
    (folder / "config.json").write_text(json.dumps({"action_head_cfg": about["config"]}))
    with torch.device("meta"):
        head = ActionHead(ActionHeadConfig.of_checkpoint(about["config"]))
    tensors = {
        f"action_head.{name}": torch.from_numpy(formula.weight(f"action_head.{name}", value.shape))
        for name, value in head.state_dict().items()
        if name not in drop
    }
    save_file(tensors, str(folder / "model.safetensors"))
    return tensors


def test_action_head_of_a_checkpoint_is_read_whole(tmp_path):
    tensors = write_head(tmp_path)
    head = load_action_head(tmp_path, torch.float32)
    for name, value in head.state_dict().items():
        assert torch.equal(value, tensors[f"action_head.{name}"])
    assert not any(p.requires_grad for p in head.parameters())


def test_action_head_with_a_tensor_missing_is_refused(tmp_path):
    write_head(tmp_path, drop=("vlln.weight",))
    with pytest.raises(InputError, match=r"1 tensors missing: vlln\.weight"):
        load_action_head(tmp_path, torch.float32)
