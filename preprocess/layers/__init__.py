"""Layers that come with the project: what they hold of a keyframe, made from nuScenes' own files or from the shards alone."""
