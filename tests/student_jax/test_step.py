"""The step's numbers: the same on any devices, in any micro-batches; what else it promises."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge import config as configs
from bridge.store import FeatureStore
from bridge.tree import flatten
from student_jax import step as step_module
from student_jax.batch import Batch, all_colors, feature_batch, scale_teacher
from student_jax.config import ModelConfig, TrainConfig
from student_jax.flops import example_flops, matmul_ceiling
from student_jax.losses import distillation_loss
from student_jax.plan import Plan
from student_jax.state import (
    decays_matrices,
    first_state,
    init_state,
    make_feature_schedule,
    make_optimizer,
)
from student_jax.step import compile_ahead, make_mesh, make_placer, make_train_step, replicated
from student_jax.students import make_student
from student_jax.train import make_scaling
from tests.conftest import examples_of, train_dict
from tests.student_jax.runs import drawn


@pytest.fixture(scope="module")
def start(task_folder, store_path):
    """A config, a first state and four batches, whose teachers are spread unevenly."""
    value = train_dict(task_folder, store_path, "unused", **{"data.augmented_fraction": 0.25})
    config = configs.from_dict(TrainConfig, value)
    store = FeatureStore(store_path)
    examples = examples_of(config, store)
    scaling = make_scaling("standardise", store, examples)
    model, tx = make_student(config.model, examples.feature_width), make_optimizer(config.optim)
    batches = [examples.train_batch(Plan(0, 4), step) for step in range(4)]
    state = jax.jit(lambda: init_state(config, model, tx, scaling))()
    return config, jax.device_get(state), batches


@functools.lru_cache
def program(config, devices):
    """A step, what places its batches, and its mesh: traced once in this file."""
    mesh = make_mesh(devices)
    model, tx = make_student(config.model, 64), make_optimizer(config.optim)
    return make_train_step(config, model, tx, mesh), make_placer(config, mesh), mesh


def steps_of(start, devices, **changes):
    """Takes four steps; returns their numbers and the states."""
    config, state, batches = start
    config = changed(config, **changes)
    step, place, mesh = program(config, devices)
    if config.optim.ema_decay:
        state = replace(state, ema=jax.tree.map(np.copy, state.params))
    state = jax.device_put(state, replicated(mesh))
    rows, states = [], []
    for batch in batches:
        state, metrics = step(state, place(batch))
        rows.append({name: float(value) for name, value in metrics.items()})
        states.append(jax.device_get(state))
    return rows, states


def changed(config, **changes):
    value = configs.to_dict(config)
    for key, item in changes.items():
        *path, last = key.split("__")
        place = value
        for part in path:
            place = place[part]
        place[last] = item
    return configs.from_dict(TrainConfig, value)


@pytest.fixture(scope="module")
def one(start):
    return steps_of(start, 1)


@pytest.fixture(scope="module")
def traced(start):
    """The same on two devices, and how often the step was traced."""
    original, traces = step_module.train_step, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "train_step", lambda *args: traces.append(1) or original(*args))
        return *steps_of(start, 2), len(traces)


def assert_same(one, rows, states):
    for a, b in zip(one[0], rows, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    chex.assert_trees_all_close(states[-1].params, one[1][-1].params, rtol=1e-4, atol=1e-5)


def test_devices_do_not_change_the_numbers_and_the_step_compiles_once(one, traced):
    rows, states, traces = traced
    assert traces == 1
    assert_same(one, rows, states)


SHAPES = [
    (4, {}),
    (4, {"map": "pmap"}),
    (1, {"optim__accumulate": 4, "model__scan_layers": True}),
    (2, {"optim__accumulate": 2, "model__remat": True}),
    (2, {"model__scan_layers": True, "model__remat": True}),
]


@pytest.mark.parametrize(("devices", "changes"), SHAPES)
def test_devices_and_micro_batches_do_not_change_the_numbers(start, one, devices, changes):
    """One device may hold no example with a teacher at all: means are of the whole batch."""
    assert_same(one, *steps_of(start, devices, **changes))


def test_step_that_was_compiled_ahead_is_the_same(start, monkeypatch):
    """As on a GPU, where shapes are compiled at once."""
    config, state, batches = start
    step, place, mesh = program(config, 1)
    placed = [place(batch) for batch in batches[:2]]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ahead = compile_ahead(step, jax.device_put(state, replicated(mesh)), placed)
    monkeypatch.undo()
    for batch in placed:
        want = step(jax.device_put(state, replicated(mesh)), batch)
        got = ahead(jax.device_put(state, replicated(mesh)), batch)
        chex.assert_trees_all_equal(got, want)


def test_first_state_is_drawn_where_there_is_no_cpu_too(start, monkeypatch):
    config, state, _ = start
    model, tx = make_student(config.model, 64), make_optimizer(config.optim)

    def none(*, backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return jax.devices()

    monkeypatch.setattr(jax, "local_devices", none)
    again = first_state(config, model, tx, state.scaling, replicated(make_mesh(1)))
    chex.assert_trees_all_equal(jax.device_get(again.params), state.params)


def test_class_weights_are_those_of_the_whole_batch(start):
    """Of all cells that are weighted: also of the demonstrations, where they are answered."""
    weighted = {"loss__task_loss": "class_weighted", "loss__left_out": 1.0}
    rows, _ = steps_of(start, 1, **weighted)
    shared, _ = steps_of(start, 2, **weighted, optim__accumulate=2)
    for term in ("task", "left_out"):
        assert rows[0][term] == pytest.approx(shared[0][term], rel=1e-5)


def test_moving_average_follows_its_formula_and_answers(start, one):
    _, states = steps_of(start, 1, optim__ema_decay=0.9)
    average = start[1].params
    for step, state in enumerate(states):
        decay = min(0.9, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda a, p, d=decay: d * a.astype(np.float64) + (1 - d) * p, average, state.params
        )
        chex.assert_trees_all_close(state.ema, average, atol=1e-6)
    assert states[-1].answering is states[-1].ema
    plain = one[1][-1]
    assert plain.answering is plain.params
    chex.assert_trees_all_equal(plain.params, states[-1].params)


def products_of(jaxpr):
    """Every matrix product of a program, also of those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                if inner := getattr(each, "jaxpr", each if hasattr(each, "eqns") else None):
                    yield from products_of(inner)


