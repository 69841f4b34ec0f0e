import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.arc import Pair
from bridge.arc_files import load_tasks
from bridge.canvas import BACKGROUND
from bridge.errors import InputError
from bridge.scaling import no_scaling
from bridge.store import FeatureStore
from bridge.transforms import Transform
from student_jax.batch import ROOMS
from student_jax.log import describe
from student_jax.plan import Plan, plan_epoch
from student_jax.resume import notes_on
from student_jax.solver import make_solver
from student_jax.train import load_examples, make_scaling
from teacher_torch.extract import main as extract
from tests.conftest import examples_of, make_grid


@given(
    st.lists(st.tuples(st.sampled_from([8, 12, 16]), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    st.integers(0, 3),
)
def test_an_epoch_covers_every_example_and_never_mixes_buckets(kinds, batch_size, augmented, epoch):
    """And in the plain places of a bucket that holds any stand originals alone."""
    buckets, original = zip(*kinds, strict=True)
    plain = Plan(0, batch_size).plain(augmented)
    plan = plan_epoch(buckets, original, plain, batch_size, 0, epoch)
    seen = Counter(int(i) for batch in plan for i in batch)
    assert set(seen) == set(range(len(buckets)))
    for batch in plan:
        assert len(batch) == batch_size
        (bucket,) = {buckets[i] for i in batch}
        kept = [i for i in range(len(kinds)) if kinds[i] == (bucket, True)]
        if len(plain) < batch_size:
            there = batch[plain[: len(kept)]].tolist()
            assert set(there) <= set(kept)
            if (bucket, False) in kinds:
                assert len(set(there)) == len(there)
    again = plan_epoch(buckets, original, plain, batch_size, 0, epoch)
    assert [b.tolist() for b in plan] == [b.tolist() for b in again]


@given(st.floats(0, 1), st.integers(1, 6), st.integers(1, 6))
def test_strides_reach_all_that_is_not_augmented(augmented, share, shares):
    plan = Plan(0, share * shares, share=share)
    places, stride = plan.plain(augmented), plan.stride(augmented)
    assert abs(len(places) - (1 - augmented) * plan.batch_size) < 1 + 1e-9
    assert bool(stride) == bool(places)
    assert set(places) <= set(range(0, plan.batch_size, max(stride, 1)))
    assert not stride or share % stride == 0


@pytest.fixture
def examples(train_config, store_path):
    config = train_config(**{"data.augmented_fraction": 0.5})
    return examples_of(config, FeatureStore(store_path))


def test_palette_holds_what_the_question_shows_and_never_the_answer(examples):
    """Nor what only a demonstration shows that is not read."""
    for example in examples.examples:
        seen = example.question.demonstrations[: examples.count]
        grids = [g for pair in seen for g in (pair.input, pair.output)]
        shown = {int(c) for g in (*grids, example.question.query) for c in g.ravel()}
        assert set(example.colors) == shown
        assert example.bucket.colors in ROOMS
        assert example.bucket.colors >= len(shown)
        other = replace(example, answer=np.full_like(example.answer, 9))
        assert other.colors == example.colors
    batch = examples.train_batch(Plan(0, 4), 0)
    for i, palette in enumerate(batch.palette):
        drawn = {*batch.query[i].ravel(), *batch.demonstrations[i].ravel()}
        assert {c for c in drawn if c < 10} - set(palette.tolist()) <= {0}  # 0: empty places


def test_batches_do_not_depend_on_where_a_run_starts(examples):
    from_start = examples.train_batches(Plan(3, 4), 0)
    for _ in range(5):
        next(from_start)
    resumed = examples.train_batches(Plan(3, 4), 5)
    for _ in range(3):
        a, b = next(from_start), next(resumed)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
    from_start.close()
    resumed.close()


def test_the_teacher_is_seen_in_every_fourth_example_however_many_are_generated(
    train_config, store_path, tmp_path
):
    """Without a teacher the examples are the same."""
    rng = np.random.default_rng(0)
    for name in ("1a", "1b", "1c"):
        grids = [make_grid(rng, 3, 3).tolist() for _ in range(5)]
        pairs = [{"input": grid, "output": grid[::-1]} for grid in grids]
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
    changes = {"data.rearc": str(tmp_path), "data.augmented_fraction": 0.75}
    plan, found = Plan(0, 8, share=4), []
    for store in (FeatureStore(store_path), None):
        changes |= {"store": store_path if store else None}
        examples = examples_of(train_config(**changes), store)
        assert not all(example.has_teacher for example in examples.examples)
        steps = range(examples.steps_per_epoch(8))
        batches = [examples.train_batch(plan, step) for step in steps]
        for step, batch in zip(steps, batches, strict=True):
            bucket = examples.examples[examples.indices(plan, step)[0]].bucket
            there = any(e.has_teacher for e in examples.examples if e.bucket == bucket)
            assert batch.teacher_mask.any(1).tolist() == [there] * 2 * bool(store)
        found.append([batch.query for batch in batches])
        assert examples.taught_share(plan) == pytest.approx(0.25 if store else 0)
    chex.assert_trees_all_equal(*found)


def test_augmented_examples_carry_no_teacher(examples):
    dense, two, four = (examples.train_batch(Plan(0, 4, share=n), 0) for n in (1, 2, 4))
    assert dense.teacher_mask.any(1).tolist() == [True, False, True, False]
    for batch in (two, four):
        assert batch.taught == slice(None, None, 2)
        np.testing.assert_array_equal(batch.teacher, dense.teacher[::2])
        np.testing.assert_array_equal(batch.query, dense.query)
        assert batch.teacher_mask.any(1).all()


def test_held_out_tasks_are_never_trained_on(train_config, store_path):
    config = train_config(**{"data.tasks.dev_fraction": 0.5})
    task_set = config.data.tasks
    train, dev = task_set.split(task_set.load())
    assert train
    assert dev
    examples = examples_of(config, FeatureStore(store_path))
    assert {e.question.task_id for e in examples.examples} == set(train)


def test_dev_membership_does_not_depend_on_what_else_is_loaded(train_config):
    task_set = train_config().data.tasks
    tasks = task_set.load()
    _, dev = task_set.split(tasks)
    for task_id, task in tasks.items():
        assert (task_id in task_set.split({task_id: task})[1]) == (task_id in dev)


def test_store_of_the_pair_view_is_refused(train_config, store_path):
    store = FeatureStore(store_path)
    store.provenance["view"] = "pair"
    with pytest.raises(InputError, match="shows the teacher the answer"):
        examples_of(train_config(), store)


def test_store_that_lacks_an_example_is_refused_at_once(train_config, extract_config, tmp_path):
    partial = replace(
        extract_config,
        out=str(tmp_path / "partial"),
        tasks=replace(extract_config.tasks, limit=2),
    )
    extract(partial)
    with pytest.raises(InputError, match="expected the example 1c_"):
        examples_of(train_config(), FeatureStore(partial.out))


def test_task_that_changed_since_extraction_is_noticed(
    train_config, extract_config, task_folder, tmp_path
):
    folder = tmp_path / "tasks"
    shutil.copytree(task_folder, folder)
    config = replace(
        extract_config,
        out=str(tmp_path / "features"),
        tasks=replace(extract_config.tasks, source=str(folder)),
    )
    extract(config)
    before = FeatureStore(config.out).records
    value = json.loads((folder / "1c.json").read_text())
    value["train"][0]["input"][0][0] = 9 - value["train"][0]["input"][0][0]
    (folder / "1c.json").write_text(json.dumps(value))
    changed = train_config(**{"data.tasks.source": str(folder)})
    with pytest.raises(InputError, match="shown other grids than the task holds now"):
        examples_of(changed, FeatureStore(config.out))
    extract(config)  # replaces only what changed
    examples_of(changed, FeatureStore(config.out))
    after = FeatureStore(config.out).records
    assert {n for n in after if after[n] != before[n]} == {"1c_train_0", "1c_train_1", "1c_test_0"}


def test_sequence_beyond_the_models_positions_is_one_line(train_config, store_path):
    store = FeatureStore(store_path)
    longest = max(record.num_tokens for record in store.records.values())
    config = train_config(**{"model.kind": "feature", "model.max_tokens": longest - 1})
    with pytest.raises(InputError, match=rf"model.max_tokens: expected at least {longest}"):
        examples_of(config, store)
    config = train_config(**{"model.kind": "feature", "model.max_tokens": longest})
    batch = examples_of(config, store).batch([0])
    assert batch.teacher.shape[1] == longest  # not rounded up beyond what the student can hold


def test_generated_pairs_are_trained_on_without_a_teacher(train_config, store_path, tmp_path):
    (tmp_path / "1a.json").write_text(
        json.dumps([{"input": [[1] * i + [0]], "output": [[0] + [1] * i]} for i in range(1, 6)])
    )
    config = train_config(**{"data.rearc": str(tmp_path), "data.augmented_fraction": 0.0})
    examples = examples_of(config, FeatureStore(store_path))
    generated = [i for i, e in enumerate(examples.examples) if not e.has_teacher]
    assert len(generated) == 5
    second = next(i for i in generated if examples.examples[i].question.query.size == 3)
    batch = examples.batch([second])
    assert not batch.teacher_mask.any()
    np.testing.assert_array_equal(batch.query[0, 0, :3], [1, 1, 0])
    np.testing.assert_array_equal(batch.answer[0, 0, :3], [0, 1, 1])


def test_generated_pairs_that_are_twins_or_held_out_are_left_out_and_counted(
    train_config, tmp_path
):
    config = train_config(store=None, **{"data.rearc": str(tmp_path)})
    tasks = config.data.tasks.load()
    held = tasks["1b"].demonstrations[0]
    turned = Transform(3, tuple(range(9, -1, -1)))
    pairs = [Pair(np.ones((1, i), np.uint8), np.zeros((1, i), np.uint8)) for i in range(1, 6)]
    twin, leak = (
        Pair(turned.grid(each.input), turned.grid(each.output)) for each in (pairs[0], held)
    )
    value = [
        {"input": pair.input.tolist(), "output": pair.output.tolist()}
        for pair in (*pairs, twin, leak)
    ]
    (tmp_path / "1a.json").write_text(json.dumps(value))
    examples = load_examples(config, {"1a": tasks["1a"]}, {"1b": tasks["1b"]}, None)
    assert sum(not example.has_teacher for example in examples.examples) == 5
    assert examples.dropped == {"twins of others": 1, "that held-out tasks have": 1}
    told = describe(config, examples, Plan(0, 4), SimpleNamespace(params={}))
    assert "left out: 1 generated pairs twins of others" in told


@pytest.mark.parametrize("kind", ["standardise", "phi_s"])
def test_scaling_goes_by_what_the_teacher_saw(train_config, store_path, tmp_path, kind):
    """Generated pairs are no part of a store, so they have no part in its statistics."""
    (tmp_path / "1a.json").write_text(
        json.dumps([{"input": [[1] * i + [0]], "output": [[0] + [1] * i]} for i in range(1, 6)])
    )
    store = FeatureStore(store_path)
    with_pairs = examples_of(train_config(**{"data.rearc": str(tmp_path)}), store)
    without = examples_of(train_config(), store)
    assert len(with_pairs.examples) == len(without.examples) + 5
    got, expected = (make_scaling(kind, store, x) for x in (with_pairs, without))
    np.testing.assert_array_equal(got.mean, expected.mean)
    np.testing.assert_array_equal(got.std, expected.std)


def test_task_that_has_a_held_out_pair_in_another_guise_is_left_out(train_config):
    config = train_config(store=None)
    tasks = config.data.tasks.load()
    names = sorted(tasks)
    turned = Transform(3, tuple(range(9, -1, -1)))
    first = tasks[names[0]].demonstrations[0]
    held_out = replace(
        tasks[names[-1]],
        demonstrations=(Pair(turned.grid(first.input), turned.grid(first.output)),),
        test_outputs=None,
    )
    training = {name: tasks[name] for name in names[:-1]}
    examples = load_examples(config, training, {names[-1]: held_out}, None)
    assert {e.question.task_id for e in examples.examples} == set(names[1:-1])
    assert examples.doubles == {names[0]: [f"{names[-1]}_train_0"]}


def test_what_training_gives_away_of_the_evaluation_set_is_noted_and_never_held_out(train_config):
    config = train_config(store=None)
    task = load_tasks("arcagi/training")["40853293"]
    examples = load_examples(config, {task.task_id: task}, {}, None)
    assert examples.leaked == {"070dd51e": ["40853293_test_0"]}
    notes = notes_on(examples, None)
    solver = make_solver(config, 0, notes, {}, no_scaling(1))
    assert solver.trained_on == {"40853293", "070dd51e"}
    state = SimpleNamespace(params={})
    assert "warning: the training data holds the answers of 1 tasks" in describe(
        config, examples, Plan(0, 4), state
    )
    assert load_examples(config, config.data.tasks.load(), {}, None).leaked == {}


def test_augmented_examples_are_moved_and_scaled_all_alike(train_config):
    config = train_config(store=None, **{"data.augmented_fraction": 1.0})
    examples = examples_of(config)
    places = set()
    for step in range(8):
        batch = examples.train_batch(Plan(0, 4), step)
        for i in range(4):
            shown = [batch.query[i], *batch.demonstrations[i][batch.demonstration_mask[i]][:, 0]]
            corners = {tuple(np.argwhere(canvas != BACKGROUND).min(0)) for canvas in shown}
            assert len(corners) == 1
            places |= corners
    assert len(places) > 3
