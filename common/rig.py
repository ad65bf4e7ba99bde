"""The rig of a set of shards: which sensors its car has, in which order, and what their numbers mean.

A set's metadata hold it (shards/README.md), preprocessing writes it, and readers take camera slots, point fields, the number of
radars and the keyframe interval from it. nuScenes is its first value. Everything read from a shard is bounded here.
"""

import functools
import json
import math
import re
from dataclasses import asdict, dataclass, replace

from common.errors import InputError

MAX_NAME = 31  # with a key and an ending, a member's name is to fit into the 100 bytes of a ustar name
MAX_SENSORS = 64
MAX_FIELDS = 60
MAX_CATEGORIES = 4096
MAX_CONDITIONS = 32
MAX_INTERVAL_S = 3600.0
MAX_COEFFICIENT = 1e6
# Models of OpenCV's calib3d and fisheye modules, and how many coefficients they have there.
DISTORTIONS = {"brown_conrady": (4, 5, 8, 12, 14), "kannala_brandt": (4,)}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


class RigError(InputError):
    """A rig that cannot be; the message says what of it."""


def _want(true, what):
    if not true:
        raise RigError(f"rig: {what}")


def _freeze(item, *names):
    """Make lists tuples. A text is none: it would become its letters."""
    for name in names:
        value = getattr(item, name)
        _want(isinstance(value, (tuple, list)), f"{name} of {type(item).__name__.lower()} are no list")
        object.__setattr__(item, name, tuple(value))


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _check_name(name, what):
    sound = isinstance(name, str) and len(name) <= MAX_NAME and _NAME.fullmatch(name)
    _want(sound, f"{what} {name!r:.60} is no name of up to {MAX_NAME} letters, digits, _ and -")


def _check_text(text, what, most, may_be_empty=False):
    sound = isinstance(text, str) and (text or may_be_empty) and len(text) <= most and (text.isprintable() or not text)
    _want(sound, f"{what} {text!r:.60} is no printable text of up to {most} characters")


def _check_kinds(values, kind, what, most):
    _want(len(values) <= most, f"{len(values)} {what}s, more than {most}")
    _want(all(isinstance(value, kind) for value in values), f"a {what} is no {kind.__name__}")


def _check_different(names, what):
    seen = set()
    for name in names:
        _want(name not in seen, f"{what}: {name!r:.60} is there twice")
        seen.add(name)


def _check_fields(fields, what, first):
    _check_kinds(fields, Field, f"{what} field", MAX_FIELDS)
    _want(fields[: len(first)] == first, f"{what} fields do not begin with {', '.join(f.name for f in first)}")
    _check_different([field.name for field in fields], f"{what} fields")


@dataclass(frozen=True)
class Distortion:
    """How a camera's lens bends: coefficients in OpenCV's order.

    model: "brown_conrady", k1, k2, p1, p2[, k3[, k4, k5, k6[, s1 … s4[, tau_x, tau_y]]]]; "kannala_brandt", k1 … k4.
    """

    model: str
    coefficients: tuple

    def __post_init__(self):
        _freeze(self, "coefficients")
        _want(self.model in DISTORTIONS, f"distortion {self.model!r} is none of {', '.join(DISTORTIONS)}")
        _want(
            len(self.coefficients) in DISTORTIONS[self.model], f"{self.model} of {len(self.coefficients)} coefficients"
        )
        sound = all(_is_number(value) and abs(value) <= MAX_COEFFICIENT for value in self.coefficients)
        _want(sound, f"{self.model} has a coefficient that is not finite")


@dataclass(frozen=True)
class Camera:
    """name: of its images' members. reference: the one whose frame the BEV grid is in, unless one is drawn.

    distortion: of its images; None, those of a pinhole.
    """

    name: str
    reference: bool = False
    distortion: Distortion | None = None

    def __post_init__(self):
        _check_name(self.name, "camera")
        _want(type(self.reference) is bool, f"reference of camera {self.name} is neither true nor false")
        _want(self.distortion is None or isinstance(self.distortion, Distortion), f"distortion of camera {self.name}")


