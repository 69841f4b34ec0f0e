"""StableHLO of a feature student; for that of a grid student see test_export_formats.py."""

import jax
import numpy as np
from jax import export

from bridge import weights
from bridge.proofs import Proof
from bridge.scaling import no_scaling
from student_jax.batch import smallest_batch
from student_jax.config import DataConfig, ModelConfig, TrainConfig
from student_jax.proofs import Exact, feature_inputs
from student_jax.solver import make_solver
from student_jax.stablehlo import Program, fitting, write_stablehlo
from student_jax.students import make_student
from tests.student_jax.runs import drawn

WIDTH = 8  # of the teacher's features
SIZES = {"width": 16, "heads": 2, "mlp_width": 16, "depth": 1, "canvas": 8, "max_tokens": 8}


def test_a_feature_students_program_answers_for_any_batch_and_fewer_tokens(tmp_path):
    model = ModelConfig(kind="feature", **SIZES)
    config = TrainConfig(model=model, data=DataConfig(store="features"))
    first = smallest_batch(model, WIDTH)
    params = drawn(make_student(model, WIDTH), first)["params"]
    about = {"teacher": None, "trained_on": [], "feature_width": WIDTH}
    solver = make_solver(config, 0, about, params, no_scaling(WIDTH))
    answer = Exact.of(solver).answer_with(params, solver.scaling)
    # Two shapes of the four, and nothing projected: each compiles.
    few = [inputs for inputs in feature_inputs(solver) if inputs["mask"].shape in [(1, 5), (3, 2)]]
    proofs = [Proof(inputs, answer(inputs)[0]) for inputs in few]
    assert write_stablehlo(solver, tmp_path, proofs).inputs == len(proofs) == 60

    folder = tmp_path / "stablehlo"
    assert {path.name for path in folder.iterdir()} == {"8.bin", "weights.safetensors"}
    leaves, _ = weights.load(folder / "weights.safetensors")
    program = export.deserialize(bytearray((folder / "8.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    shown = fitting(solver, proofs, Program(8))
    features, mask = (
        np.concatenate([proof.inputs[name] for proof in shown]) for name in ("features", "mask")
    )
    said = np.asarray(jax.jit(program.call)(leaves, features, mask))
    assert said.shape == (100, 8, 8, 12)  # a batch that no proof has
    expected = np.concatenate([proof.log_probs for proof in shown])
    np.testing.assert_allclose(said, expected, atol=1e-4)
