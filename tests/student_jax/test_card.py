"""Every export says who taught it, under which licence, and what follows."""

import json
import shutil
from dataclasses import replace

import pytest

from bridge.manifest import digest_of, read_manifest
from student_jax.card import model_card
from student_jax.export import describe
from student_jax.solve import NANO
from student_jax.solver import load_solver


@pytest.fixture(scope="module")
def solver():
    return load_solver(NANO)


def taught(solver, name, weights, licence="its own"):
    return replace(solver, teacher={"teacher": name, "weights": weights, "licence": licence})


def test_a_student_of_the_released_weights_is_not_called_free(solver):
    release = "checkpoint nvidia/GR00T-N1.5-3B"
    card = model_card(taught(solver, "gr00t-n1.5", release, "non-commercial"))
    assert card.startswith("---\nlicense: other\nlicense_name: the-teachers\n")
    assert f"{release}. Its licence: non-commercial." in card
    assert "Do not use it commercially" in card
    assert "not legal advice" in card
    assert "says nothing of these weights" in card


@pytest.mark.parametrize("weights", [None, "random weights, full, seed 0"])
def test_no_terms_follow_from_no_teacher_or_a_random_one(solver, weights):
    card = model_card(taught(solver, "gr00t-n1.5", weights) if weights else solver)
    assert "commercially" not in card
    assert "license:" not in card
    assert ("nobody's work" in card) == (weights is not None)


def test_a_teacher_of_unknown_terms_and_one_that_is_free_are_told_apart(solver):
    assert "not looked at" in model_card(taught(solver, "another", "pretrained"))
    assert "keep\nthis card" in model_card(taught(solver, "dinov2-s", "pretrained"))


def test_what_another_students_weights_bring_is_told_and_is_not_lost_by_exporting_again(
    solver, tmp_path
):
    """A run without a teacher that began with the weights of one with GR00T."""
    teacher = {"teacher": "gr00t-n1.5", "weights": "checkpoint x", "licence": "non-commercial"}
    init = {"run": "runs/other", "step": 5, "trained_on": [], "teachers": [teacher]}
    began = replace(solver, init=init)
    card = model_card(began)
    assert "It started from the weights of runs/other" in card
    assert "Its licence: non-commercial." in card
    assert "Do not use it commercially" in card
    assert card.startswith("---\nlicense: other\n")
    shutil.copytree(NANO, tmp_path / "export")
    path = tmp_path / "export/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | describe(began, "")))
    assert model_card(load_solver(tmp_path / "export")) == card


def test_a_student_that_began_with_weights_which_nobody_taught_is_free(solver):
    init = {"run": "runs/other", "step": 5, "trained_on": [], "teachers": []}
    assert "license:" not in model_card(replace(solver, init=init))
    del init["teachers"]  # a checkpoint from before they were told
    assert "license: other" in model_card(replace(solver, init=init))


def test_a_reader_of_features_whose_teacher_is_not_told_is_not_called_free(solver):
    model = replace(solver.config.model, kind="feature", table=0)
    data = replace(solver.config.data, store="unknown", rearc=None)
    reads = replace(solver, config=replace(solver.config, model=model, data=data))
    card = model_card(reads)
    assert "Find out which" in card
    assert "license: other" in card
    assert "student_jax.solve" not in card


def test_the_packages_student_has_the_card_that_would_be_written_now_and_its_scores(solver):
    there = " ".join((NANO / "README.md").read_text().split())
    card = " ".join(model_card(solver).split())
    assert there.startswith(card)
    assert "What it scored" in there.removeprefix(card)
    for name, about in read_manifest(NANO)["formats"]["safetensors"]["files"].items():
        assert about["sha256"] == digest_of(NANO / name)