@dataclass(frozen=True)
class Radar:
    """yaw_deg: which way it looks, from the car's front to its left, within a few degrees; None where it is not known.

    Radar velocities are stored in the radar's own frame, so that pictures need it to draw arrows.
    """

    name: str
    yaw_deg: float | None = None

    def __post_init__(self):
        _check_name(self.name, "radar")
        sound = self.yaw_deg is None or (_is_number(self.yaw_deg) and abs(self.yaw_deg) <= 360)
        _want(sound, f"yaw of radar {self.name} is {self.yaw_deg!r}")


@dataclass(frozen=True)
class Field:
    """One number of a point, or of a keyframe. unit: m, m/s, dBsm …; empty for counts, codes and what has none."""

    name: str
    unit: str = ""

    def __post_init__(self):
        _check_name(self.name, "point field")
        _check_text(self.unit, f"unit of {self.name}", MAX_NAME, may_be_empty=True)


@dataclass(frozen=True)
class Condition:
    """Something that a keyframe is or is not, such as light: its name, and the values that it can have."""

    name: str
    values: tuple

    def __post_init__(self):
        _freeze(self, "values")
        _check_name(self.name, "condition")
        _want(0 < len(self.values) <= MAX_CONDITIONS, f"condition {self.name} has {len(self.values)} values")
        for value in self.values:
            _check_text(value, f"value of condition {self.name}", MAX_NAME)
        _check_different(self.values, f"values of condition {self.name}")


# What every lidar point has, in this order; a set may have more fields after them.
LIDAR_FIELDS = (Field("x", "m"), Field("y", "m"), Field("z", "m"), Field("intensity"), Field("ring"))


