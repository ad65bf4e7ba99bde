"""Gradients averaged over the processes of a run: DistributedDataParallel, and what it takes for granted and does not check."""

import inspect
from contextlib import nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from common.errors import InputError


class Averaged:
    """A step whose gradients are averaged over the processes of its world; in one process the step alone.

    The first update shows what the loss reaches. It computes without DistributedDataParallel and is averaged parameter by
    parameter: so no forward pass is made for the search, which would change buffers and batches. Where it left parameters
    out on some process, the later updates search for such ones. An update in which the parameters that are trained have
    changed is a first one again.

    Args:
        step: module that gives (loss, figures, outputs) of a batch, and has `network` and `world`.
        find_unused: search in any case.
        on_wrapping: called once, before the second update, in several processes.
    """

    def __init__(self, step, find_unused=False, on_wrapping=lambda: None):
        self.step, self.world, self.find_unused, self._on_wrapping = step, step.world, find_unused, on_wrapping
        self.alone = self.world is None or self.world.size == 1
        self._wrapped, self._trained, self._reached, self._searches = None, None, set(), find_unused
        if not self.alone:
            self.world.follow_leader([*step.parameters(), *step.buffers()])

    def begin(self):
        """To be called before the batches of an update."""
        if self.alone:
            return
        trained = {name: p for name, p in self.step.network.named_parameters() if p.requires_grad}
        if self._trained is None or trained.keys() != self._trained.keys():
            self._trained, self._wrapped, self._reached = trained, None, set()
        elif self._wrapped is None:
            left_out = [name for name, p in trained.items() if id(p) not in self._reached]
            self._searches = self.find_unused or any(self.world.gather(bool(left_out)))
            self._on_wrapping()
            self._wrapped = wrapped(self.step, self._searches, alike=True)

    def __call__(self, batch, last=True):
        """(figures, outputs) of a batch; its gradients are added to those of the update's batches before it.

        last: of the update, whose gradients are then averages.

        Raises:
            ValueError: without a search, the loss leaves a parameter out on this process; PeerFailed on the others.
        """
        if self.alone or self._wrapped is None:
            loss, figures, outputs = self.step(batch)
            self._reached |= set() if self.alone else reached(loss)
            loss.backward()
            if last and not self.alone:
                self._average()
            return figures, outputs
        with nullcontext() if last else self._wrapped.no_sync():
            loss, figures, outputs = self._wrapped(batch)
            if last and not self._searches:  # before the others wait for a gradient that does not come
                self.world.together(lambda: self._check(reached(loss)))
            loss.backward()
        return figures, outputs

    def _average(self):
        own = [p.grad is not None for p in self._trained.values()]
        anywhere = map(any, zip(*self.world.gather(own), strict=True))
        for parameter, wanted in zip(self._trained.values(), anywhere, strict=True):
            if wanted:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(self.world.sum(parameter.grad.contiguous() / self.world.size))

    def _check(self, found):
        left_out = [name for name, p in self._trained.items() if id(p) not in found]
        if left_out:
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            raise InputError(
                f"{left_out[0]}{more} got no gradient in this update, as it did in the first: in several processes, a network "
                "that leaves layers out of some updates needs --find_unused"
            )


def wrapped(step, search=False, alike=False):
    """A module in DistributedDataParallel; every process's batch-norm statistics are its own.

    search: for parameters that the loss does not reach. alike: the processes have the same weights already.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    own_buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )  # before torch 2.15
    options = {"gradient_as_bucket_view": True, "find_unused_parameters": search, "init_sync": not alike}
    return DistributedDataParallel(step, **options, **{own_buffers: False})


def reached(loss):
    """Ids of the leaves, parameters among them, that a gradient reaches from a loss."""
    found, seen, front = set(), set(), [loss.grad_fn]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        front += [below for below, _ in node.next_functions]
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
    return found
