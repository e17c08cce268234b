"""The image tower waits for the first iterations, whether or not the training is interrupted."""

import pytest
import torch

from dcp_clip.engine import Trainer


@pytest.mark.parametrize("stop_at", [None, 3, 5])
def test_the_image_tower_can_start_frozen(config, stop_at, repeating, run):
    """Whether or not the training is interrupted, before the tower joins in or after."""
    opts = {"SOLVER.FREEZE_IMAGE_ITERS": 4, "SOLVER.CHECKPOINT_PERIOD": 1}
    straight = run(config("straight", **opts))

    class Watching(repeating):
        towers = {}  # before each iteration

        def run_step(self):
            weights = [p.detach().clone() for p in self.model.backbone.parameters()]
            self.towers[self.iter] = torch.cat([p.flatten() for p in weights])
            super().run_step()

    if stop_at is not None:
        run(config("watched", **opts), stop_at=stop_at, cls=Watching)
    watched = run(config("watched", **opts), resume=stop_at is not None, cls=Watching)
    start = Watching.towers[0]
    moved = [i for i, weights in Watching.towers.items() if not torch.equal(weights, start)]
    assert moved == [5]  # by the step of iteration 4
    expected = straight.model.state_dict()
    for key, value in watched.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_on_fewer_processes_it_is_longer_as_the_schedule_is(config, repeating):
    opts = {"SOLVER.REFERENCE_WORLD_SIZE": 2, "SOLVER.FREEZE_IMAGE_ITERS": 4}
    trainer = repeating(config(**opts))
    assert trainer.max_iter == 12
    for trainer.iter, trains in ((7, False), (8, True)):
        trainer.before_train()
        assert any(p.requires_grad for p in trainer.model.backbone.parameters()) == trains


@pytest.mark.parametrize(
    "opts, message",
    [
        ({"SOLVER.FREEZE_IMAGE_ITERS": 6}, "below that"),
        ({"SOLVER.FREEZE_IMAGE_ITERS": -1}, "at least 0"),
        ({"SOLVER.FREEZE_IMAGE_ITERS": 2, "MODEL.CLIP.TRAIN_IMAGE": "none"}, "TRAIN_IMAGE"),
    ],
)
def test_a_frozen_start_that_says_nothing_is_refused(config, opts, message):
    with pytest.raises(ValueError, match=message):
        Trainer(config(**opts))
