"""How alike student and teacher are, against formulas written out and known cases."""

import json

import numpy as np
import pytest

from bridge.scaling import Scaling, apply, unscale
from student_jax.alignment import Sums, cosines
from student_jax.similarity import SimilarityConfig, main


def kernel_cka(x, y):
    """Eq. 3 as the paper writes it: with Gram matrices and a centring matrix."""
    centre = np.eye(len(x)) - 1 / len(x)
    hsic = lambda k, l: np.trace(k @ centre @ l @ centre)  # noqa: E731, E741
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def measured(x, y, parts=1):
    sums = Sums()
    for own, theirs in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True):
        sums.add(own, theirs, theirs, theirs, theirs)
    return sums.result()


def test_alignment_is_the_papers_and_adds_up_in_parts():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)) + 3, rng.normal(size=(40, 7)) - 1
    assert measured(x, y, parts=6).cka == pytest.approx(kernel_cka(x, y))
    turned = x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 4 + 9
    assert measured(x, turned).cka == pytest.approx(1)
    assert measured(x, np.ones((40, 3))).cka == 0  # says nothing


def test_cosines_by_hand():
    got = cosines(np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[0.0, 2], [3, 3], [1, 1]]))
    np.testing.assert_allclose(got, [0, 1, 0], atol=1e-12)


def test_unscaling_undoes_scaling():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    scaling = Scaling(*(rng.normal(size=6).astype(np.float32) for _ in range(2)), turn)
    values = rng.normal(size=(3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(unscale(scaling, apply(scaling, values)), values, atol=1e-4)


def test_command_tells_every_frame_beside_an_untrained_control(train_config, capsys):
    from student_jax.train import train

    config = train_config(**{"optim.total_steps": 2, "data.tasks.dev_fraction": 0.5})
    train(config)
    main(SimilarityConfig(checkpoint=config.out))
    found = json.loads((config.out / "similarity.json").read_text())["similarity"]
    assert found.keys() == {"trained", "untrained"}
    for frames in found.values():
        assert frames.keys() == {"input", "output", "query"}
        assert frames["input"]["patches"] > frames["query"]["patches"] > 0
        for values in frames.values():
            assert 0 <= values["cka"] <= 1
            assert -1 <= values["cosine_scaled"] <= 1
    assert found["trained"] != found["untrained"]
    assert "untrained" in capsys.readouterr().out
