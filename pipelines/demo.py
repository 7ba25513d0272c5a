"""zeus demo: from nothing to masks and a picture, on the embedded models and a phantom."""

from __future__ import annotations

import time
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import print_tables, say
from zeus_union.pipelines.report.picture import draw_run, slices_of
from zeus_union.stage1_instruct.building.job import Splits
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import best_device, load_models
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.weights.fetch import fetch
from zeus_union.stage1_instruct.weights.store import is_present, zeus_home
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.evaluation.evaluate import as_table, evaluate_run
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import load_trained
from zeus_union.stage2_segment.training.train import train_run

DOWNLOAD_MEGABYTES = 213
# On two cores, with bf16 instructions and without; said before the user waits.
EXPECTED_MINUTES = "9 to 20"
# A few dozen slices: small batches, so that there are enough steps in the minutes a demo has, and an aligner that learns
# twice as fast as the recipe's. With batches of 8 at 2e-4, 12 epochs end at a held-out DSC of 0.31; with these, 16 of half
# the time end above 0.9.
BATCH_SIZE, LR_NEW = 3, 8e-4
FOLD = 0


def run_demo(
    out: Path,
    subjects: int,
    slice_step: int,
    epochs: int,
    seed: int,
    device: str | None,
) -> Path:
    """Writes OUT/{data,cache,run,masks,picture.png}; a finished step is not done again.

    Returns:
        The picture's path.
    """
    if subjects < 2:
        raise UserError(f"--subjects {subjects}: the demo needs at least 2, one to train on and one to test on")
    start = time.perf_counter()
    device = device or best_device()
    profile = load_profile("lite", {})
    missing = not is_present(profile)
    download = f"downloads {DOWNLOAD_MEGABYTES} MB of weights into {zeus_home()}, then " if missing else ""
    say(f"zeus demo: {download}works for {EXPECTED_MINUTES} minutes on two cores; results in {out}")

    if missing:
        fetch(profile)
    say("1/4 phantom: DICOM and PNG in the CHAOS layout")
    write_demo("chaos", out / "data", subjects=subjects, seed=seed)
    dataset = open_dataset("demo", out / "data")
    cache_path = out / "cache" / "demo.h5"
    say(
        "2/4 cache: image embeddings (LiteMedSAM), a projection trained on captions of the training phantoms, instructions"
    )
    options = BuildOptions(
        out=cache_path, slice_step=slice_step, pack=True, check=True, trained_for=Splits((FOLD,), asked=True)
    )
    build_cache(dataset, load_models(profile, device), options)

    say("3/4 training the aligner and the mask decoder from the cache")
    run = out / "run"
    train_run(
        cache_path,
        run,
        resume=run.exists(),
        device=device,
        fold=FOLD,
        epochs=epochs,
        seed=seed,
        batch_size=BATCH_SIZE,
        lr_new=LR_NEW,
    )
    with Cache(cache_path) as cache:
        print_tables(as_table(evaluate_run(run, cache, device=device)))

        say("4/4 masks in the studies' own grids, and a picture")
        config = load_config(run)
        held_out = config.split.test
        predict_run(run, cache, out / "masks", subjects=held_out, device=device)
        rows = slices_of(cache, held_out)
        predictions = load_trained(run, device=device).predict(cache, rows)
        picture = out / "picture.png"
        draw_run(cache, rows, predictions, config.inputs.variants[0], picture, "zeus demo: held-out phantoms")
    say(f"done in {(time.perf_counter() - start) / 60:.1f} minutes")
    return picture