@pytest.mark.parametrize("kind", ["grid", "feature", "original"])
def test_bf16_computes_in_bf16_and_keeps_weights_and_loss_in_f32(start, kind):
    """Every large matrix product takes bf16; weights, gradients and the loss stay f32."""
    scaling = "none" if kind == "original" else "standardise"
    changes = {"model__kind": kind, "model__compute": "bfloat16", "model__max_tokens": 256}
    config = changed(start[0], **changes, loss__scaling=scaling)
    batch = start[2][0]
    if kind != "grid":
        batch = replace(batch, answer=np.zeros((4, *[config.model.answer_side] * 2), np.uint8))
    model, tx = make_student(config.model, 64), make_optimizer(config.optim)
    state = jax.eval_shape(lambda: init_state(config, model, tx, start[1].scaling))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}

    def forward(params, batch):
        return model.apply({"params": params}, scale_teacher(batch, start[1].scaling))

    # Those of one column sum rows, where statistics have to be f32.
    factors = [
        {factor.aval.dtype.name for factor in product.invars}
        for product in products_of(jax.make_jaxpr(forward)(state.params, batch).jaxpr)
        if product.outvars[0].aval.shape[-1] > 1
    ]
    in_f32 = {"grid": 3, "feature": 2, "original": 3}[kind]  # the heads
    assert len(factors) > 6
    assert sum("float32" in each for each in factors) <= in_f32
    output = jax.eval_shape(forward, state.params, batch)
    assert output.logits.dtype == jnp.float32


