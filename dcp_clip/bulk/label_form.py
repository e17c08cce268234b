"""The forms of the label maps in the results of a bulk run."""

from dcp_clip.utils.label_maps import MAX_PNG_CATEGORIES

__all__ = ["check_label_form"]


def check_label_form(labels: str, num_categories: int) -> None:
    """Raise a ValueError if label maps of this form, "rle" or "png", cannot have all categories."""
    if labels == "png" and num_categories > MAX_PNG_CATEGORIES:
        raise ValueError(
            f"--labels png can store ids of at most {MAX_PNG_CATEGORIES} categories, but the "
            f"vocabulary has {num_categories}: use --labels rle."
        )
