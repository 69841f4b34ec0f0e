"""Trains a student; a killed run goes on from its latest checkpoint.

python -m student_jax.train --config configs/quickstart_grid.yaml
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack

import jax
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import Task, all_questions, known_answers
from bridge.audit import known_answers_of
from bridge.duplicates import keys_of
from bridge.errors import InputError
from bridge.rearc import distinct_pairs, generated_questions, load_generated
from bridge.scaling import Scaling, covariance_of, layer_norm, no_scaling, phi_s, standardise
from bridge.stop import Stop
from bridge.store import FeatureStore
from student_jax import processes, resume
from student_jax.checkpoints import Checkpoints, best_of
from student_jax.config import TrainConfig
from student_jax.cores import use_every_core
from student_jax.data import Examples
from student_jax.development import Development, is_stale
from student_jax.dry_run import dry_run
from student_jax.flops import example_flops, matmul_ceiling
from student_jax.keep import keep_programs
from student_jax.log import TrainLog, describe
from student_jax.memory import begin_with_mimalloc
from student_jax.plan import Plan
from student_jax.solver import load_solver
from student_jax.state import first_state, make_optimizer
from student_jax.step import compile_ahead, make_mesh, make_placer, make_train_step, replicated
from student_jax.students import make_student


def main(config: TrainConfig) -> None:
    """Train a student on ARC tasks, with a teacher's features where a store is given.

    A run that was stopped goes on from its latest checkpoint when started again; its result is
    that of an unbroken run. Held-out tasks are never trained on. Started by srun or mpirun, or
    with JAX_COORDINATOR_ADDRESS set, all processes train one student: see docs/training.md.
    """
    if not processes.join():
        use_every_core(config.optim.batch_size // config.optim.accumulate)
    if jax.default_backend() != "cpu":
        keep_programs()  # a resumed run need not compile again
    train(config)


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to `optim.total_steps` and returns the last step's metrics."""
    resume.check_may_differ(config)
    mesh = make_mesh()
    check_divides(config, mesh.devices.size)
    store = FeatureStore(config.data.store, config.data.cache) if config.data.store else None
    training, held_out = config.data.tasks.split(config.data.tasks.load())
    examples = load_examples(config, training, held_out, store)
    width, size, total = examples.feature_width, config.optim.batch_size, config.optim.total_steps
    share = size // (mesh.devices.size * config.optim.accumulate)
    plan = Plan(config.seed, size, processes.own_rows(size), share)
    if config.dry_run:
        dry_run(config, examples, plan, mesh)
        return {}

    notes = resume.notes_on(examples, store)
    model = make_student(config.model, width)
    tx = make_optimizer(config.optim, config.loss.form)
    step_fn, place = make_train_step(config, model, tx, mesh), make_placer(config, mesh)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(config.out, create=True))
        stop = stack.enter_context(Stop())
        first_step = 0
        if own := resume.restore_own(checkpoints, replicated(mesh), notes, config):
            first_step, notes, state = own
        else:
            scaling = make_scaling(config.loss.scaling, store, examples)
            state = first_state(config, model, tx, scaling, replicated(mesh))
            if config.init:
                notes, state = resume.warm_start(notes, state, load_solver(config.init))
        if processes.is_first():
            configs.save(config, config.out / "config.yaml")
        # Also of tasks that only a run before this one was trained on, nothing is held out.
        unseen = {i: held_out[i] for i in held_out.keys() - set(notes["trained_on"])}
        development = Development(config, unseen, store, width)
        log = stack.enter_context(
            TrainLog(
                config,
                first_step,
                peak_flops=matmul_ceiling(config.model.compute) * jax.process_count(),
                name_batch=lambda step: examples.name_batch(plan, step),
                last_good=checkpoints.latest_step,
                quiet=not processes.is_first(),
            )
        )
        start = f"starting from the weights of {config.init}" if config.init else "starting"
        start = f"resuming at step {first_step}" if first_step else start
        log.say(f"{describe(config, examples, plan, state)}\n{start}")
        if jax.default_backend() != "cpu" and config.map == "shard_map":
            firsts = [first for first, _ in examples.buckets(plan).values()]
            drawn = [place(examples.train_batch(plan, first)) for first in firsts]
            log.say(f"compiling the step for {len(drawn)} shapes")
            step_fn = compile_ahead(step_fn, state, drawn)
            log.restart_clock()
        batches = examples.train_batches(plan, first_step, place)
        step = first_step
        while True:  # it ends in the middle: the last save happens without repeating its code
            stopping = asked_to_stop(stop, step, config.log_steps)
            due = step >= total or step % config.checkpoint_steps == 0
            if step > first_step and (due or stopping):
                log.settle()
                if due and development.tasks:  # not where a signal came: history stays the same
                    scores, pictures = development.try_on(state)
                    notes["dev"].append({"step": step, **processes.first_says(scores)})
                    log.dev(step, scores, pictures, development.describe(scores))
                checkpoints.save(step, state, config, notes)
                log.restart_clock()
            if stopping or step >= total or is_stale(notes["dev"], config.patience):
                break
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            left_out = config.loss.left_out > 0
            flops = size * example_flops(config.model, width, batch, left_out=left_out)
            with jax.transfer_guard("disallow"):  # a hidden copy is an error, not a slow step
                state, metrics = step_fn(state, batch)
            step += 1
            log.see(step, metrics, examples=size, flops=flops, waited=waited)
        batches.close()
        checkpoints.wait()
        log.say(how_it_ended(config, step, notes["dev"], stopping=stopping))
        if stopping:
            raise KeyboardInterrupt
    return log.metrics


