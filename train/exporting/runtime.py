"""An exported file, run: names and arrays in, names and arrays out, whatever runs it."""

import json
from pathlib import Path

import numpy as np

from common.errors import InputError
from train.processes.ranks import cores

NAMES = "names.json"  # in a .pt2: its inputs and outputs in their order
BACKENDS = ("onnxruntime", "openvino", "torch")


def open_file(path, backend="", threads=None):
    """A function from {input: array} to {output: array} of an exported file.

    Args:
        path: .onnx or .pt2. backend: of BACKENDS; without it onnxruntime for .onnx, torch for .pt2. threads: of the CPU, which
            then leave it to others as soon as they are done; None leaves both to the runtime.
    Raises:
        ValueError: there is no such file, or what would run it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    backend = backend or {".onnx": "onnxruntime", ".pt2": "torch"}.get(path.suffix, "")
    opened = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}.get(backend)
    if opened is None:
        raise InputError(f"{path}: an exported file ends in .onnx or .pt2")
    try:
        return opened(path, threads)
    except ModuleNotFoundError as error:
        extra = "openvino" if backend == "openvino" else "export"
        raise InputError(
            f"{path} needs {error.name}, which is not installed: pip install 'bevshards[{extra}]'"
        ) from None


def _onnxruntime(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime))
    except Exception as error:  # the runtime's own kinds have no common base
        raise InputError(f"{path}: onnxruntime cannot open it ({str(error).splitlines()[0]:.300})") from None
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))


def _providers(onnxruntime):
    known = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in known if name in onnxruntime.get_available_providers()]


def _openvino(path, threads):
    import openvino

    core = openvino.Core()
    # float32 as it is written: the CPU's plugin would take bfloat16 where the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or cores()}
    model = core.compile_model(core.read_model(path), "CPU", settings)
    names = [next(iter(output.names)) for output in model.outputs]
    return lambda arrays: dict(zip(names, (np.array(v) for v in model(arrays).values()), strict=True))


def _torch(path, threads):
    import torch

    said = {NAMES: ""}
    module = torch.export.load(str(path), extra_files=said).module()
    inputs, outputs = json.loads(said[NAMES])

    def run(arrays):
        own = torch.get_num_threads()
        torch.set_num_threads(threads or own)
        try:
            with torch.no_grad():
                found = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs))
        finally:
            torch.set_num_threads(own)
        return dict(zip(outputs, (value.numpy() for value in found), strict=True))

    return run