def test_bf16_stays_near_f32(start, one):
    rows, states = steps_of(start, 1, model__compute="bfloat16")
    for a, b in zip(one[0], rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
    assert one[0] != rows
    assert {leaf.dtype for leaf in jax.tree.leaves(states[-1].opt_state)} <= {
        np.dtype("float32"),
        np.dtype("int32"),
    }


def test_features_that_are_sent_for_some_teach_what_masked_zeros_do(start):
    """Of every second example, in four shares of a batch."""
    config, state, _ = start
    config = changed(config, data__augmented_fraction=0.5)
    examples = examples_of(config, FeatureStore(config.data.store))
    every, second = ([examples.train_batch(Plan(0, 8, share=n), 0)] for n in (1, 2))
    assert (len(every[0].teacher), len(second[0].teacher)) == (8, 4)
    (row,), (after,) = steps_of((config, state, every), 1)
    assert row["mse"] > 0.1
    assert_same(([row], [after]), *steps_of((config, state, second), 2, optim__accumulate=2))


@pytest.mark.parametrize("kind", ["grid", "feature"])
def test_bf16_gradients_stay_near_f32_over_many_tokens(start, kind):
    """A sum of ones over tokens stops at 256 in bf16: a bias' gradient must be summed in f32."""
    rng, size, side = np.random.default_rng(0), 16, 8
    config = changed(start[0], model__kind=kind, model__max_tokens=256)
    teacher = rng.normal(size=(size, 256 if kind == "feature" else 48, 64)).astype(np.float32)
    batch = Batch(
        demonstrations=rng.integers(0, 10, (size, 1, 2, side, side)).astype(np.uint8),
        demonstration_mask=np.ones((size, 1), bool),
        palette=all_colors(size),
        query=rng.integers(0, 10, (size, side, side)).astype(np.uint8),
        answer=rng.integers(0, 10, (size, side, side)).astype(np.uint8),
        teacher=teacher,
        teacher_mask=np.ones(teacher.shape[:2], bool),
    )
    params = drawn(make_student(config.model, 64), batch)["params"]
    grads = []
    for compute in ("float32", "bfloat16"):
        model = make_student(replace(config.model, compute=compute), 64)

        def loss(params, model=model):
            return distillation_loss(
                model.apply({"params": params}, batch), batch, config.loss
            ).total

        grads.append(flatten(jax.jit(jax.grad(loss))(params)))
    for name, exact in grads[0].items():
        if not name.endswith("key.bias"):  # softmax takes no notice of it: 0 but for rounding
            gap = np.linalg.norm(grads[1][name] - exact) / np.linalg.norm(exact)
            assert gap < 0.04, name


def test_remat_keeps_less_for_the_backward_pass(start):
    config, state, batches = start
    kept = []
    for remat in (False, True):
        model = make_student(replace(config.model, depth=4, remat=remat), 64)
        batch = scale_teacher(batches[0], state.scaling)
        params = jax.eval_shape(lambda m=model, b=batch: m.init(jax.random.key(0), b))["params"]

        def backward(params, model=model, batch=batch):
            def loss(params):
                return model.apply({"params": params}, batch).logits.sum()

            return jax.vjp(loss, params)[1]  # a pytree of all that it keeps

        leaves = jax.tree.leaves(jax.eval_shape(backward, params))
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))
    assert kept[1] < kept[0] / 5


def test_state_is_donated_and_nothing_is_copied_on_the_sly(start, traced):
    config, state, batches = start
    step, place, mesh = program(config, 2)
    state = jax.device_put(state, replicated(mesh))
    with jax.transfer_guard("disallow"):
        after, _ = step(state, place(batches[0]))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            step(after, batches[1])


def test_two_examples_are_learnt(start):
    config, state, batches = start
    config = changed(config, optim__total_steps=80, optim__peak_lr=0.03)
    mesh = make_mesh(1)
    model, tx = make_student(config.model, 64), make_optimizer(config.optim)
    step, place = make_train_step(config, model, tx, mesh), make_placer(config, mesh)
    state = jax.device_put(state, replicated(mesh))
    losses = []
    for _ in range(80):
        state, metrics = step(state, place(batches[0]))
        losses.append(float(metrics["task"]))
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("kind", "invariant", "taught"),
    [("grid", 0, 2), ("grid", 0, 1), ("grid", 256, 2), ("feature", 0, 2), ("original", 0, 2)],
)
def test_model_flops_are_what_xla_counts(kind, invariant, taught):
    """XLA also counts what is done element by element: a few percent."""
    model = ModelConfig(
        kind=kind, width=128, heads=4, mlp_width=256, depth=2, max_tokens=256, canvas=16
    )
    model = replace(model, loops=1 if kind == "original" else 2, invariant_width=invariant)
    batch = flops_batch(model)
    seen = {"teacher": batch.teacher[:taught], "teacher_mask": batch.teacher_mask[:taught]}
    batch, width = replace(batch, **seen), batch.teacher.shape[-1]
    student = make_student(model, width)
    shapes = jax.eval_shape(lambda: student.init(jax.random.key(0), batch))
    counted = jax.jit(student.apply).lower(shapes, batch).cost_analysis()["flops"]
    assert 0.92 < example_flops(model, width, batch) / 3 * len(batch.answer) / counted < 1


