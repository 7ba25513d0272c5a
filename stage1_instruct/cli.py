"""zeus-instruct: run the frozen models once and keep what they saw and said."""

from __future__ import annotations

import click

from zeus_union.cache.terminal import ZeusGroup
from zeus_union.stage1_instruct.commands.build import build_cache_command
from zeus_union.stage1_instruct.commands.data import check, make_demo
from zeus_union.stage1_instruct.commands.fetch import fetch
from zeus_union.stage1_instruct.commands.growing import merge_command, remove_command
from zeus_union.stage1_instruct.commands.knowledge import probe_texts_command
from zeus_union.stage1_instruct.commands.layers import export_texts_command, import_texts_command, make_oracle_command
from zeus_union.stage1_instruct.commands.look import inspect, pack, verify
from zeus_union.stage1_instruct.commands.profile import doctor
from zeus_union.stage1_instruct.commands.status import status
from zeus_union.stage1_instruct.commands.text import make_pairs_command, sentences, train_projection_command

COMMANDS = {
    "Before": (fetch, doctor, check, make_demo),
    "A cache": (build_cache_command, status, inspect, verify, pack, merge_command, remove_command),
    "Its texts": (
        probe_texts_command,
        import_texts_command,
        export_texts_command,
        make_oracle_command,
        sentences,
        make_pairs_command,
        train_projection_command,
    ),
}


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Stage 1: run every frozen model once over every slice and write what they said and saw into a cache.

    \b
    zeus-instruct build-cache --dataset demo         a phantom, nothing to download but the models
    zeus-instruct build-cache --dataset nnunet --data-root Dataset501_BraTS2013 --slice-step 4
    zeus-instruct inspect cache/demo.h5              what is in it
    zeus-instruct sentences cache/demo.h5 --variant lite     each text without one of its sentences
    zeus-instruct import-texts cache/brats.h5 reports.csv --variant radiologist     your own text
    zeus-instruct probe-texts cache/brats.h5 --variant radiologist     does it know anything?
    """


for heading, commands in COMMANDS.items():
    for command in commands:
        main.add_command(command)
        main.headings[command.name or ""] = heading


if __name__ == "__main__":
    main()
