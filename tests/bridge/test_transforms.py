import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.arc import all_questions
from bridge.transforms import NUM_DIHEDRAL, Transform

grids = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 9)
)
transforms = st.builds(
    lambda d, c: Transform(d, tuple(c)), st.integers(0, 7), st.permutations(range(10))
)


@given(grids, transforms)
def test_inverse_undoes(grid, transform):
    np.testing.assert_array_equal(transform.inverse().grid(transform.grid(grid)), grid)
    np.testing.assert_array_equal(transform.grid(transform.inverse().grid(grid)), grid)


def test_the_eight_symmetries_are_distinct():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    images = {
        (g.shape, g.tobytes()) for g in (Transform(d).grid(grid) for d in range(NUM_DIHEDRAL))
    }
    assert len(images) == NUM_DIHEDRAL


def test_question_is_transformed_whole(task):
    transform = Transform(5, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    question = all_questions(task)[0]
    turned = transform.question(question)
    np.testing.assert_array_equal(turned.query, transform.grid(question.query))
    for before, after in zip(question.demonstrations, turned.demonstrations, strict=True):
        np.testing.assert_array_equal(after.output, transform.grid(before.output))


@pytest.mark.parametrize("bad", [{"dihedral": 8}, {"colors": (0,) * 10}])
def test_transform_without_inverse_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        Transform(**bad)
