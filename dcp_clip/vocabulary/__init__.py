"""Category names: vocabularies, synonyms, prompt templates, colours and the benchmarks' lists.

This subpackage imports no other part of DCP-CLIP and needs neither torch nor Detectron2.
"""

from dcp_clip.vocabulary.categories import load_names
from dcp_clip.vocabulary.category import Category, VocabularyError
from dcp_clip.vocabulary.colors import default_color
from dcp_clip.vocabulary.prompts import build_prompts, load_templates
from dcp_clip.vocabulary.vocabulary import Vocabulary

__all__ = [
    "Category",
    "Vocabulary",
    "VocabularyError",
    "build_prompts",
    "default_color",
    "load_names",
    "load_templates",
]
