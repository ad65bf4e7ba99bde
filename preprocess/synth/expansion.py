"""The streets of a location's scenes -> a map as nuScenes' map expansion has it (version 1.3), which nuscenes-devkit loads."""

import json

import numpy as np

from preprocess.synth.roads import AREAS, LINES

VERSION = "1.3"
STEP_M = 5.0  # between the nodes of a line, at most
# What the form has besides the layers that are drawn here; the devkit wants each, if only empty.
_EMPTY = ("road_block", "traffic_light", "lane_connector")
_EMPTY_DICTS = ("arcline_path_3", "connectivity")


class Expansion:
    """Collects the elements of scenes that lie apart; `tables` is the map. name: a function from words to a token."""

    def __init__(self, name):
        self._name, self._counts = name, {}
        self.tables = {layer: [] for layer in ("node", "polygon", "line", *AREAS, *LINES, *_EMPTY)}
        self.tables |= {layer: {} for layer in _EMPTY_DICTS}
        self._edge = [0.0, 0.0]

    def add(self, roads, scene):
        """Enter the streets of one scene."""
        drivable = [self._polygon(element.points, scene) for element in roads.layer("drivable_area")]
        self._enter("drivable_area", scene, polygon_tokens=drivable)
        segments = [self._area(element, scene) for element in roads.layer("road_segment")]
        for layer in AREAS[2:]:
            for element in roads.layer(layer):
                self._area(element, scene, road_segment_token=segments[0] if segments else "")
        for layer in LINES:
            for element in roads.layer(layer):
                line = self._token("line", scene)
                self.tables["line"].append({"token": line, "node_tokens": self._nodes(_dense(element.points), scene)})
                self._enter(layer, scene, line_token=line, **_FIELDS[layer])

    def dump(self):
        """The JSON text of the map."""
        return json.dumps({"version": VERSION, **self.tables, "canvas_edge": self._edge})

    def _area(self, element, scene, **more):
        fields = {**_FIELDS[element.layer], "polygon_token": self._polygon(element.points, scene)}
        fields |= {name: value for name, value in more.items() if name in fields}
        if element.layer == "road_segment":
            fields["is_intersection"] = element.kind == "intersection"
        return self._enter(element.layer, scene, **fields)

    def _enter(self, layer, scene, **fields):
        own = self._token(layer, scene)
        self.tables[layer].append(
            {"token": own, **{k: list(v) if isinstance(v, list) else v for k, v in fields.items()}}
        )
        return own

    def _polygon(self, points, scene):
        own = self._token("polygon", scene)
        row = {"token": own, "exterior_node_tokens": self._nodes(points, scene), "holes": []}
        self.tables["polygon"].append(row)
        return own

    def _nodes(self, points, scene):
        tokens = [self._token("node", scene) for _ in points]
        rows = zip(tokens, points.tolist(), strict=True)
        self.tables["node"] += [{"token": own, "x": x, "y": y} for own, (x, y) in rows]
        self._edge = [max(edge, most) for edge, most in zip(self._edge, points.max(0).tolist(), strict=True)]
        return tokens

    def _token(self, layer, scene):
        number = self._counts[layer, scene] = self._counts.get((layer, scene), -1) + 1
        return self._name("map", layer, scene, number)


def _dense(points):
    """Points of a line with more between them, at most STEP_M apart, as real maps have them."""
    steps = np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) / STEP_M).astype(int)
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(points, points[1:], steps, strict=False)]
    return np.concatenate([*pieces, points[-1:]])


# The fields that records of each layer have besides token and geometry; what this world does not know is empty.
_FIELDS = {
    "road_segment": {"polygon_token": "", "is_intersection": False, "drivable_area_token": ""},
    "lane": {
        "polygon_token": "",
        "lane_type": "CAR",
        "from_edge_line_token": "",
        "to_edge_line_token": "",
        "left_lane_divider_segments": [],
        "right_lane_divider_segments": [],
    },
    "ped_crossing": {"polygon_token": "", "road_segment_token": ""},
    "walkway": {"polygon_token": ""},
    "stop_line": {
        "polygon_token": "",
        "stop_line_type": "PED_CROSSING",
        "ped_crossing_tokens": [],
        "traffic_light_tokens": [],
        "road_block_token": "",
    },
    "carpark_area": {"polygon_token": "", "orientation": 0.0, "road_block_token": ""},
    "road_divider": {"road_segment_token": ""},
    "lane_divider": {"lane_divider_segments": []},
}