@dataclass(frozen=True)
class Rig:
    """A car's sensors and what a data set calls things. Every tuple is in the order that indices mean.

    Attributes:
        dataset, licence: of the source data.
        cameras: Cameras, in the order of the slots of a batch; exactly one is the reference camera.
        lidars: names; an index plane numbers them in this order where there are several.
        radars: Radars, in the order of the numbers that radar points carry.
        lidar_fields: Fields of a lidar point as stored: x, y, z in the keyframe's ego frame, intensity, ring, and any further
            ones. radar_fields: of a radar point, x, y, z first; the time lag and the radar's number follow them.
        clock: the sensor whose keyframe's timestamp defines the ego frame. radar_clock: the radar whose keyframe's timestamp
            defines that of radar points; empty without radars.
        keyframe_interval_s: usual time from one keyframe to the next, seconds.
        conditions: Conditions that keyframes may state, beside their scene's free text.
        categories: names of the categories that boxes may have.
    Raises:
        RigError: anything of it that cannot be.
    """

    dataset: str
    licence: str
    cameras: tuple
    clock: str
    keyframe_interval_s: float
    lidars: tuple = ()
    radars: tuple = ()
    radar_clock: str = ""
    lidar_fields: tuple = LIDAR_FIELDS
    radar_fields: tuple = ()
    conditions: tuple = ()
    categories: tuple = ()

    def __post_init__(self):
        _freeze(self, "cameras", "lidars", "radars", "lidar_fields", "radar_fields", "conditions", "categories")
        _check_text(self.dataset, "dataset", 128)
        _check_text(self.licence, "licence", 2048, may_be_empty=True)
        self._check_sensors()
        _check_fields(self.lidar_fields, "lidar", LIDAR_FIELDS)
        _check_fields(self.radar_fields, "radar", LIDAR_FIELDS[:3] if self.radars else ())
        seconds = self.keyframe_interval_s
        sound = _is_number(seconds) and 0 < seconds <= MAX_INTERVAL_S
        _want(sound, f"keyframe interval {seconds!r} is no number of seconds up to {MAX_INTERVAL_S:g}")
        _check_kinds(self.conditions, Condition, "condition", MAX_CONDITIONS)
        _check_different([condition.name for condition in self.conditions], "conditions")
        _want(len(self.categories) <= MAX_CATEGORIES, f"{len(self.categories)} categories, more than {MAX_CATEGORIES}")
        for name in self.categories:
            _check_text(name, "category", 256)
        _check_different(self.categories, "categories")

    def _check_sensors(self):
        _check_kinds(self.cameras, Camera, "camera", MAX_SENSORS)
        _check_kinds(self.radars, Radar, "radar", MAX_SENSORS)
        _want(len(self.lidars) <= MAX_SENSORS, f"{len(self.lidars)} lidars, more than {MAX_SENSORS}")
        for name in self.lidars:
            _check_name(name, "lidar")
        references = [camera.name for camera in self.cameras if camera.reference]
        _want(len(references) == 1, f"{len(references)} reference cameras, not one")
        names = [*self.camera_names, *self.lidars, *self.radar_names]
        # webdataset makes members' names small, so two that differ in nothing else would be one there.
        _check_different([name.lower() for name in names], "sensors")
        _check_text(self.clock, "clock", MAX_NAME)
        if self.radars:
            _want(self.radar_clock in self.radar_names, f"radar clock {self.radar_clock!r} is none of the radars")
        else:
            _want(self.radar_clock == "", f"radar clock {self.radar_clock!r} without a radar")

    @property
    def camera_names(self):
        """Names of the cameras in slot order."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def radar_names(self):
        """Names of the radars in the order of their numbers."""
        return tuple(radar.name for radar in self.radars)

    @property
    def reference_slot(self):
        """Slot of the reference camera."""
        return next(slot for slot, camera in enumerate(self.cameras) if camera.reference)

    @property
    def lidar_planes(self):
        """Fields of a lidar member: those of a point, and the lidar's number where there are several."""
        return len(self.lidar_fields) + (len(self.lidars) > 1)

    @property
    def radar_planes(self):
        """Fields of a radar member: those of a point, the time lag and the radar's number."""
        return len(self.radar_fields) + 2

    def holding(self, cameras, lidars, radars, **changed):
        """The rig of a set that holds these sensors of it alone; `changed` are further fields.

        The first camera is the reference camera where that is not among them, and so with the radar that is the clock.
        """
        kept = [camera for camera in self.cameras if camera.name in cameras]
        reference = next((camera.name for camera in kept if camera.reference), kept[0].name if kept else "")
        radars = tuple(radar for radar in self.radars if radar.name in radars)
        names = [radar.name for radar in radars]
        return replace(
            self,
            cameras=tuple(replace(camera, reference=camera.name == reference) for camera in kept),
            lidars=tuple(name for name in self.lidars if name in lidars),
            radars=radars,
            radar_clock=self.radar_clock if self.radar_clock in names else "".join(names[:1]),
            radar_fields=self.radar_fields if radars else (),
            **changed,
        )

    def as_dict(self):
        """Plain values as JSON has them, which parse_rig reads."""
        return json.loads(json.dumps(asdict(self)))


def rig_of(facts, schema):
    """The Rig of the metadata (`facts`) of a shard or sample: its own, or for schema 2, which has none, that of nuScenes.

    Raises RigError for one that is not what shards/README.md prescribes.
    """
    # A thread meets the same rig in every sample: its text, a few kilobytes, is what it is known by.
    try:
        if schema == 2:
            return _of_schema_2(json.dumps([facts.get(name) for name in ("sensors", "cameras", "reference")]))
        return _of_text(json.dumps(facts["rig"]))
    except KeyError:
        raise RigError("rig: is missing") from None
    except (AttributeError, TypeError, RecursionError) as error:
        raise RigError(f"rig: {error}") from None


@functools.lru_cache(maxsize=16)
def _of_text(text):
    return parse_rig(json.loads(text))


