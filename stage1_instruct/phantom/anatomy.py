"""A phantom abdomen: liver, kidneys and spleen in three MR contrasts, from signal equations and drawn anatomy.

The anatomy is a function of the position in millimetres (x to the patient's left, y to posterior, z to superior), so any
grid can be laid over it. Every subject differs in size, place and shape of its organs, in bias field and in noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.grid import Grid

MODALITIES = ("T1-DUAL-in", "T1-DUAL-out", "T2-SPIR")
CLASSES = ("liver", "right kidney", "left kidney", "spleen")


@dataclass(frozen=True)
class Tissue:
    """MR properties at 1.5 T, of the order that de Bazelaire et al. (Radiology 2004) and Stanisz et al. (MRM 2005) report.

    Attributes:
        t1, t2, t2_star: ms.
        density: proton density relative to water.
        fat: share of the signal that comes from fat.
    """

    t1: float
    t2: float
    t2_star: float
    density: float
    fat: float = 0.0


AIR, MUSCLE, FAT, VERTEBRA, CANAL, VESSEL, STOMACH, BOWEL, LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN = range(12)
TISSUES = {
    AIR: Tissue(1000, 50, 10, 0.0),
    MUSCLE: Tissue(860, 30, 24, 0.75),
    FAT: Tissue(340, 60, 30, 0.90, fat=0.95),
    VERTEBRA: Tissue(550, 50, 12, 0.60, fat=0.45),
    CANAL: Tissue(3500, 1200, 200, 1.0),
    VESSEL: Tissue(1440, 250, 120, 0.80),
    STOMACH: Tissue(2300, 300, 80, 0.85),
    BOWEL: Tissue(1200, 90, 20, 0.80, fat=0.1),
    LIVER: Tissue(590, 46, 22, 0.80, fat=0.04),
    RIGHT_KIDNEY: Tissue(970, 87, 45, 0.87),
    LEFT_KIDNEY: Tissue(970, 87, 45, 0.87),
    SPLEEN: Tissue(1060, 79, 40, 0.85),
}
LABELS = {LIVER: 1, RIGHT_KIDNEY: 2, LEFT_KIDNEY: 3, SPLEEN: 4}

# (tissue, centre in mm, half axes in mm), painted in this order.
ORGANS = (
    (VERTEBRA, (0, 62, 0), (21, 19, 400)),
    (CANAL, (0, 88, 0), (8, 7, 400)),
    (VESSEL, (12, 36, 0), (9, 9, 400)),
    (VESSEL, (-16, 34, 0), (11, 9, 400)),
    (STOMACH, (48, -42, 38), (44, 34, 36)),
    (BOWEL, (-40, -55, -38), (52, 26, 22)),
    (BOWEL, (42, -48, -34), (48, 30, 24)),
    (BOWEL, (0, -20, -52), (60, 34, 18)),
    (SPLEEN, (98, 34, 26), (27, 40, 38)),
    (LIVER, (-72, -6, 24), (70, 74, 52)),
    (LIVER, (-14, -46, 34), (58, 36, 30)),
    (RIGHT_KIDNEY, (-58, 52, -26), (25, 29, 46)),
    (LEFT_KIDNEY, (62, 52, -18), (25, 29, 46)),
)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One subject's abdomen.

    Attributes:
        organs: tissue, centre, half axes (mm) and rotation about z (rad) of every ellipsoid.
        waves: smooth deformation: per wave amplitude (3,) in mm, direction (3,) in rad/mm and phase.
        body: half axes (mm) of the trunk in x and y.
    """

    organs: tuple[tuple[int, NDArray[np.float64], NDArray[np.float64], float], ...]
    waves: tuple[tuple[NDArray[np.float64], NDArray[np.float64], float], ...]
    body: tuple[float, float]


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    """A subject: organs vary by about 8 % in size and 6 mm in place, the whole by a smooth deformation of some mm."""
    size = random.normal(1, 0.05)
    organs = []
    for tissue, centre, half_axes in ORGANS:
        moved = np.array(centre) * size + random.normal(0, 5, 3) * (half_axes[2] < 400)
        organs.append((tissue, moved, np.array(half_axes) * size * random.normal(1, 0.07, 3), random.normal(0, 0.12)))
    waves = tuple(
        (random.normal(0, 2.5, 3), random.normal(0, 2 * np.pi / 160, 3), random.uniform(0, 2 * np.pi)) for _ in range(4)
    )
    return Anatomy(tuple(organs), waves, (158 * size * random.normal(1, 0.04), 112 * size * random.normal(1, 0.04)))


