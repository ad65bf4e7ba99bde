"""A command's work in a process per device."""

from common.addresses import is_remote
from common.errors import InputError
from train.command import fail_in_one_line
from train.processes import distributed


def launch(target, options):
    """Run target(options, world) in a process per device, as the options say; see distributed.launch.

    Raises ValueError: options that do not fit together, or this machine.
    """
    size = distributed.count_processes(options.device, options.device_ids)
    options.validate(size)
    device = distributed.pick_device(options.device, options.device_ids)
    if options.sync_bn and device.type != "cuda":
        raise InputError("--sync_bn needs CUDA devices; leave it out")
    # A rank that waits for a store keeps the others waiting, which are not lost.
    from_afar = any(map(is_remote, (*options.shards, *options.val_shards, options.data_dir)))
    timeout_min = options.timeout_min + options.retry_minutes * from_afar
    devices = distributed.Devices(options.device, options.device_ids, size, timeout_min)
    return distributed.launch(target, (options,), devices, fail_in_one_line)