@functools.lru_cache(maxsize=16)
def _of_schema_2(text):
    """Its metadata said which sensors and which cameras there were; radars have nuScenes' numbers, however many there were."""
    sensors, cameras, clock = json.loads(text)
    return NUSCENES.holding(
        NUSCENES.camera_names if cameras is None else cameras,
        NUSCENES.lidars if sensors is None or "lidar" in sensors else (),
        NUSCENES.radar_names if sensors is None or "radar" in sensors else (),
        clock=NUSCENES.clock if clock is None else clock,
    )


def parse_rig(value):
    """Rig of what as_dict gives, after JSON. Raises RigError for anything that is missing, unknown, mistyped or too large."""
    try:
        return _parsed(_members(value, Rig, "it"))
    except (TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, RigError) else RigError(f"rig: {error}") from None


def _parsed(body):
    cameras = []
    for one in _each(body["cameras"], Camera, "camera"):
        bent = one["distortion"]
        bent = None if bent is None else Distortion(**_members(bent, Distortion, "distortion"))
        cameras.append(Camera(**one | {"distortion": bent}))
    parts = {
        "cameras": cameras,
        "radars": [Radar(**one) for one in _each(body["radars"], Radar, "radar")],
        "lidar_fields": [Field(**one) for one in _each(body["lidar_fields"], Field, "lidar field")],
        "radar_fields": [Field(**one) for one in _each(body["radar_fields"], Field, "radar field")],
        "conditions": [Condition(**one) for one in _each(body["conditions"], Condition, "condition")],
    }
    return Rig(**body | parts)


def _members(value, kind, what):
    """A JSON object that has exactly the fields of a dataclass."""
    names = set(kind.__dataclass_fields__)
    _want(isinstance(value, dict), f"{what} is no JSON object")
    odd = sorted(names ^ set(value))
    _want(
        not odd, f"{what}: the field {odd and odd[0]!r:.60} is {'missing' if odd and odd[0] in names else 'not known'}"
    )
    return value


def _each(values, kind, what):
    _want(isinstance(values, list), f"{what}s are no list")
    return [_members(value, kind, what) for value in values[: MAX_SENSORS + 1]]


_NUSCENES_RADAR_FIELDS = (
    *(
        "x m",
        "y m",
        "z m",
        "dyn_prop",
        "id",
        "rcs dBsm",
        "vx m/s",
        "vy m/s",
        "vx_comp m/s",
        "vy_comp m/s",
        "is_quality_valid",
    ),
    *("ambig_state", "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms"),
)

# The car of nuScenes (https://www.nuscenes.org/nuscenes#data-collection), in the orders of Simple-BEV: cameras by slot before
# the reference camera is swapped into slot 0, radars as it concatenates them, the 18 fields of a radar PCD in file order. Its
# categories are those of the tables that shards were made from.
NUSCENES = Rig(
    dataset="nuScenes",
    licence="nuScenes data: CC BY-NC-SA 4.0, https://www.nuscenes.org/terms-of-use; shards carry the same licence",
    cameras=(
        Camera("CAM_FRONT_LEFT"),
        Camera("CAM_FRONT", reference=True),
        Camera("CAM_FRONT_RIGHT"),
        Camera("CAM_BACK_LEFT"),
        Camera("CAM_BACK"),
        Camera("CAM_BACK_RIGHT"),
    ),
    clock="LIDAR_TOP",
    keyframe_interval_s=0.5,
    lidars=("LIDAR_TOP",),
    radars=(
        Radar("RADAR_BACK_RIGHT", -177.0),
        Radar("RADAR_BACK_LEFT", 177.0),
        Radar("RADAR_FRONT", 0.0),
        Radar("RADAR_FRONT_LEFT", 90.0),
        Radar("RADAR_FRONT_RIGHT", -90.0),
    ),
    radar_clock="RADAR_FRONT",
    radar_fields=tuple(Field(*text.split()) for text in _NUSCENES_RADAR_FIELDS),
    conditions=(Condition("light", ("day", "night")), Condition("weather", ("dry", "rain"))),
)
