"""How much memory tensors take, as torch counts it: the same on every machine, unlike what a process holds."""

from torch.profiler import ProfilerActivity, profile


def peak_bytes(action):
    """Most bytes of CPU tensors that were alive at once while action() ran, those that were there before left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
