"""Studies verified before hours of work: every file there and readable, one grid, labels that the data set names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.terminal import progress
from zeus_union.stage1_instruct.studies.depth import Depth, reading
from zeus_union.stage1_instruct.studies.study import Dataset, Study


def load_study(dataset: Dataset, subject: str) -> Study:
    """One study; whatever a damaged file makes its reader raise is told as one line.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return dataset.load(subject)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{subject} cannot be read ({reason}); copy its files again") from error


def check_studies(
    dataset: Dataset, subjects: Sequence[str], depth: Depth, seen: Callable[[Study], None] = lambda _: None
) -> dict[str, str]:
    """Reads the studies through their own reader, without the voxels that `depth` leaves out.

    Args:
        depth: 'headers' (files, grids), 'labels' (label values too), 'voxels' (all that a build reads).
        seen: called with each that can be read.

    Returns:
        subject -> what is wrong with it, of those with which something is.
    """
    failures: dict[str, str] = {}
    with reading(depth):
        for subject in progress(subjects, f"checking {depth}"):
            try:
                seen(load_study(dataset, subject))
            except NoSpaceError:
                raise
            except UserError as error:
                failures[subject] = str(error)
    return failures
