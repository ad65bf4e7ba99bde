"""The data sets that shards are made of: one file each, all behind one interface, chosen by `preprocess.run --dataset NAME`.

A file has a class `Dataset`, which reads what stands for tables, once, and plans:

    Dataset(dataroot, version, options, on_error, say)
        scenes              list of {"name", "token", …}; shards take them in the order of their tokens
        rig                 the common.rig.Rig of what the options choose
        annotated           False where there are no boxes
        min_distance_m      half the side of the square around a sensor whose points are taken for the car's own
        splits()            split -> scene names, the official ones; SourceError where there are none
        tokens(scene)       of a scene's keyframes in time order; SourceError where it cannot be told
        tokens_at_least(scene)  what to list of such a scene
        numbers(scene, tokens)  of each keyframe the number by which --split-file counts frames
        keyframe(scene, tokens, keys, i)    the KeyframeRecipe of one; keys: of the scene's keyframes

and two functions that read sensor files in the processes that write shards, where no tables are:

    lidar_points(data, path, files, facts, found)
                            points (fields, n), as the rig has fields, of each of the PointFiles of this file, without the
                            car's own returns, in the frame that its ego_T_sensor starts from; found: Counter of what was met
    radar_points(data, path, file, facts)      the same of a radar's file

A recipe says everything else. What is wrong raises SourceError, which names the file and the remedy.
"""

import importlib

from preprocess.errors import SourceError

DATASETS = {
    "nuscenes": "preprocess.datasets.nuscenes",
    "pandaset": "preprocess.datasets.pandaset",
    "argoverse2": "preprocess.datasets.argoverse2",
    "lyft": "preprocess.datasets.lyft",
    "truckscenes": "preprocess.datasets.truckscenes",
}
DEFAULT = "nuscenes"
IN_ITS_LAYOUT = (DEFAULT, "lyft", "truckscenes")  # whose tables are nuScenes', and options of tables theirs too
OWN = "own"  # what preprocess.writer is given: no folder, and so no Dataset
_READERS = {**DATASETS, OWN: "preprocess.datasets.own"}


def dataset(name):
    """The module of a data set. Raises SourceError for one that is not known."""
    if name == OWN:
        raise SourceError("shards that preprocess.writer made have no folder that they could be held against")
    if name not in DATASETS:
        raise SourceError(f"data set {name!r} is none of {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name])


def dataset_of(facts):
    """The module of the data set that shards with this metadata were made of; nuScenes, where nothing is said."""
    name = facts.get("adapter", DEFAULT)
    if name not in _READERS:
        raise SourceError(f"shards of data set {name!r:.40}, which this version does not know")
    return importlib.import_module(_READERS[name])