def how_it_ended(
    config: TrainConfig, step: int, dev: list[dict[str, float]], *, stopping: bool
) -> str:
    """Returns the last line."""
    if stopping:
        return f"stopped at step {step}; the same command goes on from the latest in {config.out}"
    if step >= config.optim.total_steps:
        return f"done: {config.out}; next: python -m student_jax.solve --checkpoint {config.out}"
    return (
        f"stopped early at step {step}: none since step {best_of(dev)} is better; next: "
        f"python -m student_jax.solve --checkpoint {config.out} --which best"
    )


def check_divides(config: TrainConfig, devices: int) -> None:
    """Refuses a batch that the devices cannot share.

    Raises:
        InputError: saying what it has to be a multiple of.
    """
    each = devices * config.optim.accumulate
    if config.optim.batch_size % each:
        raise InputError(
            f"optim.batch_size: expected a multiple of {devices} devices times "
            f"{config.optim.accumulate} micro-batches = {each}, got {config.optim.batch_size}"
        )
    if config.map == "pmap" and jax.process_count() > 1:
        raise InputError("map: expected shard_map with several processes, got pmap")


def asked_to_stop(stop: Stop, step: int, log_steps: int) -> bool:
    """Whether a signal came, to any of the processes; several only ask each other now and then."""
    if jax.process_count() == 1:
        return stop.requested
    return step % log_steps == 0 and processes.anyone(stop.requested)


def load_examples(
    config: TrainConfig,
    tasks: dict[str, Task],
    held_out: dict[str, Task],
    store: FeatureStore | None,
) -> Examples:
    """Returns the examples to train on: every pair of the tasks is a question once.

    A task that has a pair of a held-out one, turned, mirrored and recolored in any way, is left
    out, and so is such a generated pair. What they hold of the public evaluation set is noted.
    """
    held = keys_of(held_out.values())
    keys = {task_id: keys_of([task]) for task_id, task in tasks.items()}
    shared = {task_id: held.keys() & keys[task_id].keys() for task_id in tasks}
    kept = [task for task_id, task in tasks.items() if not shared[task_id]]
    doubles = {task_id: sorted(held[min(both)]) for task_id, both in shared.items() if both}
    seen = {key: names for task in kept for key, names in keys[task.task_id].items()}
    questions = [question for task in kept for question in all_questions(task)]
    answers = {name: grid for task in kept for name, grid in known_answers(task).items()}
    dropped: Counter[str] = Counter()
    if config.data.rearc is not None:
        task_ids = {task.task_id for task in kept}
        generated = load_generated(config.data.rearc, task_ids, config.data.tasks.max_side)
        for task_id, pairs in generated.items():
            distinct, without = distinct_pairs(pairs, held)
            more, known = generated_questions(task_id, list(distinct.values()))
            dropped += without
            seen |= {key: [f"{task_id}, generated"] for key in distinct}
            questions += more
            answers |= known
    questions = [question for question in questions if question.example_id in answers]
    known_of = known_answers_of(seen)
    examples = Examples(
        questions,
        answers,
        config.model,
        config.data,
        store,
        doubles=doubles,
        leaked=known_of,
        dropped=dropped,
    )
    if not examples.examples:
        raise InputError("data.tasks: no training example is left; raise max_side or limit")
    rows, tasks_left = config.model.table, {e.question.task_id for e in examples.examples}
    if 0 < rows < len(tasks_left):
        raise InputError(
            f"model.table: expected 0 or a row for each of the {len(tasks_left)} training tasks, "
            f"got {rows}"
        )
    return examples


def make_scaling(kind: str, store: FeatureStore | None, examples: Examples) -> Scaling:
    """Returns how features are scaled, going by the examples that are trained on and no others."""
    if store is None or kind == "none":
        return no_scaling(examples.feature_width)
    if kind == "layer_norm":
        return layer_norm(store.feature_width)
    names = [e.question.example_id for e in examples.examples if e.has_teacher]
    statistics = store.statistics(names)
    if kind == "standardise":
        return standardise(statistics)
    covariance = covariance_of((store.read(name) for name in tqdm(names, "covariance")), statistics)
    return phi_s(statistics, covariance)


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, TrainConfig, resumes=True)
