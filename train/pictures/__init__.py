"""Drawing for TensorBoard, show, demo and report: arrays in, (H, W, 3) uint8 RGB pictures out, forward up everywhere."""
