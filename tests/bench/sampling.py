"""What sampling costs beyond the network, beside torchdiffeq on the same work.

python -m tests.bench.sampling
"""

import statistics
import time
from itertools import pairwise

import torch
from torchdiffeq import odeint

from flowtext.solve import euler, grid, heun, integrate, rk4

POINTS, STEPS, ROUNDS = 10_000, 20, 9
SOLVERS = (("euler", euler, 1), ("heun2", heun, 2), ("rk4", rk4, 4))


class Velocity(torch.nn.Module):
    """A 4 x 256 MLP on 2-D states and their times."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 256, 256, 256, 256)
        layers = []
        for narrow, wide in pairwise(sizes):
            layers += [torch.nn.Linear(narrow, wide), torch.nn.SiLU()]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(256, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, x = Velocity(), torch.randn(POINTS, 2)
    t, times = torch.full((POINTS,), 0.5), grid(STEPS)

    def bare(calls):
        for _ in range(calls):
            net(x, t)

    def theirs(name):
        # "rk4" of torchdiffeq is the 3/8 rule: other weights, as many calls.
        odeint(lambda t, x: net(x, t.expand(len(x)).float()), x, times, method=name)

    print(f"{POINTS} points, {STEPS} steps, median of {ROUNDS} rounds in turn")
    for name, step, each in SOLVERS:
        works = (
            lambda each=each: bare(STEPS * each),
            lambda step=step: integrate(net, x, times, step),
            lambda name=name: theirs(name),
        )
        for work in works:
            work()
        rounds = [[seconds(work) for work in works] for _ in range(ROUNDS)]
        columns = zip(*rounds, strict=True)
        network, *others = (statistics.median(column) for column in columns)
        ours, torchdiffeq = (other / network for other in others)
        print(
            f"{name:6s} network {network:6.3f} s   flowtext x {ours:.3f}   "
            f"torchdiffeq x {torchdiffeq:.3f}"
        )


if __name__ == "__main__":
    main()
