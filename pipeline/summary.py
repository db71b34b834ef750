"""What `rookery shard` says when it is done: what was made, and everything that was left out and why."""

import os
from collections.abc import Mapping
from typing import TextIO

from pipeline.plan import FLOAT32_IDS, Plan
from survey.dataset import Dataset

HOW = {
    "mosaic": "by whole mosaics",
    "block": "by blocks of each mosaic, no pixel shared",
    "list": "as --split_list says",
    "fold": "by folds",
    "all": "one split",
}


def text(made: Dataset, offenders: Mapping[str, list[str]], folder: str) -> str:
    """What was made, in a few lines for the terminal.

    Args:
      made: the dataset.
      offenders: for the reasons that point at a mistake, the first cases in words.
      folder: where it is.
    """
    counts, statistics = made.counts, made.statistics
    lines = [f"{_number(len(made.mosaics), 'mosaic')}, split {HOW[made.options['split_by']]}"]
    for name, shards in made.splits.items():
        patches, objects = _number(made.records(name), "patch", "patches"), _number(statistics.objects[name], "box", "boxes")
        lines.append(f"  {name}: {patches}, {objects}, {_number(len(shards), 'file')}")
    for reason, words in (
        ("patches_between_splits", "between splits"),
        ("patches_on_ground_of_another_split", "of these because another mosaic shows their ground in another split"),
        ("empty_patches_left_out", "without objects, beyond --negatives_per_positive"),
        ("patches_empty", "in which no pixel shows anything"),
        ("patches_of_bad_mosaics", "of mosaics that cannot be read"),
    ):
        if counts.get(reason):
            lines.append(f"  left out {words}: {_number(counts[reason], 'patch', 'patches')}")
    proof = made.no_shared_pixels
    if len(made.splits) > 1 and proof.get("holds"):
        compared = proof["pairs_compared"] + proof["ground_pairs_compared"]
        lines.append(f"  checked: no pixel is in two splits ({compared:,} pairs of near patches compared)")
    lines.append("classes: " + ", ".join(f"{name} {number:,}" for name, number in statistics.objects_per_class.items()))
    sides = statistics.box_sides_px
    lines.append(
        f"box side: median {sides['q50']:.0f} px, 1 to 99 % {sides['q01']:.0f} to {sides['q99']:.0f} px; at most "
        f"{statistics.max_objects_per_patch:,} boxes in a patch"
    )
    lines.append(f"objects: {counts['objects_read']:,} read, {counts['objects_labelled']:,} labelled in at least one patch")
    visible = f"{made.options['min_visible']:.0%}"
    largest = counts.get("largest_object_px", 0)
    for reason, words in (
        ("objects_clipped_to_mosaic", "clipped, because they leave the mosaic"),
        ("objects_empty_or_outside_mosaic", "dropped, because they are empty or outside the mosaic"),
        ("objects_given_twice", "dropped, because the same box and class is there already"),
        ("objects_on_several_mosaics", "on several mosaics: labelled in each"),
        ("objects_of_bad_mosaics", "dropped with a mosaic that cannot be read"),
        ("objects_in_no_patch", f"in no patch: shown only between splits, or never by {visible}"),
        (
            "objects_larger_than_overlap",
            f"larger than the overlap of {made.overlap_px} px, the largest {largest:,} px: some may be whole in no patch; "
            f"remedy: --overlap {min(largest, made.patch_size - 1)}",
        ),
        ("boxes_too_little_visible_in_patch", f"boxes left out of a patch that shows less than {visible} of them"),
        ("mosaics_without_objects", "mosaics without any object: all their patches count as empty"),
        ("images_without_objects_not_among_mosaics", "images named without objects that are not among the mosaics"),
        ("mosaics_unreadable", "mosaics left out, because they cannot be read"),
        # What the readers of annotations pass over; docs/data.md says why in each format.
        ("crowd_annotations_left_out", "annotations of crowds left out: they outline a group, not an object"),
        ("shapes_left_out", "shapes left out that have no box of their own"),
        ("features_left_out", "map features left out that have no place or box of their own"),
        ("rows_without_object", "rows that name an image without an object"),
        ("gdal_aux_files_left_out", ".aux.xml files of GDAL left out: they are no annotations"),
    ):
        if counts.get(reason):
            lines.append(f"  {counts[reason]:,} {words}")
            lines += [f"    {case}" for case in offenders.get(reason, [])]
    lines.append(f"dataset: {folder}")
    lines.append(f"next: rookery train --dataset {folder} --model_dir {os.path.join(os.path.dirname(folder) or '.', 'run')}")
    return "\n".join(lines)


def name_bad(bad: Mapping[str, str], out: TextIO) -> None:
    """Names the mosaics that the dataset does without."""
    for name in sorted(bad):
        print(f"warning: left out: {bad[name]}", file=out)


def warn_of_large_ids(plan: Plan, out: TextIO) -> None:
    """Warns of patch numbers that a float32 cannot hold."""
    largest = int(plan.table.patch_ids.max())
    if largest > FLOAT32_IDS:
        print(
            f"warning: patch numbers reach {largest:,}. Rookery and Model Garden's vision parsers keep them as int64, but "
            f"float32 holds whole numbers up to {FLOAT32_IDS:,} only: `tf.strings.to_number(image/source_id)` without a type, "
            "as in Model Garden's legacy parsers, would mix patches up. Give it tf.int64, or use image/patch_id.",
            file=out,
        )


def _number(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
