from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.scaling import Scaling
from student_jax import terms
from student_jax.batch import Batch, StudentOutput, all_colors, scale_teacher
from student_jax.config import LossConfig
from student_jax.losses import distillation_loss, divisors_of, sum_per_example, sum_per_token
from student_jax.terms import cosine_distance, cross_entropy, squared_error


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


def test_sum_per_example_ignores_what_is_masked():
    values = jnp.array([[1.0, 3.0, jnp.nan], [5.0, jnp.inf, 9.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    assert float(sum_per_example(values, mask)) == 2.0  # the second has nothing to average


def test_an_example_counts_once_and_in_the_original_once_a_token():
    values = jnp.array([[4.0, 4.0, 4.0], [1.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    assert float(sum_per_example(values, mask)) == 2 * 2.5
    assert float(sum_per_token(values, mask)) == 13


def test_smooth_l1_equals_torch(pair):
    student, teacher = (3 * x for x in pair)
    expected = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), reduction="none"
    ).mean(-1)
    got = terms.smooth_l1(jnp.array(student), jnp.array(teacher))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_logit_distance_equals_torch(pair):
    student, teacher = pair
    expected = 9 * torch.nn.functional.kl_div(
        torch.log_softmax(torch.from_numpy(student) / 3, -1),
        torch.softmax(torch.from_numpy(teacher) / 3, -1),
        reduction="none",
    ).sum(-1)
    got = terms.logit_distance(jnp.array(student), jnp.array(teacher), 3.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_attention_distance_equals_torch_and_is_0_for_equal_maps(pair):
    student, teacher = (torch.softmax(torch.from_numpy(x), -1) for x in pair)
    expected = torch.nn.functional.kl_div(student.log(), teacher, reduction="none").sum(-1)
    got = terms.attention_distance(jnp.array(student.numpy()), jnp.array(teacher.numpy()))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    one = jnp.array(teacher.numpy()).at[..., 0].set(0.0)  # a masked token
    np.testing.assert_allclose(terms.attention_distance(one, one), 0, atol=1e-6)


def test_focal_counts_sure_cells_less():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, 12)).astype(np.float32) * 3
    classes = rng.integers(0, 12, 40)
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(40), classes]
    got = terms.focal(jnp.array(logits), jnp.array(classes))
    np.testing.assert_allclose(got, -((1 - p) ** 2) * np.log(p), rtol=1e-3, atol=1e-5)


def test_class_weights_give_every_class_the_same_say():
    classes = np.array([[0, 0, 0, 0, 0, 5], [0, 0, 0, 5, 7, 0]])
    counts = np.bincount(classes.ravel(), minlength=12).astype(np.float32)
    weights = np.asarray(terms.class_weights(jnp.array(counts)))[classes]
    sums = [weights[classes == c].sum() for c in (0, 5, 7)]
    np.testing.assert_allclose(sums, sums[0])
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonal_projector_turns_and_does_not_stretch(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = np.asarray(terms.orthogonal(jnp.array(kernel)))
    assert got.shape == shape
    few = got @ got.T if shape[0] <= shape[1] else got.T @ got
    np.testing.assert_allclose(few, np.eye(min(shape)), atol=1e-5)
    again = np.asarray(terms.orthogonal(jnp.array(got)))
    np.testing.assert_allclose(again, got, atol=1e-5)


@pytest.mark.parametrize(
    "distance",
    [
        terms.squared_error,
        terms.smooth_l1,
        terms.cosine_distance,
        terms.attention_distance,
        terms.logit_distance,
    ],
)
def test_no_term_teaches_the_teacher(distance, pair):
    student, teacher = (jnp.abs(jnp.array(x)) for x in pair)
    grad = jax.grad(lambda t: distance(student, t).sum())(teacher)
    np.testing.assert_array_equal(grad, 0)


def torch_original_loss(logits, answer, projected, teacher, mask):
    """docs of the original, section "Loss", in torch: masked MSE over tokens only, and so on."""
    task = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), answer)
    kept, true = projected[mask], teacher[mask]
    mse = ((kept - true) ** 2).sum() / mask.sum()
    cosine = 1 - torch.nn.functional.cosine_similarity(kept, true, dim=-1).mean()
    return task + 0.5 * (mse + 0.5 * cosine), task, mse, cosine


def test_original_form_equals_torch_and_is_2048_times_as_large():
    rng = np.random.default_rng(5)
    mask = np.arange(6) < np.array([[6], [3]])
    teacher = rng.normal(0, 2.1, (2, 6, 2048)).astype(np.float32)
    projected = rng.normal(0, 0.6, (2, 6, 2048)).astype(np.float32)
    logits = rng.normal(0, 0.02, (2, 30, 30, 10)).astype(np.float32)
    answer = rng.integers(0, 10, (2, 30, 30))
    batch = Batch(
        **{
            **make_batch(rng, mask).__dict__,
            "answer": answer.astype(np.uint8),
            "teacher": teacher,
        }
    )
    output = StudentOutput(logits=jnp.array(logits), features=jnp.array(projected))
    config = LossConfig(form="original", scaling="none")
    got = distillation_loss(output, batch, config)
    tensors = map(torch.from_numpy, (logits, answer, projected, teacher, mask))
    expected = torch_original_loss(*tensors)
    for value, name in zip(expected, ("total", "task", "mse", "cosine"), strict=True):
        assert float(getattr(got, name)) == pytest.approx(value.item(), rel=1e-5)
    assert float(got.mse) / 2048 == pytest.approx(2.1**2 + 0.6**2, rel=0.05)
    assert 0.5 * float(got.mse) / float(got.total) > 0.999  # what that scale did to the task


def make_batch(rng, mask):
    size, tokens = mask.shape
    return Batch(
        demonstrations=np.zeros((size, 0, 2, 8, 8), np.uint8),
        demonstration_mask=np.zeros((size, 0), bool),
        palette=all_colors(size),
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
    got = distillation_loss(output, batch, LossConfig())

    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    task = -np.take_along_axis(log_probs, batch.answer[..., None].astype(int), -1).mean()
    error = ((features - batch.teacher) ** 2).mean(-1)
    cosine = 1 - (features * batch.teacher).sum(-1) / (
        np.linalg.norm(features, axis=-1) * np.linalg.norm(batch.teacher, axis=-1)
    )

    def mean(values):  # over each example's tokens, then over examples with a teacher
        return np.mean([values[i][mask[i]].mean() for i in range(3) if mask[i].any()])

    assert float(got.task) == pytest.approx(task, rel=1e-5)
    assert float(got.mse) == pytest.approx(mean(error), rel=1e-5)
    assert float(got.cosine) == pytest.approx(mean(cosine), rel=1e-5)
    total = 1.0 * task + 0.5 * (mean(error) + 0.5 * mean(cosine))
    assert float(got.total) == pytest.approx(total, rel=1e-5)


def test_feature_terms_without_any_teacher_are_zero():
    rng = np.random.default_rng(3)
    batch = make_batch(rng, np.zeros((2, 3), bool))
    output = StudentOutput(logits=jnp.zeros((2, 8, 8, 12)), features=jnp.ones((2, 3, 4)))
    got = distillation_loss(output, batch, LossConfig())
    assert float(got.mse) == float(got.cosine) == 0.0
    assert float(got.total) == float(got.task)


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


def test_left_out_demonstrations_cost_as_much_as_questions_do_and_a_lone_one_nothing():
    rng = np.random.default_rng(6)
    batch = make_batch(rng, np.zeros((3, 3), bool))
    shown = np.array([[True, True, False], [True, True, True], [True, False, False]])
    batch = replace(
        batch,
        demonstrations=rng.integers(0, 12, (3, 3, 2, 8, 8)).astype(np.uint8),
        demonstration_mask=shown,
    )
    said = rng.normal(size=(3, 3, 8, 8, 12))
    output = StudentOutput(
        logits=jnp.zeros((3, 8, 8, 12)), features=jnp.zeros((3, 3, 4)), left_out=jnp.array(said)
    )
    got = distillation_loss(output, batch, LossConfig(left_out=0.5))
    log_probs = said - np.log(np.exp(said).sum(-1, keepdims=True))
    answers = batch.demonstrations[:, :, 1].astype(int)
    nats = -np.take_along_axis(log_probs, answers[..., None], -1)[..., 0].mean((2, 3))  # [B, P]
    expected = (nats[0, :2].mean() + nats[1].mean() + 0) / 3
    assert float(got.left_out) == pytest.approx(expected, rel=1e-5)
    assert float(got.total) == pytest.approx(np.log(12) + 0.5 * expected, rel=1e-5)


def test_no_class_that_only_demonstrations_show_outweighs_the_rest():
    """Every class that is weighted has the same say, whether answers or demonstrations hold it."""
    demonstrations = np.zeros((1, 2, 2, 8, 8), np.uint8)
    demonstrations[0, :, 1, :4] = 5  # half of the outputs' cells; no answer has it
    batch = Batch(
        demonstrations=demonstrations,
        demonstration_mask=np.ones((1, 2), bool),
        palette=all_colors(1),
        query=np.zeros((1, 8, 8), np.uint8),
        answer=np.zeros((1, 8, 8), np.uint8),
        teacher=np.zeros((1, 1, 1), np.float32),
        teacher_mask=np.zeros((1, 1), bool),
    )
    weights = LossConfig(task_loss="class_weighted", left_out=1.0)
    found = np.asarray(divisors_of(batch, weights).class_weights)
    np.testing.assert_allclose(found[[0, 5]], [192 / (2 * 128), 192 / (2 * 64)])
    lone = replace(batch, demonstration_mask=np.array([[True, False]]))  # is not answered
    assert divisors_of(lone, weights).class_weights[0] == 1
