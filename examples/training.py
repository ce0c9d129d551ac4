"""The training loop of the example networks."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def train(model: nn.Module, loss_of: Callable[[int], Tensor], seconds: float, rate: float) -> int:
    """Minimize `loss_of(step)` with AdamW for the given time, at a linearly decaying rate. Returns the step count."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    start, step = time.monotonic(), 0
    while (spent := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * max(0.02, 1 - spent / seconds)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step:4}  {spent:5.0f} s  loss {loss.item():.3f}", flush=True)
        step += 1
    return step
