"""Slices as another patient or scanner could have shown them: the changes, their chances and ranges, and what is drawn.

Ranges and probabilities are nnU-Net's for 2D (Isensee et al. 2021, and batchgeneratorsv2), but for these: pictures are turned
by 15 degrees at most and never mirrored unless that is asked for, since classes and instructions have sides; none is
inverted, since instructions name contrasts; every copy is shifted, as nnU-Net's random patches are; a bias field is added,
for MR. What nnU-Net draws for each channel with chance one half has half its chance here.

Every length is a share of the picture's side, so that one copy is the same at every size an image encoder reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

VERSION = 1  # rises when the same draws give other pictures
BIAS_DEGREE = 3
BIAS_COEFFICIENTS = (BIAS_DEGREE + 1) * (BIAS_DEGREE + 2) // 2
ELASTIC_POINTS = (4, 4)  # control points that move, evenly over the picture; the edge stays


@dataclass(frozen=True)
class Chance:
    """How often something is done, and the range it is drawn from."""

    probability: float
    low: float
    high: float

    def draw(self, random: np.random.RandomState, neutral: float) -> float:
        """A value of the range, uniform; `neutral` where it is not done. Always takes two numbers of `random`."""
        done, place = random.uniform(size=2)
        return float(self.low + place * (self.high - self.low)) if done < self.probability else neutral

    def draw_factor(self, random: np.random.RandomState) -> float:
        """A factor, below 1 as often as above (nnU-Net's BGContrast); 1 where it is not done."""
        done, side, place = random.uniform(size=3)
        if done >= self.probability:
            return 1.0
        low, high = (self.low, 1.0) if side < 0.5 else (1.0, self.high)
        return float(low + place * (high - low))


# Of a slice with all its modalities.
GEOMETRY = {
    "shift": Chance(1.0, -0.05, 0.05),  # share of the side, for rows and columns each
    "rotation": Chance(0.2, -15.0, 15.0),  # degrees
    "scale": Chance(0.2, 0.7, 1.4),  # of what is seen: above 1 the body becomes smaller
    "elastic": Chance(0.2, 0.0, 0.03),  # share of the side that a point is moved by at most
}
# Of every modality alone.
INTENSITY = {
    "bias": Chance(0.15, -0.3, 0.3),  # each coefficient of a polynomial, the logarithm of the field
    "noise": Chance(0.1, 0.0, 0.1),  # variance, in units of the picture's own, as nnU-Net's pictures have variance 1
    "blur": Chance(0.1, 0.5, 1.0),  # sigma, pixels of a 256 x 256 picture
    "brightness": Chance(0.15, 0.75, 1.25),  # factor
    "contrast": Chance(0.15, 0.75, 1.25),  # factor of the distance to the mean
    "resolution": Chance(0.125, 0.5, 1.0),  # share of the pixels of a side that is left
    "gamma": Chance(0.3, 0.7, 1.5),
}


@dataclass(frozen=True)
class Geometry:
    """How a copy of a slice is moved.

    Attributes:
        rotation: degrees.
        scale: of the field of view.
        shift: of rows and columns, in shares of the side.
        elastic: the largest shift by the elastic field, along rows or columns, in shares of the side; 0: none.
        seed: of the control points.
        mirrored: left for right.
    """

    rotation: float
    scale: float
    shift: tuple[float, float]
    elastic: float
    seed: int
    mirrored: bool


@dataclass(frozen=True)
class Intensity:
    """How the grey values of a copy of one modality are changed; the neutral values are 0, 0, 0 and 1, 1, 1, 1.

    Attributes:
        bias: coefficients of the logarithm of a polynomial field; none: no field.
        noise: standard deviation in units of the picture's.
        blur: sigma in pixels of a 256 x 256 picture.
        brightness, contrast, resolution, gamma: factors, see `INTENSITY`.
        seed: of the noise.
    """

    bias: tuple[float, ...]
    noise: float
    blur: float
    brightness: float
    contrast: float
    resolution: float
    gamma: float
    seed: int


def augmentation_recipe(mirrored: bool) -> dict[str, Any]:
    """What decides a copy, but for the seed and the slices it is made of."""
    tables = {"geometry": GEOMETRY, "intensity": INTENSITY}
    return {
        "version": VERSION,
        "library": f"monai {version('monai')}",
        "mirrored": mirrored,
        "outside": "image 0, mask background",
        "elastic_points": list(ELASTIC_POINTS),
        "bias_degree": BIAS_DEGREE,
        **{
            name: {key: [chance.probability, chance.low, chance.high] for key, chance in table.items()}
            for name, table in tables.items()
        },
    }


def draw_geometry(random: np.random.RandomState, mirror: bool = False) -> Geometry:
    """Of one slice.

    Args:
        mirror: whether half of the copies are mirrored, left for right.
    """
    shift = GEOMETRY["shift"].draw(random, 0.0), GEOMETRY["shift"].draw(random, 0.0)
    rotation, scale = GEOMETRY["rotation"].draw(random, 0.0), GEOMETRY["scale"].draw(random, 1.0)
    elastic, seed = GEOMETRY["elastic"].draw(random, 0.0), int(random.randint(2**31))
    return Geometry(rotation, scale, shift, elastic, seed, mirror and bool(random.uniform() < 0.5))


def draw_intensity(random: np.random.RandomState) -> Intensity:
    """Of one modality of a slice."""
    field = INTENSITY["bias"]
    with_field, coefficients = random.uniform(), random.uniform(field.low, field.high, BIAS_COEFFICIENTS)
    return Intensity(
        bias=tuple(coefficients.tolist()) if with_field < field.probability else (),
        noise=INTENSITY["noise"].draw(random, 0.0) ** 0.5,
        blur=INTENSITY["blur"].draw(random, 0.0),
        brightness=INTENSITY["brightness"].draw_factor(random),
        contrast=INTENSITY["contrast"].draw_factor(random),
        resolution=INTENSITY["resolution"].draw(random, 1.0),
        gamma=INTENSITY["gamma"].draw_factor(random),
        seed=int(random.randint(2**31)),
    )
