"""The model card of an export: what the student is, who taught it, and what follows from that."""

from __future__ import annotations

from typing import Any

from bridge.arc import MAX_SIDE
from student_jax.solver import Solver

NOT_ADVICE = "This is how the project reads it, not legal advice."
RANDOM = "random weights"  # as a teacher's provenance has it
LICENCES = {  # of the teachers with weights, by name: what it means for a student of theirs
    "gr00t-n1.5": """NVIDIA releases GR00T N1.5's weights for non-commercial use only. None of them
are in this folder, but this student was trained to see what they see, so it may count as made from
them:

- Do not use it commercially, nor anything made with it, unless the licence that came with the
  teacher's checkpoint, or its owner, allows it.
- Whoever passes it on passes on the teacher's licence and name with it: keep this card.
- A finetune's owner may have set further terms. They hold, too.""",
    "dinov2-s": """Both allow any use, also commercial, as long as their notices are kept: keep
this card.""",
}
ALONE = """With `pip install sage-distill[student]`, in this folder:

    python -m student_jax.solve 8be77c9e --checkpoint . --adapt weights --views 8

learns the task's demonstrations for up to a minute before it answers; without `--adapt` it answers
in one pass, in milliseconds.

"""
UNKNOWN = """What that allows was not looked at. Read it before you use the student or pass it on,
and keep this card."""


def model_card(solver: Solver) -> str:
    """Returns README.md of an export's folder."""
    if solver.config.model.reads_features:
        reads, use = "It reads the teacher's features: it cannot answer without the teacher.", ""
    else:
        reads, use = "It reads raw grids and answers in one pass, without a teacher.", ALONE
    most = solver.config.data.tasks.max_side
    sides = f" with sides of at most {most}" if most < MAX_SIDE else ""
    licence = "" if _is_free(solver) else "license: other\nlicense_name: the-teachers\n"
    return f"""---
{licence}tags: [arc-agi, distillation, sage-distill]
library_name: pytorch
---
# SAGE-distill {solver.config.model.kind} student

{solver.num_parameters:,} parameters, step {solver.step}. {reads}

## Teacher and licence

{_teacher(solver)}

## What it is for

Answering ARC tasks, and research on how. It was trained on {len(solver.trained_on)} ARC-AGI-1
tasks{sides}, named in config.json: scores on those say nothing of new tasks.
`python -m student_jax.evaluate` scores its answers to others, beside baselines that learn nothing.
Its confidence is its own: it can be sure and wrong.

## How to use it

{use}`model.safetensors` has PyTorch's names and layouts. With `pip install sage-distill[teacher]`:

    import json, torch
    from safetensors.torch import load_file
    from bridge.torch_student import make_mirror
    about = json.load(open("config.json"))
    student = make_mirror(about["model"], about["feature_width"], about["scaling"]).eval()
    student.load_state_dict(load_file("model.safetensors"))

`python -m bridge.torch_export --folder . --format torchscript onnx` checks the weights against
`proof.safetensors` and writes TorchScript, a `torch.export` program and ONNX. `manifest.json` tells
what is here, each file's digest, and how far each format's answers are from the student's in JAX.
"""


def _is_free(solver: Solver) -> bool:
    """Whether nobody else's terms bear on the weights, as far as is known."""
    taught = any(RANDOM not in teacher["weights"] for teacher in solver.teachers)
    reads = solver.config.model.reads_features and solver.teacher is None
    began = solver.init is not None and "teachers" not in solver.init  # by an older version
    return not (taught or reads or began)


def _teacher(solver: Solver) -> str:
    """Says who taught it, under which licence, and what that means."""
    teacher, parts = solver.teacher, []
    if solver.init:
        parts.append(
            f"It started from the weights of {solver.init['run']}: what that student's card says "
            "of its teacher and licence holds here, too."
        )
    parts += [_terms(each) for each in solver.taught_before]
    if teacher is None and solver.config.model.reads_features:
        parts.append(
            "Teacher: not told with the weights, though it reads one's features. Find out which, "
            "and under which licence, before you use it."
        )
    elif teacher is None:
        generated = " and generated pairs of them (RE-ARC)" if solver.config.data.rearc else ""
        alone = " since" if solver.init else ", so no teacher's terms bear on it"
        parts.append(
            f"Teacher: none{alone}. It learnt from ARC's own training tasks{generated} alone."
        )
    else:
        parts.append(_terms(teacher))
    if not _is_free(solver):
        parts.append("The code is under Apache-2.0; that says nothing of these weights.")
    return "\n\n".join(parts)


def _terms(teacher: dict[str, Any]) -> str:
    """Says which teacher it was, and what its licence means."""
    said = (
        f"Teacher: {teacher['teacher']}, {teacher['weights']}. Its licence: "
        f"{teacher.get('licence', 'not told')}.\n\n"
    )
    if RANDOM in teacher["weights"]:
        return f"{said}Random weights hold nobody's work: nothing follows from that."
    return f"{said}{LICENCES.get(teacher['teacher'], UNKNOWN)}\n\n{NOT_ADVICE}"
