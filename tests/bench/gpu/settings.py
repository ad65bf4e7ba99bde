"""What all parts are told, and their two sizes: the benchmark's, and one at which a CPU goes through every part in seconds."""

from dataclasses import dataclass
from pathlib import Path

GRID = ((0.0, 1.0, 0.0), (-50.0, 50.0, -5.0, 5.0, -50.0, 50.0))  # centroid; bounds


@dataclass(frozen=True)
class Settings:
    """out: folder of the results. shards: tars of a train split, empty for a generated world's. dry: on the CPU, tiny."""

    out: str
    shards: tuple = ()
    dry: bool = False

    @property
    def device(self):
        return "cpu" if self.dry else "cuda"

    @property
    def zyx(self):
        return (16, 8, 24) if self.dry else (200, 8, 200)

    @property
    def final_hw(self):
        """Rows and columns of the network's images."""
        return (56, 100) if self.dry else (448, 800)

    @property
    def batch(self):
        return 2 if self.dry else 8

    @property
    def made(self):
        """Folder of generated shards."""
        return Path(self.out, "dry-shards" if self.dry else "shards")

    @property
    def train_shards(self):
        """The tars, given or generated; empty before the latter are there."""
        return self.shards or tuple(sorted(map(str, self.made.glob("train-*.tar"))))

    def options(self, **chosen):
        """train.options.Options of the default experiment at this size; `chosen` are others than the defaults."""
        from train.options import Options

        centroid, bounds = GRID
        tiny = dict(res_scale=0.25, encoder_type="res50", latent_dim=8, batch_size=2, grad_acc=1) if self.dry else {}
        common = dict(
            shards=self.train_shards,
            do_val=False,
            no_pretrained=True,
            nworkers=2 if self.dry else 8,
            device=self.device,
            device_ids=() if self.dry else (0,),
            centroid=centroid,
            bounds=bounds,
            **dict(zip("ZYX", self.zyx, strict=True)),
        )
        return Options(**{**common, **tiny, **chosen})
