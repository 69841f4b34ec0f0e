import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.scaling import Scaling
from student_jax.batch import Batch, scale_teacher
from student_jax.config import LossConfig
from student_jax.losses import (
    cosine_distance,
    cross_entropy,
    distillation_loss,
    mean_per_example,
    squared_error,
)
from student_jax.students import StudentOutput


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(2, 5, 7)).astype(np.float32) for _ in range(2))


def test_cosine_and_squared_error_equal_torch(pair):
    student, teacher = pair
    expected = 1 - torch.nn.functional.cosine_similarity(
        torch.from_numpy(student), torch.from_numpy(teacher), dim=-1
    )
    np.testing.assert_allclose(cosine_distance(jnp.array(student), teacher), expected, atol=1e-5)
    expected = ((student.astype(np.float64) - teacher) ** 2).mean(-1)
    np.testing.assert_allclose(squared_error(jnp.array(student), teacher), expected, rtol=1e-5)


def test_cross_entropy_equals_torch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 3, 12)).astype(np.float32)
    classes = rng.integers(0, 12, (2, 3, 3))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).permute(0, 3, 1, 2), torch.from_numpy(classes), reduction="none"
    )
    np.testing.assert_allclose(cross_entropy(jnp.array(logits), classes), expected, atol=1e-5)


def test_cosine_of_a_zero_vector_is_one_and_finite():
    values = cosine_distance(jnp.zeros((1, 4)), jnp.ones((1, 4)))
    np.testing.assert_allclose(values, [1.0])


def test_mean_per_example_ignores_what_is_masked():
    values = jnp.array([[1.0, 3.0, jnp.nan], [5.0, jnp.inf, 9.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    means, valid = mean_per_example(values, mask)
    np.testing.assert_array_equal(means, [2.0, 0.0])
    np.testing.assert_array_equal(valid, [True, False])


def make_batch(rng, mask):
    size, tokens = mask.shape
    return Batch(
        demonstrations=np.zeros((size, 0, 2, 8, 8), np.uint8),
        demonstration_mask=np.zeros((size, 0), bool),
        query=np.zeros((size, 8, 8), np.uint8),
        answer=rng.integers(0, 12, (size, 8, 8)).astype(np.uint8),
        teacher=rng.normal(size=(size, tokens, 4)).astype(np.float32),
        teacher_mask=mask,
    )


def test_total_is_the_designs_formula_in_f64():
    rng = np.random.default_rng(2)
    mask = np.array([[True, True, False], [True, False, False], [False] * 3])
    batch = make_batch(rng, mask)
    logits = rng.normal(size=(3, 8, 8, 12))
    features = rng.normal(size=(3, 3, 4))
    output = StudentOutput(logits=jnp.array(logits), features=jnp.array(features))
    terms = distillation_loss(output, batch, LossConfig())

    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    task = -np.take_along_axis(log_probs, batch.answer[..., None].astype(int), -1).mean()
    error = ((features - batch.teacher) ** 2).mean(-1)
    cosine = 1 - (features * batch.teacher).sum(-1) / (
        np.linalg.norm(features, axis=-1) * np.linalg.norm(batch.teacher, axis=-1)
    )

    def mean(values):  # over each example's tokens, then over examples with a teacher
        return np.mean([values[i][mask[i]].mean() for i in range(3) if mask[i].any()])

    assert float(terms.task) == pytest.approx(task, rel=1e-5)
    assert float(terms.mse) == pytest.approx(mean(error), rel=1e-5)
    assert float(terms.cosine) == pytest.approx(mean(cosine), rel=1e-5)
    total = 1.0 * task + 0.5 * (mean(error) + 0.5 * mean(cosine))
    assert float(terms.total) == pytest.approx(total, rel=1e-5)


def test_feature_terms_without_any_teacher_are_zero():
    rng = np.random.default_rng(3)
    batch = make_batch(rng, np.zeros((2, 3), bool))
    output = StudentOutput(logits=jnp.zeros((2, 8, 8, 12)), features=jnp.ones((2, 3, 4)))
    terms = distillation_loss(output, batch, LossConfig())
    assert float(terms.mse) == float(terms.cosine) == 0.0
    assert float(terms.total) == float(terms.task)


def test_standardise_makes_a_student_that_says_zero_cost_one_per_channel():
    rng = np.random.default_rng(4)
    batch = make_batch(rng, np.ones((2, 50), bool))
    scale = np.array([1.0, 10.0, 1000.0, 0.1], np.float32)
    spread = Batch(**{**batch.__dict__, "teacher": batch.teacher * scale + 7 * scale})
    values = spread.teacher.reshape(-1, 4)
    scaling = Scaling(mean=values.mean(0), std=values.std(0))
    standard = scale_teacher(spread, scaling).teacher
    np.testing.assert_allclose(standard.reshape(-1, 4).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(standard.reshape(-1, 4).std(0), 1, rtol=1e-3)
    assert float(squared_error(jnp.zeros_like(standard), standard).mean()) == pytest.approx(
        1, rel=1e-3
    )
