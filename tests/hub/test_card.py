"""The example of the model card is code that runs."""

import ast
import json
import re

import pytest

from dcp_clip.hub.card import model_card
from dcp_clip.vocabulary import Vocabulary

NAMES = {
    "marks and commas": (["car/truck", "traffic light, red", "!hand"], None),
    "negatives first": (["!hand", "!palm", "!arm", "car"], None),
    "one main name twice": ([["bag", "sack"], ["bag", "purse"]], ["bag (a)", "bag (b)"]),
    "display names": ([["straße"], ["tv monitor"]], ["road; street", "tvmonitor"]),
    "quotes": (['a "b" \\ c', "{d}", "driver's seat", "e"], None),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("modules", [[], ["my_heads", "my_stages"]])
def test_example(predictor, case, modules):
    names, titles = NAMES[case]
    vocabulary = Vocabulary(names, display_names=titles, warn_shared=False)
    cfg = predictor.cfg.clone()
    cfg.MODEL.IMPORTS = modules
    card = model_card('owner/my "model"', cfg, predictor.model, vocabulary, None)
    code = ast.parse(re.search("```python\n(.*?)```", card, re.DOTALL)[1])
    calls = {ast.unparse(x.func): x for x in ast.walk(code) if isinstance(x, ast.Call)}
    load, segment = calls["Predictor.from_pretrained"], calls["predictor"]
    assert ast.literal_eval(load.args[0]) == 'owner/my "model"'
    found = {keyword.arg: ast.literal_eval(keyword.value) for keyword in load.keywords}
    assert found == ({"imports": modules} if modules else {})
    example = Vocabulary.parse(ast.literal_eval(segment.keywords[0].value))
    main_names = [entry[0] for entry in vocabulary.synonyms]
    positive = [name for i, name in enumerate(main_names) if i not in vocabulary.negatives]
    assert example.synonyms == tuple((name,) for name in dict.fromkeys(positive[:3]))
    assert not example.negatives


def test_names_of_all_scripts_are_readable(predictor):
    card = model_card("x", predictor.cfg, predictor.model, Vocabulary(["图", "straße"]), None)
    assert f"vocabulary={json.dumps(['图', 'straße'], ensure_ascii=False)})" in card
