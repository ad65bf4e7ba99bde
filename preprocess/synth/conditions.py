"""Where, when and in which weather each generated scene is driven: cycled by scene number, so that few scenes hold all."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

# nuScenes' own four, so that its map interface knows them; the hours that their clocks are ahead of UTC.
LOCATIONS = {"singapore-onenorth": 8, "boston-seaport": -5, "singapore-hollandvillage": 8, "singapore-queenstown": 8}
_FIRST_DAY = datetime(2026, 1, 5)
# (light, rain, local hour), the next scene's beside it: any five scenes that follow each other hold each of them.
_CYCLE = (("day", False, 10), ("night", False, 20), ("day", True, 14), ("dusk", False, 18), ("day", False, 12))
_VEHICLES = 3


@dataclass(frozen=True)
class Conditions:
    """location: as nuScenes names it. light: day, dusk or night. begin: local time of the scene's first keyframe."""

    location: str
    light: str
    rain: bool
    begin: datetime
    vehicle: str

    @classmethod
    def of(cls, number):
        """Those of a scene; every second night is a rainy one."""
        light, rain, hour = _CYCLE[number % len(_CYCLE)]
        rain = rain or (light == "night" and number // len(_CYCLE) % 2 == 1)
        location = tuple(LOCATIONS)[number % len(LOCATIONS)]
        zone = timezone(timedelta(hours=LOCATIONS[location]))
        begin = (_FIRST_DAY + timedelta(days=number, hours=hour, minutes=7 * number % 60)).replace(tzinfo=zone)
        return cls(location, light, rain, begin, f"synth-{number % _VEHICLES}")

    @property
    def drive_left(self):
        """Traffic keeps left in Singapore, right in Boston."""
        return self.location.startswith("singapore")

    @property
    def timestamp_us(self):
        """Microseconds since 1970, UTC, of the first keyframe."""
        return round(self.begin.timestamp()) * 1_000_000

    @property
    def logfile(self):
        """A log's name in nuScenes' manner."""
        return f"{self.vehicle}-{self.begin:%Y-%m-%d-%H-%M-%S%z}"

    def describe(self, sights):
        """A scene's description in nuScenes' manner: "Night" and "Rain" first where they are true, then what one sees."""
        words = [] if self.light == "day" else [self.light.capitalize()]
        text = ", ".join([*words, *["Rain"] * self.rain, *sights])
        return text[:1].upper() + text[1:]
