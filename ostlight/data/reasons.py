"""Rejected records by reason: how many, the first of each, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ostlight.data.quarantine import Row
from ostlight.data.sanitize import printable

EXAMPLES = 3
DETAIL_CHARACTERS = 200
OTHER = "see the details"

CURES = {
    "all_masked": "raise max_length, or shorten what stands before the answer",
    "bad_field": "fix the field, or map other columns with pool.columns",
    "bad_json": "fix or remove the line",
    "bad_link": "write the shard again, with the file in the place of the link",
    "bad_role": "use a role of the list",
    "bad_row": "fix the quotes or the number of cells",
    "corrupt_image": "fetch or export the image again",
    "damaged_archive": "fetch the shard again",
    "duplicate_id": "give each record an id of its own, or set pool.duplicates=keep",
    "empty_answer": "remove the record, or mute the turn (weight: 0)",
    "gradient_not_finite": "set the model's dtype to float32",
    "image_count": "write one <image> for each image, or none at all",
    "image_cut": "raise max_length",
    "image_in_answer": "move the image to a user's turn, or use a proxy whose template takes images in answers",
    "image_outside_root": "set image_root to a folder that holds the images",
    "image_size": "scale the images to the model's size, or use a proxy whose processor does",
    "image_too_large": "scale the image down, or raise pool.limits",
    "labels_unproved": "use a chat template that leaves answers as they are",
    "loss_not_finite": "set the model's dtype to float32",
    "media_token_in_text": "remove the model's own placeholder from the text",
    "missing_image": "set image_root, or fetch the images; then run again",
    "answer_cut": "raise max_length, or leave the question out of the test set",
    "no_expected_answer": "set evaluation.marker to what stands before the final answer, or leave it out",
    "no_answer": "remove the record, or use a selector for unlabelled pools",
    "no_tools": "use a proxy whose chat template takes tools",
    "no_vision": "use a proxy that takes images",
    "not_an_image": "name an image; convert HEIC, TGA, DDS, PSD, SVG and PDF to PNG",
    "other_members": "name the members in the JSON, or leave its list of media out",
    "out_of_memory": "lower max_length or the images' size",
    "processor_refused": "change what the library complains of, or use another proxy",
    "record_too_large": "split the record, or raise pool.limits",
    "remote_image": "download the images and name them by their paths",
    "repeated_member": "write the shard again, each name once",
    "score_not_finite": "see the selector's page",
    "split_record": "write the shard again, the members of each key together (tar --sort=name)",
    "template_refused": "reorder the turns as the model's chat template wants them, or use another proxy",
    "text_too_long": "split the text, or raise pool.limits",
    "too_long": "lower max_length",
    "unknown_token": "use the tokenizer that belongs to the model",
    "unreadable_record": "fix the column in the file",
    "unstable_template": "use another chat template",
    "unsupported_media": "read video as frames (video: {frames: 8}), or keep such records: pool.unsupported=keep",
    "corrupt_video": "replace the file; MP4, MKV, WebM and AVI are read",
    "video_count": "write one <video> for each video, or none at all",
}
"""What to do about each reason of this package and of the models; selectors have reasons of their own."""


@dataclass(frozen=True)
class RejectedGroup:
    """The records that were rejected for one reason.

    Attributes:
        reason: the code.
        count: records; one that was rejected in several stages counts once.
        examples: the first few, by position.
        cure: what to do.
    """

    reason: str
    count: int
    examples: list[Row]
    cure: str

    def lines(self) -> list[str]:
        """The group as lines of text, safe to print."""
        lines = [f"rejected: {self.count:,} {self.reason}; {self.cure}"]
        for row in self.examples:
            field = f" {row.field}:" if row.field else ""
            detail = " ".join(row.detail.split())
            cut = detail[:DETAIL_CHARACTERS] + ("..." if len(detail) > DETAIL_CHARACTERS else "")
            lines.append(printable(f"  {row.name}:{field} {cut}"))
        more = self.count - len(self.examples)
        return [*lines, f"  and {more:,} more"] if more > 0 else lines


def group_by_reason(rows: Iterable[Row], examples: int = EXAMPLES) -> list[RejectedGroup]:
    """Rejected records grouped by reason, the most frequent first; the same groups in whatever order the rows come."""
    first: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.position, row.stage)):
        first.setdefault(row.position, row)
    groups: dict[str, list[Row]] = {}
    for row in first.values():
        groups.setdefault(row.reason, []).append(row)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [RejectedGroup(reason, len(rows), rows[:examples], CURES.get(reason, OTHER)) for reason, rows in ordered]
