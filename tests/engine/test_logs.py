"""What an evaluation leaves in the folder of a training."""

import argparse

import pytest

from dcp_clip.engine.logs import set_up_logs


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("eval_only", [False, True])
def test_evaluation_keeps_the_config_of_a_training(make_cfg, tmp_path, trained, eval_only):
    (tmp_path / "config.yaml").write_text("of the training")
    if trained:
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
    cfg = make_cfg(opts={"OUTPUT_DIR": str(tmp_path), "SEED": 1})
    set_up_logs(cfg, argparse.Namespace(config_file="", eval_only=eval_only))
    content = (tmp_path / "config.yaml").read_text()
    assert (content == "of the training") == (trained and eval_only)
    assert "Running with full config" in (tmp_path / "log.txt").read_text()
