#!/usr/bin/env bash
# NOT RUN: no machine with TensorRT was at hand when this was written. See export.md for what was checked instead.
#
#   train/tensorrt.sh RUN/export/onnx-fp32 [MOST_SAMPLES]
#
# Builds model.plan beside an export's model.onnx with trtexec of TensorRT 10, for batches of 1 to MOST_SAMPLES (3). The file's own
# types are kept (--stronglyTyped): an fp16 export computes in fp16 what it says, and geometry in float32; an int8 export's
# pairs of QuantizeLinear and DequantizeLinear are symmetric, per channel for weights, as TensorRT wants them. TF32 is off, since
# it moves where voxels look in images. MOST_POINTS: of a cloud, where lidar or radar come as points.
set -euo pipefail
folder=$1 most=${2:-3} points=${MOST_POINTS:-300000}

shapes() {  # BATCH POINTS -> name:1x6x3x…,…
  python3 - "$folder/card.json" "$1" "$2" <<'PY'
import json, sys

card, sizes = json.load(open(sys.argv[1])), {"B": sys.argv[2], "P": sys.argv[3]}
print(",".join(f"{name}:" + "x".join(sizes.get(n, str(n)) for n in one["shape"]) for name, one in card["inputs"].items()))
PY
}

trtexec --onnx="$folder/model.onnx" --saveEngine="$folder/model.plan" --stronglyTyped --noTF32 \
  --minShapes="$(shapes 1 1)" --optShapes="$(shapes 1 35000)" --maxShapes="$(shapes "$most" "$points")"