def flops_batch(model):
    if model.reads_features:
        side = model.answer_side
        return feature_batch(
            np.zeros((2, 200, 64), np.float32),
            np.ones((2, 200), bool),
            np.zeros((2, side, side), np.uint8),
        )
    return Batch(
        demonstrations=np.zeros((2, 3, 2, 12, 12), np.uint8),
        demonstration_mask=np.ones((2, 3), bool),
        palette=all_colors(2),
        query=np.zeros((2, 12, 12), np.uint8),
        answer=np.zeros((2, 12, 12), np.uint8),
        teacher=np.zeros((2, 7 * 36, 1024), np.float32),
        teacher_mask=np.ones((2, 7 * 36), bool),
    )


def test_ceiling_is_measured_once_and_plausible():
    ceiling = matmul_ceiling("float32")
    assert 1e9 < ceiling < 1e16
    assert matmul_ceiling("float32") == ceiling


@pytest.mark.parametrize("changes", [{"optim__accumulate": 2}, {"map": "pmap"}])
@pytest.mark.parametrize("kind", ["feature", "grid"])
def test_batches_with_empty_arrays_are_shared_too(start, kind, changes):
    """Readers of features have no demonstrations, others may have no teacher: arrays of size 0."""
    config = changed(start[0], model__kind=kind, model__max_tokens=256, **changes)
    batch = start[2][0]
    if kind == "feature":
        batch = feature_batch(batch.teacher, batch.teacher_mask, batch.answer)
    else:
        batch = replace(batch, teacher=batch.teacher[:0], teacher_mask=batch.teacher_mask[:0])
    mesh, model = make_mesh(2), make_student(config.model, 64)
    tx = make_optimizer(config.optim)
    state = jax.eval_shape(lambda: init_state(config, model, tx, start[1].scaling))
    step, place = make_train_step(config, model, tx, mesh), make_placer(config, mesh)
    after, metrics = jax.eval_shape(step, state, place(batch))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["loss"].shape == ()


def test_decay_acts_on_no_bias_and_no_norm(start):
    decayed = flatten(decays_matrices(start[1].params))
    assert not any(yes for name, yes in decayed.items() if name.endswith(("bias", "scale")))
    assert all(yes for name, yes in decayed.items() if name.endswith("kernel"))


def test_the_teachers_weight_fades(start):
    rows, _ = steps_of(start, 1, loss__fade=0.5, optim__total_steps=4)
    weights = [row["feature_weight"] for row in rows]
    loss = start[0].loss
    np.testing.assert_allclose(
        weights, [loss.feature, loss.feature, loss.feature, loss.feature / 2]
    )
    for row, weight in zip(rows, weights, strict=True):
        features = loss.mse * row["mse"] + loss.cosine * row["cosine"]
        assert row["loss"] == pytest.approx(loss.task * row["task"] + weight * features, rel=1e-5)


def test_a_constant_weight_and_one_that_fades_from_the_first_step():
    config = configs.from_dict(
        TrainConfig, {"data": {"store": "none"}, "optim": {"total_steps": 8}}
    )
    constant, fading = (
        make_feature_schedule(replace(config, loss=replace(config.loss, fade=fade)))
        for fade in (0.0, 1.0)
    )
    steps = np.arange(9)
    np.testing.assert_allclose(jax.vmap(constant)(steps), config.loss.feature)
    np.testing.assert_allclose(jax.vmap(fading)(steps), config.loss.feature * (1 - steps / 8))
