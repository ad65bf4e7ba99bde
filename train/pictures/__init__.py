"""Drawing for TensorBoard, show, demo and report alike. Arrays in, (H, W, 3) uint8 RGB pictures out; forward is up everywhere."""
