import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from bridge.arc import all_questions
from bridge.errors import InputError
from bridge.views import task_view
from teacher_torch.backbone import empty_backbone, parameter_counts
from teacher_torch.gr00t import Gr00tTeacher, load_gr00t
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.processor import Processor
from teacher_torch.teacher import TeacherOutput, check_teacher, features, provenance
from teacher_torch.teachers import load_teacher
from teacher_torch.tensors import weights_digest
from teacher_torch.tokenizer import QwenTokenizer
from teacher_torch.weights import random_backbone

TINY = Gr00tConfig.of_size("tiny")


@pytest.fixture(scope="module")
def teacher():
    return load_gr00t("random", "tiny", 0)


def test_full_size_has_the_releases_parameter_counts():
    """Oracle: counted on the reference classes, component by component."""
    assert parameter_counts(empty_backbone(Gr00tConfig.of_size("full"))) == {
        "vision (SigLIP)": 412_442_352,
        "connector (mlp1)": 2_361_344,
        "language, embeddings": 310_640_640,
        "language, layers and norm": 604_034_048,
        "backbone": 1_329_478_384,
    }


def test_features_have_their_shape_and_a_clean_mask(teacher, task):
    views = [task_view(q) for q in all_questions(task)]
    output = features(teacher, [views[0], views[-1]])
    assert output.features.dtype == ml_dtypes.bfloat16
    assert output.features.shape == (*output.mask.shape, teacher.feature_width)
    assert output.example(0).shape[0] == output.mask[0].sum() < output.mask.shape[1]


def test_left_padding_does_not_change_features(teacher, task):
    views = [task_view(q) for q in all_questions(task)]
    alone = features(teacher, [views[0]]).example(0).astype(np.float32)
    together = features(teacher, [views[0], views[-1]]).example(0).astype(np.float32)
    np.testing.assert_allclose(alone, together, atol=0.02 * alone.std() + 0.01 * abs(alone).max())


def test_weights_are_a_function_of_size_and_seed():
    digests = [weights_digest(random_backbone(TINY, seed, torch.float32)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_teacher_is_frozen_and_says_its_weights_are_random(teacher):
    assert not any(p.requires_grad for p in teacher.backbone.parameters())
    assert not teacher.backbone.training
    assert "random weights" in provenance(teacher)["weights"]


COUNTER = itertools.count()


class Broken:
    """A teacher whose features are spoiled."""

    name, weights = "broken", "none"

    def __init__(self, teacher, spoil):
        self.teacher, self.spoil = teacher, spoil

    def prepare(self, views):
        return self.teacher.prepare(views)

    def forward(self, inputs):
        output = self.teacher.forward(inputs)
        values = self.spoil(output.features.astype(np.float32), output.mask)
        return TeacherOutput(values.astype(ml_dtypes.bfloat16), output.mask, output.frames)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, _: np.zeros_like(x), "the same for every token"),
        (lambda x, _: x * np.nan, "not finite"),
        (lambda x, _: np.broadcast_to(np.arange(x.shape[-1]), x.shape), "the same for every token"),
        (
            lambda x, _: np.broadcast_to(np.arange(x.shape[1])[None, :, None] % 7.0, x.shape),
            "do not depend on the picture",
        ),
        (lambda x, _: x * (1 + 1e-2 * next(COUNTER)), "differ from call to call"),
        (lambda x, _: x * len(x), "when another view shares the batch"),
        (lambda x, _: x * (np.nan if len(x) > 1 else 1), "change by nan std when another view"),
    ],
)
def test_check_teacher_refuses_features_that_mean_nothing(teacher, spoil, message):
    with pytest.raises(InputError, match=message):
        check_teacher(Broken(teacher, spoil))


def test_check_teacher_accepts_the_random_teacher(teacher):
    check_teacher(teacher)


def test_missing_gpu_is_one_clear_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"teacher.device: expected one of cpu, got cuda"):
        load_teacher(device="cuda")


def test_bf16_features_stay_near_f32(task):
    view = task_view(all_questions(task)[0])
    exact, rough = (
        features(load_teacher(dtype=dtype), [view]).example(0).astype(np.float32)
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact - rough).mean() < 0.05 * exact.std()


def test_deep_bf16_teacher_with_outlier_channels_passes_its_own_check():
    """Twelve layers in bf16, two channels sixty times the rest, as language models have them."""
    config = Gr00tConfig.of_size("tiny")
    backbone = random_backbone(replace(config, num_layers=12), 0, torch.bfloat16)
    backbone.language_model.norm.weight[:2] *= 60
    processor = Processor(backbone.config, QwenTokenizer())
    check_teacher(Gr00tTeacher(backbone, processor, "random weights", "none"))


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cuda:99"])
def test_device_that_is_not_there_is_one_line(device):
    with pytest.raises(InputError, match=r"teacher.device: expected one of cpu"):
        load_teacher(device=device)


def test_dinov2_computes_in_the_dtype_it_is_given():
    teacher = load_teacher("dinov2-s", "random", dtype="bfloat16")
    assert next(teacher.model.parameters()).dtype == torch.bfloat16
