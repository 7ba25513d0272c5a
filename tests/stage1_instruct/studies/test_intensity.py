"""Grey values depend on what was measured: not on padding, on noise in the air, or on a few voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.studies import intensity
from zeus_union.stage1_instruct.studies.intensity import Window

SHAPE = (24, 96, 104)


def grey(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    measured, calm = intensity.foreground(volume)
    return intensity.to_grey(volume, intensity.percentile_bounds(volume, measured, calm))


def tissue(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Smooth structure of mean 500 with noise, and the ellipsoid that is the body."""
    random = np.random.default_rng(seed)
    structure = ndimage.gaussian_filter(random.normal(size=SHAPE), 3)
    values = 500 + 150 * structure / structure.std() + random.normal(0, 20, SHAPE)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return values.astype(np.float32), x**2 + y**2 + z**2 < 0.7


def brain() -> NDArray[np.float32]:
    values, body = tissue()
    return np.where(body, values, 0).astype(np.float32)


def padded_ct() -> NDArray[np.float32]:
    """Air of -1000 with noise, soft tissue, and beyond the tube's circle -2000."""
    values, body = tissue()
    random = np.random.default_rng(1)
    volume = np.where(body, values / 5 - 50, random.normal(-1000, 12, SHAPE)).astype(np.float32)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[1:]), indexing="ij")
    volume[:, x**2 + y**2 > 1] = -2000
    return volume


def noisy_mr() -> NDArray[np.float32]:
    values, body = tissue()
    return np.where(body, values, np.random.default_rng(1).rayleigh(12, SHAPE)).astype(np.float32)


def integer_mr() -> NDArray[np.float32]:
    return np.rint(noisy_mr() / 8)


def padded_mr() -> NDArray[np.float32]:
    volume = noisy_mr()
    volume[:, :20] = -2000
    return volume


def pet() -> NDArray[np.float32]:
    values, body = tissue()
    hot = np.exp((values - 500) / 180)
    return np.where(body, hot, np.random.default_rng(1).exponential(0.02, SHAPE)).astype(np.float32)


def z_scored_brain() -> NDArray[np.float32]:
    """Skull-stripped and scaled to mean 0: the background is the mean."""
    values, body = tissue()
    return np.where(body, (values - 500) / 150, 0).astype(np.float32)


def resampled_brain() -> NDArray[np.float32]:
    """Splines leave values on both sides of 0 around the brain."""
    return ndimage.shift(brain(), (0, 0.4, 0.3), order=3, mode="constant", prefilter=True).astype(np.float32)


VOLUMES = {
    maker.__name__: maker()
    for maker in (brain, padded_ct, noisy_mr, integer_mr, padded_mr, pet, z_scored_brain, resampled_brain)
}


@pytest.mark.parametrize("name", VOLUMES)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    value=st.one_of(
        st.sampled_from([-0.001, 0.0, 1e-7, -2000.0, -1024.0, 300.0, 500.0, 4095.0, 1e6, -1e6]), st.floats(-1e5, 1e5)
    ),
    count=st.integers(1, 100),
    layout=st.sampled_from(["anywhere", "a row", "the corners"]),
    seed=st.integers(0, 99),
)
def test_a_hundred_voxels_of_any_value_change_no_other_grey_value_by_more_than_one(
    name: str, value: float, count: int, layout: str, seed: int
):
    volume = VOLUMES[name]
    random = np.random.default_rng(seed)
    changed = np.zeros(SHAPE, dtype=bool)
    if layout == "anywhere":
        changed.flat[random.choice(changed.size, count, replace=False)] = True
    elif layout == "a row":
        changed[seed % SHAPE[0], seed % SHAPE[1], :count] = True
    else:
        changed[:: SHAPE[0] - 1, :: SHAPE[1] - 1, :: SHAPE[2] - 1] = True
    moved = np.where(changed, np.float32(value), volume)
    difference = np.abs(grey(moved).astype(int) - grey(volume))[~changed]
    assert difference.max() <= 1


@pytest.mark.parametrize("name", VOLUMES)
def test_tissue_takes_most_of_the_grey_values(name: str):
    _, body = tissue()
    inside = grey(VOLUMES[name])[ndimage.binary_erosion(body, iterations=2) & (VOLUMES[name] > -1500)]
    low, high = np.percentile(inside, (1, 99))
    assert high > 225
    if name != "padded_ct":  # its air counts: that is what the window is for
        assert high - low > 120
    assert (inside == 255).mean() < 0.02


@pytest.mark.parametrize("padding", [-2000, -1024, -3024])
def test_padding_changes_nothing_but_itself(padding: float):
    volume = noisy_mr()
    padded = np.pad(volume, ((0, 0), (14, 0), (0, 9)), constant_values=padding)
    difference = np.abs(grey(padded)[:, 14:, :-9].astype(int) - grey(volume))
    assert difference.max() <= 1


def test_background_and_undershoot_are_black_and_show_nothing():
    volume = resampled_brain()
    assert (volume < -1).sum() > 500
    measured, _ = intensity.foreground(volume)
    assert not measured[volume <= 0].any()
    assert (grey(volume)[volume <= 0] == 0).all()


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 1, 9), (2, 2, 2), (1, 300, 1), (3, 3, 3)])
def test_constant_volumes_of_any_shape_are_black(shape: tuple[int, int, int]):
    assert not grey(np.full(shape, 7, np.float32)).any()


def test_a_binary_volume_keeps_its_two_values():
    volume = np.zeros((4, 8, 8), np.float32)
    volume[:, 2:5, 2:5] = 3
    assert set(np.unique(grey(volume))) == {0, 255}


def test_a_window_is_for_ct_and_for_what_it_is_given_for():
    terms = {"CT": "CT", "CT-1": "CT-1", "PET": "PET", "T1": "MRI-T1", "odd": "MRI-CT", "CBCT": "CBCT"}
    windows = intensity.windows_of(terms, {"T1": Window(1, 2), "CT-1": None})
    assert windows == {"CT": Window(40, 400), "CT-1": None, "PET": None, "T1": Window(1, 2), "odd": None, "CBCT": None}
    assert intensity.windows_in(intensity.windows_recipe(windows)) == windows
    with pytest.raises(UserError, match="a window is given for T2; the modalities are CT, CT-1"):
        intensity.windows_of(terms, {"T2": None})


def test_soft_tissue_of_a_ct_takes_a_fifth_of_the_grey_values():
    levels = intensity.to_grey(np.array([-160, 70, 160, 240], np.float32), Window(40, 400).bounds)
    assert levels.tolist() == [0, 147, 204, 255]


def test_windows_are_read_from_the_command_line():
    assert intensity.parse_windows(["CT=40,400", "a=b=-600, 1.5e3", "PET=percentiles"]) == {
        "CT": Window(40, 400), "a=b": Window(-600, 1500), "PET": None,
    }  # fmt: skip
    for wrong in (
        ["CT=40"],
        ["CT"],
        ["=40,400"],
        ["CT=40,0"],
        ["CT=40,-4"],
        ["CT=a,b"],
        ["CT=1.2.3,4"],
        ["CT=40,400"] * 2,
    ):
        with pytest.raises(UserError, match="MODALITY=LEVEL,WIDTH"):
            intensity.parse_windows(wrong)


def test_an_image_that_a_window_does_not_show_is_refused():
    with pytest.raises(
        UserError, match=r"p7: CT has values from 0 to 1 and shows nothing in the window from -160 to 240"
    ):
        intensity.check_window(Window(40, 400), (0.0, 1.0), "p7", "CT")
    intensity.check_window(Window(40, 400), (-998.0, 598.0), "p7", "CT")
