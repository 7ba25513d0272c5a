"""Post-processing: what the steps do to any label map, and that they are chosen on validation subjects alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from zeus_union.stage2_segment.postprocessing import (
    HOLES,
    LARGEST,
    STEPS,
    Candidates,
    apply_steps,
    fill_holes,
    keep_largest,
    kept_steps,
)

CLASSES = 3
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
# Drawn sparse and dense: of noise alone few maps have a hole.
MAPS = SHAPES.flatmap(
    lambda shape: st.one_of(
        arrays(np.uint8, shape, elements=st.integers(0, CLASSES)),
        arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1, 1, 2])),
    )
)
ALL = {label: tuple(STEPS) for label in range(1, CLASSES + 1)}
CHOSEN = st.dictionaries(
    st.integers(1, CLASSES), st.sampled_from([(LARGEST,), (HOLES,), (LARGEST, HOLES)]), max_size=CLASSES
)


@settings(max_examples=150, deadline=None)
@given(labels=MAPS, steps=CHOSEN)
def test_twice_is_once_and_the_map_that_was_given_stays_as_it_is(labels: np.ndarray, steps: dict) -> None:
    before = labels.copy()
    done = apply_steps(labels, steps)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(apply_steps(done, steps), done)
    assert done.dtype == np.uint8 and done.shape == labels.shape


@settings(max_examples=150, deadline=None)
@given(labels=MAPS, steps=CHOSEN)
def test_no_voxel_goes_from_one_class_to_another_and_no_class_is_lost(labels: np.ndarray, steps: dict) -> None:
    done = apply_steps(labels, steps)
    changed = done != labels
    kept = keep_largest(labels, [label for label, names in steps.items() if LARGEST in names])
    # What is removed becomes background first, and may then be a hole of what surrounds it.
    assert not ((kept != labels) & (kept != 0)).any() and not ((done != kept) & (kept != 0)).any()
    assert set(np.unique(labels[changed])) <= {0, *steps} and set(np.unique(done[changed])) <= {0, *steps}
    assert set(np.unique(labels)) - {0} == set(np.unique(done)) - {0}


@settings(max_examples=150, deadline=None)
@given(labels=MAPS)
def test_the_largest_component_is_what_is_left_and_a_tie_is_always_decided_alike(labels: np.ndarray) -> None:
    kept = keep_largest(labels, list(ALL))
    for label in ALL:
        components, count = ndimage.label(labels == label, np.ones((3, 3, 3)))
        sizes = [(components == number).sum() for number in range(1, count + 1)]
        if count:
            first = next(number for number, size in enumerate(sizes, 1) if size == max(sizes))
            np.testing.assert_array_equal(kept == label, components == first)
    alone = np.zeros((3, 4, 4), np.uint8)
    alone[0, 0, 0] = alone[2, 3, 3] = 1
    assert np.argwhere(keep_largest(alone, [1])).tolist() == [[0, 0, 0]]


@settings(max_examples=150, deadline=None)
@given(labels=MAPS)
def test_holes_of_the_only_class_are_those_of_scipy(labels: np.ndarray) -> None:
    """Oracle: scipy.ndimage.binary_fill_holes, in 3D and, where there is one slice, in 2D."""
    mask = labels == 1
    only = mask.astype(np.uint8)
    along = tuple(axis for axis, length in enumerate(labels.shape) if length > 1)
    flat = mask.squeeze()
    expected = ndimage.binary_fill_holes(flat).reshape(mask.shape) if along else mask
    np.testing.assert_array_equal(fill_holes(only, [1]) == 1, expected)


def test_a_hole_between_two_classes_is_nobodys() -> None:
    labels = np.full((1, 5, 5), 1, np.uint8)
    labels[0, 2, 2], labels[0, 2, 3] = 0, 2
    np.testing.assert_array_equal(fill_holes(labels, [1, 2]), labels)
    labels[0, 2, 3] = 1
    assert fill_holes(labels, [1])[0, 2, 2] == 1
    assert fill_holes(labels, [2])[0, 2, 2] == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), subjects=st.integers(1, 3))
def test_what_is_kept_is_strictly_better_and_never_worse_in_all(seed: int, subjects: int) -> None:
    random = np.random.default_rng(seed)
    candidates = Candidates(["a", "b", "c"])
    volumes = {}
    for number in range(subjects):
        truth = random.integers(0, 4, (3, 6, 6)).astype(np.uint8)
        truth[random.random(truth.shape) < 0.1] = 255
        predicted = np.where(random.random(truth.shape) < 0.7, truth, random.integers(0, 4, truth.shape))
        volumes[f"s{number}"] = np.where(predicted == 255, 0, predicted).astype(np.uint8), truth
        candidates.add(f"s{number}", *volumes[f"s{number}"])
    tried = candidates.try_steps()
    assert len(tried) == len(STEPS) * 3
    for one in tried:
        better = np.mean(list(one.after.values())) - np.mean(list(one.before.values())) if one.before else 0
        assert one.kept == (better > 1e-12) or abs(better) < 1e-12
        json = one.to_json()
        assert set(json["subjects"]) == set(one.before) == set(one.after) <= set(volumes)
    steps = kept_steps(tried, ["a", "b", "c"])
    for label, name in enumerate("abc", 1):
        last = [one for one in tried if one.class_name == name][-1]
        expected = last.after if last.kept else last.before
        for subject, score in expected.items():
            predicted, truth = volumes[subject]
            done = apply_steps(predicted, {k: steps[n] for k, n in enumerate("abc", 1)})
            known = truth != 255
            both = ((done == label) & (truth == label)).sum()
            assert score == pytest.approx(2 * both / (((done == label) & known).sum() + (truth == label).sum()))


def test_a_class_that_no_validation_subject_has_gets_no_step() -> None:
    predicted, truth = np.zeros((2, 3, 6, 6), np.uint8)
    truth[1, 2:4, 2:4] = predicted[1, 2:4, 2:4] = 1
    predicted[0, 5, 5], predicted[2, 0, 5], predicted[0, 0, 0] = 1, 2, 2
    candidates = Candidates(["liver", "spleen"])
    candidates.add("ann", predicted, truth)
    assert kept_steps(candidates.try_steps(), candidates.classes) == {"liver": (LARGEST,), "spleen": ()}
