"""Small files of the archive merged into large ones: runs add some, and by night they are few."""

from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from warehouse.archive import Archive, Part

COMPACT_PART_ROWS = 250_000
COMPACT_PART_BYTES = 32 * 2**20


def compact_texts(archive: Archive) -> int:
    """Merge runs of small text files into large ones; return how many files were merged.

    Texts of superseded samples go: what a validator once said stays in the submissions.
    """
    with archive.changing():
        manifest = archive.manifest()
        current = archive.votes(manifest).select("seq")
        compacted: list[Part] = []
        merged = 0
        for run in _runs(manifest.texts):
            if len(run) == 1:
                compacted += run
                continue
            texts = pl.concat([archive.read(part) for part in run])
            # Versions newer than the votes' watermark cannot be told current or not yet.
            is_kept = pl.col("seq") > manifest.watermark
            texts = pl.concat(
                [texts.join(current, on="seq", how="semi"), texts.filter(is_kept)]
            ).sort("seq")
            compacted.append(archive.write("texts", f"{run[-1].last_seq:012d}", texts))
            merged += len(run)
        if merged:
            archive.replace_manifest(replace(manifest, texts=tuple(compacted)))
    return merged


def compact_evidence(archive: Archive) -> int:
    """Merge runs of small files of submissions and of events; return how many files went."""
    with archive.changing():
        manifest = archive.manifest()
        submissions = _merged(archive, "submissions", manifest.submissions)
        events = _merged(archive, "events", manifest.events)
        merged = len(manifest.parts()) - len(manifest.votes) - len(manifest.texts)
        merged -= len(submissions) + len(events)
        if merged:
            archive.replace_manifest(replace(manifest, submissions=submissions, events=events))
    return merged


def _merged(archive: Archive, folder: str, parts: Iterable[Part]) -> tuple[Part, ...]:
    merged: list[Part] = []
    for run in _runs_of_bytes(archive, parts):
        if len(run) == 1:
            merged += run
        else:
            rows = pl.concat([archive.read(part) for part in run])
            merged.append(archive.write(folder, f"{run[-1].last_seq:012d}", rows))
    return tuple(merged)


def _runs(parts: Iterable[Part]) -> list[list[Part]]:
    """Group neighbouring parts so that each group has about `COMPACT_PART_ROWS` rows."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and sum(p.rows for p in runs[-1]) + part.rows <= COMPACT_PART_ROWS:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _runs_of_bytes(archive: Archive, parts: Iterable[Part]) -> list[list[Part]]:
    """Group neighbouring parts so that each group has about `COMPACT_PART_BYTES`."""
    runs: list[list[Part]] = []
    run_bytes = 0
    for part in parts:
        size = part.size or (archive.directory / part.file).stat().st_size
        if runs and run_bytes + size <= COMPACT_PART_BYTES:
            runs[-1].append(part)
            run_bytes += size
        else:
            runs.append([part])
            run_bytes = size
    return runs
