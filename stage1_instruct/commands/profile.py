"""zeus-instruct doctor: the frozen models of a profile."""

from __future__ import annotations

import click

from zeus_union.stage1_instruct.commands.shared import (
    send_option,
    with_models,
)


@click.command("doctor", short_help="Check the models before hours of computing")
@with_models
@send_option
def doctor(profile: str, overrides: tuple[str, ...], device: str | None, send_images_to: str | None) -> None:
    """Check a profile before hours of computing: every file there, loads, right shapes, fits, and speaks ten tokens.

    Exit code 2 where something is wrong; everything that is wrong is listed.
    """
    from zeus_union.stage1_instruct.doctor import examine
    from zeus_union.stage1_instruct.models.assembly import best_device
    from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides

    sound = True
    loaded = load_profile(profile, parse_overrides(overrides))
    for finding in examine(loaded, device or best_device(), send_images_to):
        click.echo(f"{'ok   ' if finding.sound else 'WRONG'}  {finding.part}: {' '.join(finding.report.split())}")
        sound = sound and finding.sound
    if not sound:
        raise click.exceptions.Exit(2)
    click.echo(f"{profile} is ready. Next: zeus-instruct build-cache --models {profile}")
