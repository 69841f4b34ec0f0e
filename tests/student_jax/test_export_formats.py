"""StableHLO and ONNX of a grid student: proved when written, and run where nothing of ours is."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bridge import weights
from bridge.arc import open_questions
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from bridge.manifest import digest_of, read_manifest
from bridge.onnx_student import OnnxStudent
from bridge.proofs import MAX_TIES, Proof, hold, is_near_tie, read_proofs
from student_jax import stablehlo
from student_jax.engine import Engine
from student_jax.export import ExportConfig, check_needs, export, export_in_torch
from student_jax.onnx_engine import OnnxEngine
from student_jax.proofs import GRID_DRAWS, Exact
from student_jax.solver import load_solver
from student_jax.stablehlo import Program

# Of many slots, of many sizes of batch.
PROGRAMS = (Program(8, 4), Program(12, 6), Program(8, 10))
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy as np
from safetensors.numpy import load_file
folder = sys.argv[1]
tensors = load_file(f"{folder}/proof.safetensors")
names = ("demonstrations", "mask", "palette", "query")
"""


@pytest.fixture(scope="module")
def written(task_folder, store_path, tmp_path_factory, few_shapes, write_run):
    """A grid student with a state of no color, and its export in all formats."""
    from bridge import config as configs
    from student_jax.config import TrainConfig
    from tests.conftest import train_dict

    folder = tmp_path_factory.mktemp("formats")
    changes = {"model.invariant_width": 16, "optim.total_steps": 1, "data.max_demonstrations": 4}
    config = train_dict(task_folder, store_path, folder / "run", **changes)
    write_run(configs.from_dict(TrainConfig, config))
    solver = load_solver(folder / "run")
    export(solver, folder / "export", ("stablehlo", "onnx"), PROGRAMS)
    return solver, folder / "export"


def run_blocked(blocked, code, folder, tmp_path):
    """Runs code where some packages cannot be imported, in a folder without ours."""
    (tmp_path / "code.py").write_text(BLOCK.replace("BLOCKED", repr(blocked)) + code)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "code.py", str(folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_onnx_answers_without_jax_torch_and_our_code(written, tmp_path):
    _, folder = written
    code = """
import onnxruntime
encode, answer = (
    onnxruntime.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])
    for name in ("encode", "answer")
)
values = (*encode.get_inputs(), *encode.get_outputs(), *answer.get_inputs(), *answer.get_outputs())
sizes = {value.name: value.shape for value in values}
assert sizes["query"] == ["batch", "side", "side"], sizes
assert sizes["palette"] == ["batch", "colors"], sizes
assert sizes["demonstrations"] == ["batch", "demonstrations", 2, "side", "side"], sizes
assert sizes["tokens"] == ["batch", "tokens", "colors", 16], sizes
assert sizes["log_probs"] == ["batch", "side", "side", 12], sizes
gap, shapes = 0.0, set()
for i in range(0, 104, 3):
    d, m, p, q = (tensors[f"{i}.{name}"] for name in names)
    tokens, shown = encode.run(None, {"demonstrations": d, "palette": p})
    task = {"tokens": tokens, "shown": shown, "mask": m, "palette": p}
    log_probs, = answer.run(None, {**task, "query": q})
    shapes.add(log_probs.shape)
    gap = max(gap, np.abs(log_probs - tensors[f"{i}.log_probs"]).max())
assert len(shapes) >= 5, shapes
print(gap)
"""
    blocked = ("jax", "torch", "flax", "student_jax", "bridge", "teacher_torch")
    assert run_blocked(blocked, code, folder, tmp_path) < 1e-4


@pytest.fixture(scope="module")
def questions(task_folder):
    tasks = load_tasks(str(task_folder)).values()
    return [question for task in tasks for question in open_questions(task.blind())]


def test_onnx_engine_answers_as_jax_and_reads_a_task_once(written, questions, monkeypatch):
    solver, folder = written
    engine = OnnxEngine(folder)
    assert engine.most_pairs == 4
    for views in (1, 8):
        expected = Engine(solver).answer_all(questions[:3], views)
        got = [engine.answer(question, views) for question in questions[:3]]
        monkeypatch.setattr(engine.student, "encode", None)  # would raise
        for one, again, other in zip(
            got, engine.answer_all(questions[:3], views), expected, strict=True
        ):
            np.testing.assert_array_equal(one.first, other.first)
            np.testing.assert_array_equal(again.first, other.first)
            np.testing.assert_allclose(again.certainty, other.certainty, atol=1e-4)
        monkeypatch.undo()


def test_onnx_engine_refuses_what_is_not_whole(written, tmp_path):
    _, folder = written
    with pytest.raises(InputError, match="expected an export of a grid student with ONNX"):
        OnnxEngine(tmp_path)
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "answer.onnx").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"answer\.onnx: expected the file that manifest\.json"):
        OnnxEngine(tmp_path)
    with pytest.raises(InputError, match=r"answer\.onnx: expected an ONNX file that onnxruntime"):
        OnnxStudent(tmp_path)


def test_stablehlo_answers_without_our_code(written, tmp_path):
    _, folder = written
    code = """
from jax import export
leaves = load_file(f"{folder}/stablehlo/weights.safetensors")
with open(f"{folder}/stablehlo/12x6.bin", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
assert program.platforms == ("cpu", "cuda")
gap, sizes = 0.0, set()
for i in range(104):
    inputs = [tensors[f"{i}.{name}"] for name in names]
    if inputs[3].shape[1] != 12 or inputs[2].shape[1] != 6 or i % 4:
        continue
    sizes.add(inputs[1].shape)
    log_probs = program.call(leaves, *inputs)
    gap = max(gap, np.abs(log_probs - tensors[f"{i}.log_probs"]).max())
assert sizes == {(2, 3), (3, 1)}, sizes  # batch and demonstrations are free
print(gap)
"""
    blocked = ("student_jax", "bridge", "teacher_torch", "flax", "torch")
    assert run_blocked(blocked, code, folder, tmp_path) < 1e-4


