"""Under a real Trainer every epoch draws other views in another order, and a resumed one what an unbroken one would have."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.data.module import VisionData


class Watch(L.LightningModule):
    """Keeps what it is shown: per epoch, names and pixels of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[tuple[tuple[str, ...], torch.Tensor]]] = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append((tuple(batch.names), batch.images.clone()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def watch(epochs, folder, resume=None, module=None, every_minutes=5.0, **options):
    module = module or Watch()
    data = VisionData(shapes={"images": 20, "size": 32}, size=32, batch_size=4, augment="light", **options)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder,
        callbacks=[Checkpoints(every_minutes=every_minutes)],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module.seen


def names(seen, epoch):
    return [name for batch, _ in seen[epoch] for name in batch]


def pixels(seen, epoch):
    return {name: image for batch, images in seen[epoch] for name, image in zip(batch, images, strict=True)}


def test_every_epoch_has_other_views_in_another_order(tmp_path):
    for workers in (0, 2):
        seen = watch(3, tmp_path / str(workers), workers=workers)
        assert sorted(names(seen, 0)) == sorted(names(seen, 1)) == sorted(names(seen, 2))
        assert len({tuple(names(seen, epoch)) for epoch in range(3)}) == 3
        first, second = pixels(seen, 0), pixels(seen, 1)
        assert sum(torch.equal(first[name], second[name]) for name in first) <= 1


def test_a_resumed_run_draws_what_an_unbroken_one_does(tmp_path):
    whole = watch(3, tmp_path / "whole")
    watch(2, tmp_path / "part")
    rest = watch(3, tmp_path / "part", resume=str(next((tmp_path / "part").rglob("last.ckpt"))))
    assert list(rest) == [2]
    assert names(rest, 2) == names(whole, 2)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rest[2], whole[2], strict=True))


class Breaks(Watch):
    """Ends in the middle of its second epoch without a last word, as a killed process does."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2:
            raise ZeroDivisionError
        return super().training_step(batch, batch_idx)


def test_a_run_that_breaks_in_a_long_epoch_goes_on_in_its_middle(tmp_path):
    """`every_minutes` saves within the epoch; what follows is what an unbroken run has then."""
    whole = watch(3, tmp_path / "whole")
    assert len(whole[1]) == 4
    with pytest.raises(ZeroDivisionError):
        watch(3, tmp_path / "part", module=Breaks(), every_minutes=1e-9)
    last = next((tmp_path / "part").rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 6
    rest = watch(3, tmp_path / "part", resume=str(last))
    assert [names_of for names_of, _ in rest[1]] == [names_of for names_of, _ in whole[1][2:]]
    for epoch, skipped in ((1, 2), (2, 0)):
        pairs = zip(rest[epoch], whole[epoch][skipped:], strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_mixing_closes_for_the_last_epochs(tmp_path):
    """Without mixing a sample shows its own scene: at p=1 none of the first epoch's does."""
    still = watch(3, tmp_path / "still", workers=0)
    mixed = watch(3, tmp_path / "mixed", workers=0, mosaic=1.0, close_mosaic=1)

    def equal(epoch):
        return sum(torch.equal(a, pixels(mixed, epoch)[n]) for n, a in pixels(still, epoch).items())

    assert equal(0) == equal(1) == 0
    assert equal(2) == len(pixels(still, 2))


class Falling(Watch):
    """Its score falls from epoch to epoch."""

    def validation_step(self, batch, batch_idx):
        self.log("val/score", -float(self.current_epoch), batch_size=4)


def test_the_last_checkpoint_is_the_last_one_whatever_its_score(tmp_path):
    """Also of epochs that are not validated."""
    for every, last in ((1, 2), (2, 2)):
        folder = tmp_path / str(every)
        data = VisionData(shapes={"images": 20, "size": 32}, size=32, batch_size=4, augment="light")
        trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=folder, callbacks=[Checkpoints()],
            check_val_every_n_epoch=every, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(Falling(), data)
        found = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in folder.rglob("*.ckpt")}
        assert found == {"best": every - 1, "last": last}
