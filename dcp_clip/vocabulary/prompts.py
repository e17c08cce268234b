"""Prompt templates, and the function that puts names into them."""

from collections.abc import Sequence
from pathlib import Path

from dcp_clip.vocabulary.category import VocabularyError, shortened

_TEMPLATES_DIR = Path(__file__).parent / "templates"


def is_template_set(spec: str) -> bool:
    """Return whether prompt templates are one of the sets of :func:`load_templates`, not a file."""
    return str(spec) in {path.stem for path in _TEMPLATES_DIR.glob("*.txt")}


def load_templates(spec: str | Path) -> tuple[str, ...]:
    """Return a set of prompt templates, each with one ``{}`` for the name.

    Args:
        spec: ``"single"``, ``"imagenet80"`` (the 80 of CLIP's ImageNet notebook),
            ``"maskclip85"`` (those and the 5 of MaskCLIP, arXiv 2112.01071), ``"vild14"``
            (the 14 of ViLD that OVSeg, SAN and FC-CLIP use), ``"captions"`` (the captions of
            EmojiScenes' drawings), or the path of a UTF-8 text file with one template in each
            line. Blank lines and lines that start with '#' are skipped.

    Raises:
        VocabularyError: if there is no such set or file, or a line does not contain exactly one
            ``{}``; the message contains the line number.
    """
    path = _TEMPLATES_DIR / f"{spec}.txt" if is_template_set(spec) else Path(spec).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as e:
        known = ", ".join(sorted(p.stem for p in _TEMPLATES_DIR.glob("*.txt")))
        raise VocabularyError(
            f"There are no prompt templates '{spec}': it is neither a set ({known}) nor a file."
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise VocabularyError(f"The template file {path} cannot be read as UTF-8: {e}") from e

    templates = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.count("{}") != 1:
            raise VocabularyError(
                f"{path}, line {number}: a template must contain exactly one {{}} for the name, "
                f"got '{line}'."
            )
        templates.append(line)
    if not templates:
        raise VocabularyError(f"The template file {path} contains no template.")
    return tuple(templates)


def build_prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put every name into every template: N names and T templates give N * T prompts.

    Training, evaluation and the demo all use this function, so their prompts are the same.

    Returns:
        the T prompts of the first name, then those of the second, and so on.
    """
    # str.format would fail on names and templates that contain other braces.
    return [template.replace("{}", name) for name in names for template in templates]


def name_too_long(name: str, tokens: int, context: int) -> VocabularyError:
    """Return the error for a name whose prompt has more tokens than CLIP's context."""
    return VocabularyError(
        f"The name '{shortened(name, 60)}' ({len(name)} characters) needs {tokens} tokens in the "
        f"prompt, but CLIP's context holds {context}; shorten it."
    )
