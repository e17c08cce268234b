"""The own config keys: each is read and explained, and old ones name their successors."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from dcp_clip import config
from dcp_clip.config import add_dcp_clip_config, setup_cfg
from dcp_clip.config.old_keys import OLD_KEYS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "dcp_clip" / "config" / "keys.py"


def leaves(node: CfgNode, prefix: str = "") -> set[str]:
    """Return the dotted names of all keys that are not nodes."""
    found: set[str] = set()
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, CfgNode) else {name}
    return found


def own_keys() -> list[str]:
    cfg = get_cfg()
    upstream = leaves(cfg)
    add_dcp_clip_config(cfg)
    return sorted(leaves(cfg) - upstream)


def test_own_keys():
    assert "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS" in own_keys()


@pytest.mark.parametrize("key", own_keys())
def test_key_is_read(key):
    *nodes, last = key.split(".")
    sources = [ROOT / "dcp_clip_cli" / "training.py", *(ROOT / "dcp_clip").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources if path.parent != CONFIG.parent)
    code = re.sub(r'"""(?s:.*?)"""|#.*', "", code)  # without comments and docstrings
    read = rf"\.{last}\b|\[\"{last}\"\]|\"{last}\""
    if last != "NAME":  # the names of the five stages are read in a loop
        assert re.search(read, code), f"{key} is declared but nothing reads it"
    for node in nodes[1:]:
        assert re.search(rf"\b{node}\b", code), f"nothing reads {node} of {key}"


def test_keys_have_comments():
    """There is a comment above each key or above the group of lines that it belongs to."""
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    without_comment, declared, has_comment = [], set(), False
    for line in lines:
        assignment = re.match(r"cfg\.([A-Z0-9_.]+) = (.*)", line)
        if line.startswith("#"):
            has_comment = True
        elif assignment and assignment[2] != "CN()":
            declared.add(assignment[1])
            without_comment += [] if has_comment else [assignment[1]]
        else:
            # The node of a stage may be between the comment and the key NAME.
            has_comment = has_comment and bool(assignment)
    assert declared >= set(own_keys())
    # A key of Detectron2 with another default.
    assert declared - set(own_keys()) == {"INPUT.FORMAT"}
    assert not without_comment


def test_own_keys_of_a_project(tmp_path):
    cfg = config.get_cfg()
    cfg.MINE = CfgNode({"A": 1}, new_allowed=True)
    (tmp_path / "config.yaml").write_text("MINE:\n  A: 2\n  B: 1e-3\n")
    cfg = setup_cfg(tmp_path / "config.yaml", cfg=cfg)
    assert (cfg.MINE.A, cfg.MINE.B) == (2, 1e-3)


@pytest.mark.parametrize("group", [{"NAMEE": "x"}, {"PROXY": {"NAMEE": "x"}}])
def test_unknown_key_in_a_group_of_the_options(group):
    with pytest.raises(KeyError, match="MODEL.CLIP.*NAMEE"):
        setup_cfg(opts=["MODEL.CLIP", group])


def test_rgb_is_the_default():
    cfg = get_cfg()
    add_dcp_clip_config(cfg)
    assert cfg.INPUT.FORMAT == "RGB"


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
@pytest.mark.parametrize("in_file", [True, False])
def test_old_key_names_the_new_one(tmp_path, old, new, in_file):
    path = tmp_path / "config.yaml"
    if in_file:
        *nodes, last = old.split(".")
        lines = [f"{'  ' * i}{node}:" for i, node in enumerate(nodes)]
        path.write_text("\n".join([*lines, f"{'  ' * len(nodes)}{last}: 1", ""]))
    with pytest.raises(KeyError) as raised:
        setup_cfg(path if in_file else "", [] if in_file else [old, "1"])
    message = raised.value.args[0]
    assert "\n" not in message and old in message
    assert (f"is called {new} now" if new else "was removed") in message


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
def test_new_key_exists_and_old_key_does_not(old, new):
    def exists(key):
        node = config.get_cfg()
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                return False
            node = node[part]
        return True

    assert not exists(old)
    assert new is None or exists(new)
