import ml_dtypes
import numpy as np
import pytest
import torch

from bridge.arc import all_questions
from bridge.errors import InputError
from bridge.views import task_view
from teacher_torch.gr00t import Gr00tBackbone, Gr00tTeacher, random_backbone, weights_digest
from teacher_torch.teacher import TeacherOutput, check_teacher, provenance


@pytest.fixture(scope="module")
def teacher():
    return Gr00tTeacher("tiny", 0)


def test_full_size_has_the_releases_parameter_count():
    """Oracle: parameters needed for features, counted on the reference classes."""
    with torch.device("meta"):
        backbone = Gr00tBackbone("full")
    assert sum(p.numel() for p in backbone.parameters()) == 1_329_478_384


def test_features_have_their_shape_and_a_clean_mask(teacher, task):
    views = [task_view(q) for q in all_questions(task)]
    output = teacher.features([views[0], views[-1]])
    assert output.features.dtype == ml_dtypes.bfloat16
    assert output.features.shape == (*output.mask.shape, teacher.feature_width)
    assert output.example(0).shape[0] == output.mask[0].sum() < output.mask.shape[1]


def test_left_padding_does_not_change_features(teacher, task):
    views = [task_view(q) for q in all_questions(task)]
    alone = teacher.features([views[0]]).example(0).astype(np.float32)
    together = teacher.features([views[0], views[-1]]).example(0).astype(np.float32)
    np.testing.assert_allclose(alone, together, atol=0.02 * alone.std() + 0.01 * abs(alone).max())


def test_weights_are_a_function_of_size_and_seed():
    assert weights_digest(random_backbone("tiny", 0)) == weights_digest(random_backbone("tiny", 0))
    assert weights_digest(random_backbone("tiny", 0)) != weights_digest(random_backbone("tiny", 1))


def test_teacher_is_frozen_and_says_its_weights_are_random(teacher):
    assert not any(p.requires_grad for p in teacher.backbone.parameters())
    assert not teacher.backbone.training
    assert "random weights" in provenance(teacher)["weights"]


class Broken:
    """A teacher whose features are spoiled."""

    name, weights = "broken", "none"

    def __init__(self, teacher, spoil):
        self.teacher, self.spoil = teacher, spoil

    def features(self, views):
        output = self.teacher.features(views)
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
        (lambda x, _: x * len(x), "when another view shares the batch"),
    ],
)
def test_check_teacher_refuses_features_that_mean_nothing(teacher, spoil, message):
    with pytest.raises(InputError, match=message):
        check_teacher(Broken(teacher, spoil))


def test_check_teacher_accepts_the_random_teacher(teacher):
    check_teacher(teacher)
