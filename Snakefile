"""From prompts to tables. `snakemake --cores all` runs config/miniature.yaml; `--configfile` takes another one whole."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

import star.config  # by its full name: Snakemake has a `config` of its own, which does not follow `extends`
import star.lock_owner
from star.errors import InputError

CONFIG_FILES = workflow.config_settings.configfiles or [Path("config/miniature.yaml")]
try:
    CONFIG = star.config.load(CONFIG_FILES, workflow.config_settings.config)
except InputError as error:
    raise WorkflowError(str(error)) from None
star.lock_owner.watch(workflow)
validate(CONFIG.model_dump(mode="json"), "workflow/schemas/config.schema.json", set_default=False)


include: "workflow/rules/common.smk"


onstart:
    require_places()
    write_resolved_config()


include: "workflow/rules/fetch.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/maps.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report_page.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/credit.smk"
include: "workflow/rules/log.smk"
include: "workflow/rules/pretrain_miniature.smk"
include: "workflow/rules/kit.smk"


rule all:
    # Everything, not only the last files: Snakemake does not miss a deleted file (that of a failed job, say) in the middle of a
    # chain whose end is still there, and old tables would stand for new settings.
    default_target: True
    input:
        rules.tables.output,
        rules.report_page.output,
        rules.log_tables.output,
        all_prompts(),
        all_trained(),
        all_samples(),
        all_scores(),
        all_guards(),
        all_maps(),
        all_logged(),
        all_evidence(),


rule credit:
    # No part of `all`: a measurement of 64 batches takes as long as some trainings.
    input:
        all_credit(),
