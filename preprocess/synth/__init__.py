"""A generated nuScenes world, for machines that have no nuScenes."""
