"""zeus-instruct probe-texts: do the instructions know anything? Asked before training."""

from __future__ import annotations

from pathlib import Path

import click

from zeus_union.cache.terminal import FILE, choose, existing, print_tables, say, split_names


@click.command("probe-texts", short_help="Does the text know anything of the labels?")
@click.argument("cache", type=FILE)
@click.option("--variant", required=True, help="Which instructions, e.g. lite, or lite@fold0 of a fold.")
@click.option("--subjects", help="Only these labelled subjects, separated by commas.  [default: all]")
@click.option("--encoder", help="Whose image embeddings to compare with.  [default: the first]")
@click.option(
    "--slices", "most", type=click.IntRange(10), default=4000, show_default=True, help="At most so many, drawn evenly."
)
@click.option("--out", type=FILE, help="CSV file to write: a line for each source and target.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seeds draws and shuffling.")
@click.option("--allow-partial", is_flag=True, help="Open an unfinished cache.")
def probe_texts_command(
    cache: Path,
    variant: str,
    subjects: str | None,
    encoder: str | None,
    most: int,
    out: Path | None,
    seed: int,
    allow_partial: bool,
) -> None:
    """Do the instructions know anything of the labels? Seconds, before a decoder is trained.

    Linear probes (logistic and ridge regression) from the text's embedding to what a slice shows: presence of every class,
    its side (half of the columns), third (of the rows) and area. Scored on subjects they were not fitted on, beside the same
    from the image embedding and from texts of other slices. Where the text is at chance, no decoder can be expected to gain
    by it; a large gap between the subjects fitted on and the others is a warning.

    Where a projection was trained on some subjects, these are fitted on and the others tested on; else each subject is
    held out once, in up to five folds. With fewer than five test subjects there are no intervals.

    zeus-segment probe asks another question: whether a trained run listens to its text.

    \b
    zeus-instruct probe-texts cache/brats.h5 --variant lite --out lite.csv
    """
    from zeus_union.cache.atomic import write_atomically
    from zeus_union.cache.fold_layers import only_variant
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.texts.knowledge import as_csv, knowledge_table, measure_knowledge

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        variant = choose([only_variant(opened.variants, variant)], opened.variants, "variant")[0]
        chosen = choose(split_names(subjects), opened.subjects, "subject")
        encoders = choose(None if encoder is None else [encoder], opened.encoders, "encoder")
        if not encoders:
            say(f"{cache} has no image embeddings: the text is compared with shuffled text alone")
        known = measure_knowledge(opened, variant, encoders[0] if encoders else None, chosen, most, seed)
    print_tables(knowledge_table(known))
    for note in known.notes:
        click.echo(note)
    if out is not None:
        write_atomically(out, as_csv(known).encode())
        click.echo(f"scores in {out}")
