"""The jobs: which parts of the graph run together."""

import dagster as dg

MATERIALIZE = "materialize_everything"
TABLES = "materialize_tables"
SYNC = "sync_chain"
KEEP = "keep_the_warehouse"
# What a job works on; of runs with the same value one is under way at a time (dagster.yaml).
WORK = "leoma/work"

_KEEPING = dg.AssetSelection.groups("keeping")
_CHAIN = dg.AssetSelection.groups("sync")
_EVERYTHING = dg.AssetSelection.all() - _KEEPING

# For people: the chain and then all tables, in one run.
materialize_job = dg.define_asset_job(MATERIALIZE, _EVERYTHING, tags={WORK: "warehouse"})
tables_job = dg.define_asset_job(TABLES, _EVERYTHING - _CHAIN, tags={WORK: "warehouse"})
sync_job = dg.define_asset_job(SYNC, _CHAIN, tags={WORK: "chain"})
keep_job = dg.define_asset_job(KEEP, _KEEPING, tags={WORK: "warehouse"})
