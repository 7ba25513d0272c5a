"""zeus report for one run."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from zeus_union.cache.page.render import write_page
from zeus_union.cache.terminal import choose, split_names
from zeus_union.pipelines.report.curves import draw_curves
from zeus_union.pipelines.report.picture import draw_run, slices_of
from zeus_union.pipelines.report.run_page import PAGE, run_page
from zeus_union.stage2_segment.checkpoint import METRICS, load_config
from zeus_union.stage2_segment.evaluation.evaluate import subjects_to_measure
from zeus_union.stage2_segment.inputs.layers import layers_read
from zeus_union.stage2_segment.trained import load_trained, open_cache

LEAK_NOTE = "; an upper bound, not a result: its instructions were made from the true labels"


def report_run(
    run: Path, cache_path: Path | None, subjects: str | None, slices: int, out: Path | None, results: Path | None = None
) -> tuple[Path, Path]:
    """Draws `slices` telling slices of `subjects`, else of `subjects_to_measure`, and writes the run's page.

    In the run's folder, curves.png: how the run was trained.

    Args:
        out: PNG; None: picture.png of the results.
        results: the folder of the run's results, which gets report.html and is read for evaluation and probes; None: the run.

    Returns:
        The paths of the PNG and of the page.
    """
    results = results or run
    config = load_config(run)
    metrics = run / METRICS
    if metrics.is_file():
        draw_curves(pq.read_table(metrics).to_pylist(), run / "curves.png", run.name)
    with open_cache(run, cache_path) as cache:
        if subjects:
            wanted = choose(split_names(subjects), cache.subjects, "subject")
        else:
            wanted = subjects_to_measure([config], cache, None)
        rows = slices_of(cache, wanted, slices)
        picture = out or results / "picture.png"
        trained = load_trained(run)
        draw_run(
            cache,
            rows,
            trained.predict(cache, rows),
            next(iter(layers_read(config, cache)), None),
            picture,
            f"{run.name}: {config.architecture.fusion} fusion" + (LEAK_NOTE if config.inputs.leaks else ""),
            config.inputs.modalities,
        )
        html = run_page(trained, cache, wanted, subjects is not None, results.resolve().name, results)
    return picture, write_page(results / PAGE, html)
