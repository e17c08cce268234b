"""Prompt templates, and the one function that puts names into them."""

from collections.abc import Sequence
from pathlib import Path

from dcp_clip.vocabulary.categories import VocabularyError

_TEMPLATES_DIR = Path(__file__).parent / "templates"


def load_templates(spec: str | Path) -> tuple[str, ...]:
    """Return a set of prompt templates, each with one ``{}`` for the name.

    Args:
        spec: ``"single"``, ``"imagenet80"`` (the 80 of CLIP's ImageNet notebook), ``"vild14"``
            (the 14 of ViLD that OVSeg, SAN and FC-CLIP use), ``"captions"`` (as the drawings of
            EmojiScenes are captioned), or the path of a UTF-8 text file with one template a line;
            blank lines and lines that start with '#' are skipped.

    Raises:
        VocabularyError: if there is no such set or file, or a line (named) has not exactly one
            ``{}``.
    """
    path = _TEMPLATES_DIR / f"{spec}.txt"
    if not path.is_file():
        path = Path(spec)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as e:
        known = ", ".join(sorted(p.stem for p in _TEMPLATES_DIR.glob("*.txt")))
        raise VocabularyError(
            f"No prompt templates '{spec}': it is neither a set ({known}) nor a file."
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
                f"{path}, line {number}: a template needs exactly one {{}} for the name, "
                f"got '{line}'."
            )
        templates.append(line)
    if not templates:
        raise VocabularyError(f"The template file {path} holds no template.")
    return tuple(templates)


def build_prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put every name into every template: N names and T templates give N * T prompts.

    Training, evaluation and demo all come through here (design.md, contract 8).

    Returns:
        The T prompts of the first name, then those of the second, and so on.
    """
    # replace, not format: names and templates may hold braces of their own.
    return [template.replace("{}", name) for name in names for template in templates]
