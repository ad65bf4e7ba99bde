"""Layers of nuScenes' map expansion that are kept, in the order by which layer `map` of the shards numbers them."""

POLYGON_LAYERS = (
    "drivable_area",
    "road_segment",
    "lane",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
)
LINE_LAYERS = ("road_divider", "lane_divider")
MAP_LAYERS = POLYGON_LAYERS + LINE_LAYERS