def tissue_map(anatomy: Anatomy, grid: Grid) -> NDArray[np.uint8]:
    """Which tissue each voxel of `grid` shows: uint8 (grid.shape)."""
    index = np.indices(grid.shape, dtype=np.float64).reshape(3, -1)
    ras = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    point = ras * np.array([[-1.0], [-1.0], [1.0]])
    still = point
    for amplitude, direction, phase in anatomy.waves:
        point = point + amplitude[:, None] * np.sin(direction @ still + phase)
    radius = np.hypot(point[0] / anatomy.body[0], point[1] / anatomy.body[1])
    tissue = np.full(point.shape[1], AIR, dtype=np.uint8)
    tissue[radius < 1] = FAT
    tissue[radius < 0.90] = MUSCLE
    tissue[radius < 0.82] = FAT
    cavity = radius < 0.86
    for kind, centre, half_axes, angle in anatomy.organs:
        x, y, z = point - centre[:, None]
        turned = (np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y, z)
        inside = sum((t / h) ** 2 for t, h in zip(turned, half_axes)) < 1
        tissue[inside & cavity] = kind
    return tissue.reshape(grid.shape)


def labels_of(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tissues -> 0 background, k = CLASSES[k - 1]."""
    labels = np.zeros_like(tissue)
    for kind, label in LABELS.items():
        labels[tissue == kind] = label
    return labels


def spoiled_gradient_echo(tissue: Tissue, tr: float, te: float, flip_degrees: float, in_phase: bool) -> float:
    """Signal of a spoiled gradient echo (Ernst); fat and water add up in phase and subtract out of phase. Times in ms."""
    e1, flip = np.exp(-tr / tissue.t1), np.deg2rad(flip_degrees)
    steady = np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1)
    together = 1.0 if in_phase else abs(1 - 2 * tissue.fat)
    return float(tissue.density * steady * together * np.exp(-te / tissue.t2_star))


def spin_echo_fat_suppressed(tissue: Tissue, tr: float, te: float, left_of_fat: float = 0.1) -> float:
    """Signal of a spin echo with spectral fat suppression (SPIR), which leaves a tenth of the fat. Times in ms."""
    signal = tissue.density * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2)
    return float(signal * (1 - tissue.fat * (1 - left_of_fat)))


def contrast(modality: str) -> Mapping[int, float]:
    """tissue -> signal; protocols of the order of CHAOS's at 1.5 T."""
    if modality == "T2-SPIR":
        return {kind: spin_echo_fat_suppressed(tissue, tr=1900, te=70) for kind, tissue in TISSUES.items()}
    in_phase = modality == "T1-DUAL-in"
    te = ECHO_TIMES[modality]
    return {
        kind: spoiled_gradient_echo(t, tr=150, te=te, flip_degrees=80, in_phase=in_phase) for kind, t in TISSUES.items()
    }


ECHO_TIMES = {"T1-DUAL-in": 4.6, "T1-DUAL-out": 2.3, "T2-SPIR": 70.0}


def acquire(tissue: NDArray[np.uint8], modality: str, random: np.random.Generator) -> NDArray[np.uint16]:
    """A magnitude image of a tissue map, as a scanner would store it: uint16 (tissue.shape).

    Adds texture, a smooth bias field of up to a third, partial volume within the slice, and Rician noise.
    """
    table = np.zeros(256)
    for kind, value in contrast(modality).items():
        table[kind] = value
    signal = table[tissue]
    texture = ndimage.gaussian_filter(random.normal(0, 1, tissue.shape), (1.2, 1.2, 0.4))
    signal = signal * (1 + 0.06 * texture / texture.std())
    signal = ndimage.gaussian_filter(signal, (0.55, 0.55, 0))
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in tissue.shape], indexing="ij")
    slope, curve = random.normal(0, 0.10, 3), random.normal(0, 0.08, 3)
    signal *= np.exp(sum(s * a + c * a**2 for s, c, a in zip(slope, curve, axes)))
    brightest = np.percentile(signal, 99.5)
    noise = random.normal(0, 0.025 * brightest, (2, *tissue.shape))
    magnitude = np.hypot(signal + noise[0], noise[1])
    return np.rint(magnitude / brightest * random.uniform(500, 900)).clip(0, 4095).astype(np.uint16)


def tilted_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], tilt_degrees: float) -> Grid:
    """An axial grid (columns, rows, slices) centred on the abdomen, tilted about the left-right axis, as DICOM gives it.

    Args:
        spacing: mm along columns, rows, slices.
    """
    tilt = np.deg2rad(tilt_degrees)
    lps = np.eye(4)
    lps[:3, :3] = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]) * spacing
    lps[:3, 3] = -lps[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
