"""The rows of the table: networks, sensors and pasts, each with the budget of updates in which it was seen to learn.

All train from random weights on the same samples of a generated city, at a size that two cores manage, and differ in nothing
but what their row says.
"""

from dataclasses import dataclass, field

WORLD = dict(scenes=80, samples=6, image_size="225x400")  # a fifth of the scenes are for validation
DRY_WORLD = dict(scenes=5, samples=2, image_size="90x160")
WORLDS = {"city": (), "hoardings": ("--occluders",)}  # what preprocess.synth is told
SEEDS = (0, 1, 2)
QUARTERS = 4  # validations of a training, the last at its end

# Without augmentation, which pays in longer trainings than these.
COMMON = dict(
    batch_size=4,
    grad_acc=1,
    lr=2e-3,
    res_scale=0.4,
    nsweeps=1,
    encoder_type="effb0",
    latent_dim=32,
    no_pretrained=True,
    bn_momentum=0.1,
    precision="fp32",
    rand_flip=False,
    rand_crop_and_resize=False,
    do_shuffle_cams=False,
    val_batches="all",
    frame="ego",
    bounds=(-24.0, 24.0, -5.0, 5.0, -24.0, 24.0),
    **dict(Z=48, Y=2, X=48),
)
DRY = dict(batch_size=2, res_scale=0.25, latent_dim=8, Z=16, X=16)


@dataclass(frozen=True)
class Recipe:
    """A row: its name, the options of its training beside COMMON, how many updates it takes, and its world, of WORLDS."""

    name: str
    options: dict = field(default_factory=dict)
    updates: int = 400
    world: str = "city"


RADAR, LIDAR = dict(use_radar=True, use_metaradar=True), dict(use_lidar=True)
LIFT = dict(model="lift_splat", lr=1e-3)
# Where hoardings hide what was seen before, boxes that are hardly visible count; the default protocol masks them.
HIDDEN = dict(protocol="min_visibility", min_visibility=1)
RECIPES = (
    Recipe("simple_bev: camera"),
    Recipe("simple_bev: camera, radar", RADAR),
    Recipe("simple_bev: camera, lidar", LIDAR),
    Recipe("simple_bev: camera, radar, lidar", RADAR | LIDAR),
    Recipe("pillars: camera, radar, lidar", dict(model="pillars")),
    Recipe("lift_splat: camera", LIFT | dict(model_args='{"depth_m": [2, 34, 1]}'), 600),
    Recipe("lift_splat: camera, depths", LIFT | dict(model_args='{"depth_m": [2, 34, 1], "depth": "lidar"}'), 600),
    *(Recipe(f"simple_bev: camera, hoardings, K = {k}", HIDDEN | dict(past=k), 400, "hoardings") for k in range(3)),
)
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def chosen(names):
    """The recipes of these names, and those whose name holds one that is no name; all without any.

    Raises ValueError for what no name holds.
    """
    for name in names:
        if not any(name in known for known in BY_NAME):
            raise ValueError(f"--only {name}: the rows are {'; '.join(BY_NAME)}")
    parts = [name for name in names if name not in BY_NAME]
    return [
        recipe for recipe in RECIPES if not names or recipe.name in names or any(part in recipe.name for part in parts)
    ]