def test_manifest_tells_every_file_and_how_far_it_is(written):
    _, folder = written
    told = read_manifest(folder)
    assert told["formats"].keys() == {"safetensors", "stablehlo", "onnx"}
    named = {}
    for format in told["formats"].values():
        assert format["max_error"] <= told["tolerance"]
        assert format["inputs"] >= 10
        assert format["near_ties"] <= MAX_TIES * format["questions"]
        named |= format["files"]
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert {folder / name for name in named} == there - {folder / "manifest.json"}
    for name, about in named.items():
        assert about == {
            "bytes": (folder / name).stat().st_size,
            "sha256": digest_of(folder / name),
        }
    assert told["formats"]["onnx"]["inputs"] == 104
    assert told["inputs"]["palette"] == {"dtype": "uint8", "shape": ["batch", "colors"]}
    assert told["formats"]["onnx"]["versions"].keys() >= {"onnx", "onnxruntime", "torch"}


def test_stablehlo_carries_no_weight_that_answers_do_without(written):
    _, folder = written
    leaves, _ = weights.load(folder / "stablehlo/weights.safetensors")
    assert "color_head.kernel" in leaves
    assert "core.block_0.invariant_conv" in leaves
    assert not [name for name in leaves if "projector" in name or "paint" in name]
    assert len(leaves) < len(weights.load(folder / "model.safetensors")[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_shapes_are_proved_in_all_formats(written, tmp_path, monkeypatch):
    solver, _ = written
    monkeypatch.setattr("student_jax.proofs.GRID_DRAWS", GRID_DRAWS)
    export(solver, tmp_path, ("stablehlo", "torchscript", "onnx"))
    told = read_manifest(tmp_path)["formats"]
    assert told["onnx"]["inputs"] == told["torchscript"]["inputs"] == told["stablehlo"]["inputs"]
    assert len(list(tmp_path.glob("stablehlo/*.bin"))) == 18


def test_a_stablehlo_that_answers_otherwise_is_not_written(written, tmp_path):
    solver, folder = written
    proofs = [Proof(proof.inputs, np.roll(proof.log_probs, 1, -1)) for proof in read_proofs(folder)]
    with pytest.raises(InputError, match=r"StableHLO 8x4\.bin: proof 0: .* no file was written"):
        stablehlo.write_stablehlo(solver, tmp_path, proofs, PROGRAMS[:1])
    assert not list(tmp_path.iterdir())


def test_a_failure_in_torch_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"format onnx: .*config\.json: expected an export's"):
        export_in_torch(tmp_path, ["onnx"])


def test_a_format_whose_libraries_lack_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_needs(ExportConfig().format)
    with pytest.raises(InputError, match=r"onnxscript, onnxruntime; pip install .*export"):
        check_needs(("onnx",))


def answers(log_probs):
    return lambda inputs: (log_probs, None)


def test_other_grids_are_refused_unless_rounding_decides():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, 8, 8, 12)).astype(np.float32)
    ours = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    proofs = [Proof({"query": ours}, ours)] * 100
    verdict = hold(answers(ours), proofs, "x")
    assert (verdict.largest, verdict.questions, verdict.ties) == (0.0, 100, 0)
    assert "all grids the same" in str(verdict)
    with pytest.raises(InputError, match=r"proof 0: .* got one 2\.00e-04 away"):
        hold(answers(ours + 2e-4), proofs, "x")
    with pytest.raises(InputError, match="got one nan away"):
        hold(answers(ours * np.nan), proofs, "x")


def test_near_ties_may_fall_either_way_but_in_few_questions():
    logits = np.full((8, 8, 12), -9.0, np.float32)
    logits[:3, :3, 4], logits[3, :4, 10], logits[:4, 3, 10] = 5, 5, 5
    logits[4:, :, 11], logits[:, 4:, 11] = 5, 5
    tied = logits.copy()
    tied[0, 0, 7] = 5 - 5e-5
    normal = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))  # noqa: E731
    clear, ours = normal(logits), normal(tied)
    tied[0, 0, 7] = 5 + 2e-5
    theirs = normal(tied)
    one, other = np.full((3, 3), 4), np.full((3, 3), 4)
    other[0, 0] = 7
    assert is_near_tie(ours, one, other)
    assert not is_near_tie(clear, one, other)
    proofs = [Proof({"i": np.array(i)}, (ours if i == 0 else clear)[None]) for i in range(100)]
    answer = lambda inputs: ((theirs if inputs["i"] == 0 else clear)[None], None)  # noqa: E731
    assert hold(answer, proofs, "x").ties == 1
    proofs = [Proof({"i": np.array(0)}, ours[None])] * 100
    with pytest.raises(InputError, match="100 of 100 questions answered otherwise"):
        hold(answer, proofs, "x")


def test_safetensors_that_answer_otherwise_leave_no_file(written, tmp_path, monkeypatch):
    solver, _ = written
    answer_with = Exact.answer_with

    def other(self, params, scaling):
        right = answer_with(self, params, scaling)
        if params is solver.params:
            return right
        return lambda inputs: (right(inputs)[0] + 1, None)

    monkeypatch.setattr(Exact, "answer_with", other)
    with pytest.raises(InputError, match="safetensors: proof 0: expected the JAX student's"):
        export(solver, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
