"""zeus: whole jobs made of the two stages."""

from __future__ import annotations

from pathlib import Path

import click

from cache.terminal import ZeusGroup, existing

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Whole jobs made of the two stages; zeus-instruct and zeus-segment are the stages themselves.

    \b
    zeus demo                  from nothing to masks, on a phantom
    zeus report runs/NAME      a run's figures and a picture of its predictions
    """


@main.command()
@click.option("--out", type=FOLDER, default=Path("zeus-demo"), show_default=True, help="Folder to write.")
@click.option("--subjects", type=click.IntRange(2), default=6, show_default=True, help="How many phantoms.")
@click.option("--slice-step", type=click.IntRange(1), default=2, show_default=True, help="Every n-th slice.")
@click.option("--epochs", type=click.IntRange(1), default=16, show_default=True, help="Epochs of stage 2.")
@click.option(
    "--caption-epochs", type=click.IntRange(1), help="Epochs of the projection's training.  [default: about 150 steps]"
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default=None, help="cpu, cuda, ...; the best there is if not given.")
def demo(
    out: Path,
    subjects: int,
    slice_step: int,
    epochs: int,
    caption_epochs: int | None,
    seed: int,
    device: str | None,
) -> None:
    """The whole thing on the embedded models, from nothing: data, cache, run, masks, picture.

    Says first what it downloads and how long it takes. The same command again goes on where it stopped.
    """
    from pipelines.demo import run_demo

    picture = run_demo(out, subjects, slice_step, epochs, caption_epochs, seed, device)
    click.echo(f"look at {picture}; the masks are in {out / 'masks'}")


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--cache", type=click.Path(dir_okay=False, path_type=Path), help="The cache.  [default: the run's]")
@click.option("--subjects", help="Subjects to draw, separated by commas.  [default: the held-out ones]")
@click.option("--slices", type=click.IntRange(1), default=4, show_default=True, help="How many slices to draw.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="PNG to write.  [default: RUN/picture.png]"
)
def report(run: Path, cache: Path | None, subjects: str | None, slices: int, out: Path | None) -> None:
    """Draw a run: images, instruction, truth and prediction side by side."""
    from pipelines.report.run import report_run

    click.echo(f"picture in {report_run(existing(run, 'the run'), cache, subjects, slices, out)}")


if __name__ == "__main__":
    main()
