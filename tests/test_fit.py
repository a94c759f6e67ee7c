"""The loop: plain Adam, an average, a rate, and a run that no interruption harms."""

import contextlib
import functools
import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import double
from safetensors.torch import load_file, save_file
from torch.nn.utils import parameters_to_vector

import flowtext
from flowtext import fit as module
from flowtext.fit import fading, fit, precision, read, save
from flowtext.guide import drop_labels
from flowtext.nets import MLP, DiT, UNet
from flowtext.objectives import FlowMatching, within
from flowtext.paths import minibatch_ot
from flowtext.worlds import Gaussian

WORLD = Gaussian(double(1, -1), double([0.5, 0.2], [0.2, 1]))
STEPS = 7


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def weights(net):
    return parameters_to_vector(net.parameters()).detach().clone()


def small(seed=0):
    torch.manual_seed(seed)
    return MLP(2, width=8)


def draw(generator):
    return WORLD.sample(16, generator).float()


def images(generator):
    x1 = torch.randn(6, 1, 4, 4, generator=generator)
    return x1, torch.randint(0, 3, (6,), generator=generator)


def small_unet():
    torch.manual_seed(0)
    return UNet(1, (8, 8), labels=3)


RUNS = {
    "mlp": (small, FlowMatching(times=within(0.1, 1.0)), draw),
    "mlp and minibatch_ot": (small, FlowMatching(pair=minibatch_ot(8)), draw),
    "unet with labels": (small_unet, drop_labels(FlowMatching(), 0.3), images),
}
every_run = pytest.mark.parametrize("run", RUNS)


def trained(run="mlp", steps=STEPS, seed=0, net=None, **rest):
    """The last step of a run, and the generator at its end."""
    make, objective, batches = RUNS[run]
    rest, generator = {"lr": fading(1e-2)} | rest, seeded(seed)
    net = net or make()
    *_, step = fit(net, objective, batches, steps=steps, generator=generator, **rest)
    return step, generator


@functools.cache
def unbroken(run="mlp"):
    """A run without interruption: the weights after every step, and its end."""
    make, objective, batches = RUNS[run]
    rest, generator = {"steps": STEPS, "lr": fading(1e-2)}, seeded()
    steps = fit(make(), objective, batches, generator=generator, **rest)
    track = [(weights(step.net), weights(step.ema)) for step in steps]
    return [net for net, _ in track], state(*track[-1], generator)


def state(net, ema, generator):
    return torch.cat([net, ema, generator.get_state()])


def end(step, generator):
    """All that a run leaves, as one row of numbers."""
    return state(weights(step.net), weights(step.ema), generator)


# A step


@pytest.mark.parametrize("clip", [math.inf, 0.5])
@pytest.mark.parametrize("lr", [3e-3, fading(1e-2), lambda progress: 1e-2 * progress])
def test_every_step_is_one_of_adam_on_the_mean_loss(clip, lr):
    net, generator, objective = small(), seeded(), FlowMatching()
    adam = torch.optim.Adam(net.parameters())
    run = fit(
        small(), objective, draw, steps=STEPS, lr=lr, clip=clip, generator=seeded()
    )
    for number in range(1, STEPS + 1):
        for group in adam.param_groups:
            group["lr"] = lr((number - 1) / STEPS) if callable(lr) else lr
        adam.zero_grad()
        loss = objective(net, draw(generator), generator=generator).mean()
        loss.backward()
        size = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        assert size > 0.5
        adam.step()
        step = next(run)
        assert step.number == number
        assert torch.equal(step.loss, loss.detach())
        assert not step.loss.requires_grad
        assert torch.equal(weights(step.net), weights(net))
    with pytest.raises(StopIteration):
        next(run)


def test_the_net_that_is_trained_is_the_one_that_was_given():
    net = small()
    before = weights(net)
    (step,) = fit(net, FlowMatching(), draw, steps=1, lr=1e-2, generator=seeded())
    assert step.net is net
    assert step.ema is not net
    change = (weights(net) - before).abs()
    assert abs(float(change.max()) - 1e-2) < 1e-5, "Adam's first step is the rate"


def test_the_gradient_is_cut_to_its_greatest_size_and_keeps_its_direction():
    def gradient(clip):
        net = small()
        (_,) = fit(net, FlowMatching(), draw, steps=1, clip=clip, generator=seeded())
        return torch.cat([part.grad.flatten() for part in net.parameters()])

    whole, cut = gradient(math.inf), gradient(0.25)
    assert whole.norm() > 0.5
    assert abs(cut.norm() - 0.25) < 1e-5
    assert torch.allclose(cut / cut.norm(), whole / whole.norm(), atol=1e-6)
    assert torch.equal(gradient(1e3), whole), "a small gradient is left alone"


def test_the_gradient_is_cut_at_one_unless_told_otherwise():
    net = small()
    loud = FlowMatching(weight=lambda t: 100 * torch.ones_like(t))
    (_,) = fit(net, loud, draw, steps=1, generator=seeded())
    size = torch.cat([part.grad.flatten() for part in net.parameters()]).norm()
    assert abs(size - 1) < 1e-5


@pytest.mark.parametrize("ema", [0.999, 0.5, 0.0])
def test_the_average_is_a_recursion_with_a_short_memory_at_first(ema):
    """The first update copies; after n updates the memory is (1 + n) / (10 + n)."""
    run = fit(
        small(), FlowMatching(), draw, steps=20, lr=1e-2, ema=ema, generator=seeded()
    )
    mean = weights(next(run).net)
    for n, step in enumerate(run, 1):
        decay = min(ema, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * weights(step.net)
        assert (weights(step.ema) - mean).abs().max() < 1e-6
    gap = (mean - weights(step.net)).abs().max()
    assert (gap > 1e-3) == (ema > 0)


def test_after_one_step_the_average_is_the_net():
    step, _ = trained(steps=1, lr=1e-2)
    assert torch.equal(weights(step.ema), weights(step.net))


def test_the_average_is_a_net_to_sample_with():
    step, _ = trained()
    x, t = torch.randn(3, 2), torch.rand(3)
    assert type(step.ema) is MLP
    assert (step.ema(x, t, t) - step.net(x, t, t)).abs().max() > 1e-4


def test_the_loss_falls():
    """Data in one place far off: little is left open, and soon found."""
    run = fit(
        small(),
        FlowMatching(),
        lambda g: 4 + 0.1 * draw(g),
        steps=60,
        lr=3e-2,
        generator=seeded(),
    )
    losses = [float(step.loss) for step in run]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


# What a step hears


def test_an_objective_hears_the_progress_and_the_average_so_far():
    heard, averages = [], []

    def objective(net, x1, y, *, at, generator):
        heard.append((at.progress, y, weights(at.ema)))
        return FlowMatching()(net, x1, y, at=at, generator=generator)

    net = small()
    averages.append(weights(net))
    for step in fit(net, objective, draw, steps=4, lr=1e-2, generator=seeded()):
        averages.append(weights(step.ema))
    assert [progress for progress, *_ in heard] == [0, 0.25, 0.5, 0.75]
    for (_, y, mean), expected in zip(heard, averages[:4], strict=True):
        assert y is None
        assert torch.equal(mean, expected)


def test_batches_may_have_labels_or_not():
    heard, x1, labels = [], torch.randn(4, 2), torch.arange(4)

    def objective(net, x1, y, *, at, generator):
        heard.append((x1, y))
        return net(x1, x1[:, 0], x1[:, 0]).square().mean(1)

    for batch in (x1, (x1, None), (x1, labels)):
        assert len([*fit(small(), objective, lambda _, b=batch: b, steps=1)]) == 1
    assert all(torch.equal(data, x1) for data, _ in heard)
    assert [y is None for _, y in heard] == [True, True, False]
    assert torch.equal(heard[2][1], labels)


def test_batches_are_drawn_from_the_generator():
    generator, heard = seeded(), []

    def batches(given):
        heard.append(given)
        return draw(given)

    for _ in fit(small(), FlowMatching(), batches, steps=3, generator=generator):
        pass
    assert all(given is generator for given in heard)
    assert len(heard) == 3


@every_run
def test_one_seed_gives_one_net_and_the_global_draws_are_left_alone(run):
    net = RUNS[run][0]()
    before = torch.get_rng_state()
    first = end(*trained(run, net=net))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, unbroken(run)[1])
    assert not torch.equal(first, end(*trained(run, seed=1)))


def test_without_a_generator_the_global_seed_decides():
    ends = []
    for _ in range(2):
        net = small()
        torch.manual_seed(5)
        for _ in fit(net, FlowMatching(), draw, steps=2):
            pass
        ends.append(weights(net))
    assert torch.equal(*ends)


# Rates


@pytest.mark.parametrize("warm", [0.02, 0.25])
def test_a_fading_rate_rises_to_its_peak_and_ends_at_zero(warm):
    rate = fading(3e-3, warm)
    assert rate(0.0) == 0
    assert rate(1.0) == 0
    assert math.isclose(rate(warm), 3e-3)
    assert math.isclose(rate(warm / 2), 1.5e-3)
    assert math.isclose(rate((1 + warm) / 2), 0.75 * 3e-3)
    values = [rate(k / 1000) for k in range(1001)]
    peak = values.index(max(values))
    assert peak == round(1000 * warm)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_a_fading_rate_is_two_thirds_of_its_peak_on_average():
    """A triangle of width warm, then a parabola: warm / 2 + 2 (1 - warm) / 3."""
    for warm in (0.02, 0.4):
        rate = fading(1.0, warm)
        mean = np.mean([rate((k + 0.5) / 10_000) for k in range(10_000)])
        assert abs(mean - warm / 2 - 2 * (1 - warm) / 3) < 1e-6


def test_without_a_rise_the_rate_starts_at_its_peak():
    assert fading(0.5, warm=0.0)(0.0) == 0.5


# Interruptions


class Stop(Exception):
    pass


def by_break(run, objective, batches, stop):
    for step in run(objective, batches):
        if step.number == stop:
            break


def by_exception(run, objective, batches, stop):
    with contextlib.suppress(Stop):
        for step in run(objective, batches):
            if step.number == stop:
                raise Stop


def by_interrupt(run, objective, batches, stop):
    with contextlib.suppress(KeyboardInterrupt):
        for step in run(objective, batches):
            if step.number == stop:
                raise KeyboardInterrupt


def later(call, stop, error):
    """The same call, which after its draws fails once: in the step after `stop`."""
    calls = []

    def failing(*inputs, **rest):
        result = call(*inputs, **rest)
        calls.append(None)
        if len(calls) == stop + 1:
            raise error
        return result

    return failing


def in_batches(run, objective, batches, stop):
    with contextlib.suppress(KeyboardInterrupt):
        for _ in run(objective, later(batches, stop, KeyboardInterrupt)):
            pass


def in_objective(run, objective, batches, stop):
    with contextlib.suppress(Stop):
        for _ in run(later(objective, stop, Stop), batches):
            pass


def by_nan(run, objective, batches, stop):
    calls = []

    def broken(net, *inputs, **rest):
        calls.append(None)
        return objective(net, *inputs, **rest) * (
            math.nan if len(calls) == stop + 1 else 1
        )

    with contextlib.suppress(ValueError):
        for _ in run(broken, batches):
            pass


WAYS = [by_break, by_exception, by_interrupt, in_batches, in_objective, by_nan]


@every_run
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, run, way):
    make, objective, batches = RUNS[run]
    keep = tmp_path / "run.pt"
    rest = {"steps": STEPS, "lr": fading(1e-2), "keep": keep, "every": 2}

    def start(objective, batches):
        return fit(make(), objective, batches, generator=seeded(), **rest)

    track, whole = unbroken(run)
    for stop in (1, 4) if run.startswith("mlp") else (4,):
        keep.unlink(missing_ok=True)
        way(start, objective, batches, stop)
        held = torch.load(keep, weights_only=True)
        assert held["done"] == stop
        assert torch.equal(weights(loaded(make(), held["net"])), track[stop - 1])
        # On a fresh net, as after a restart, with a generator that stands elsewhere.
        generator = seeded(99)
        steps = [*fit(make(), objective, batches, generator=generator, **rest)]
        assert [step.number for step in steps] == [*range(stop + 1, STEPS + 1)]
        assert torch.equal(end(steps[-1], generator), whole)
        assert os.listdir(tmp_path) == ["run.pt"]


def loaded(net, state):
    net.load_state_dict(state)
    return net


def test_a_step_that_fails_takes_back_its_draws():
    generator = seeded()
    objective = later(FlowMatching(), 2, Stop)
    run = fit(small(), objective, draw, steps=5, lr=1e-2, generator=generator)
    next(run)
    next(run)
    before = generator.get_state()
    with pytest.raises(Stop):
        next(run)
    assert torch.equal(generator.get_state(), before)


def test_a_run_may_be_stopped_many_times(tmp_path):
    rest = {"steps": STEPS, "lr": fading(1e-2), "keep": tmp_path / "run.pt"}
    for number in range(1, STEPS + 1):
        generator = seeded()
        run = fit(small(), *RUNS["mlp"][1:], generator=generator, **rest)
        step = next(run)
        run.close()
        assert step.number == number
    assert torch.equal(end(step, generator), unbroken()[1])


def test_what_the_reader_draws_between_steps_is_part_of_the_run(tmp_path):
    keep, ends = tmp_path / "run.pt", []
    for stops in ([], [3]):
        for stop in (*stops, STEPS):
            generator = seeded()
            for step in fit(
                small(), *RUNS["mlp"][1:], steps=STEPS, generator=generator, keep=keep
            ):
                torch.randn(5, generator=generator)
                if step.number == stop:
                    break
        ends.append(weights(step.net))
        keep.unlink()
    assert torch.equal(*ends)


def test_the_state_is_kept_every_so_many_steps_and_at_the_end(tmp_path):
    keep, held = tmp_path / "run.pt", []
    for step in fit(
        small(), *RUNS["mlp"][1:], steps=5, generator=seeded(), keep=keep, every=2
    ):
        done = torch.load(keep)["done"] if keep.exists() else 0
        held.append((step.number, done))
    assert held == [(1, 0), (2, 2), (3, 2), (4, 4), (5, 4)]
    assert torch.load(keep)["done"] == 5


def test_a_finished_run_yields_nothing_and_fills_the_net(tmp_path):
    keep = tmp_path / "run.pt"
    step, _ = trained(keep=keep)
    generator, net = seeded(5), small(seed=9)
    again = [
        *fit(net, *RUNS["mlp"][1:], steps=STEPS, generator=generator, keep=str(keep))
    ]
    assert again == []
    assert torch.equal(weights(net), weights(step.net))
    assert torch.load(keep)["done"] == STEPS


def test_a_finished_run_can_be_made_longer(tmp_path):
    keep = tmp_path / "run.pt"
    trained(steps=3, lr=1e-2, keep=keep)
    longer = trained(steps=6, lr=1e-2, keep=keep)
    assert torch.equal(end(*longer), end(*trained(steps=6, lr=1e-2)))


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(every=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["torch.optim.Adam.step", "AveragedModel"])
def test_an_interrupt_while_the_weights_move_leaves_the_older_state(
    tmp_path, monkeypatch, place
):
    """Half a step is no state to go on from: the file of step 2 stays."""
    keep = tmp_path / "run.pt"
    owner, name = {
        "torch.optim.Adam.step": (torch.optim.Adam, "step"),
        "AveragedModel": (module.AveragedModel, "update_parameters"),
    }[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, later(getattr(owner, name), 3, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(keep=keep, every=2)
    assert torch.load(keep)["done"] == 2
    assert torch.equal(end(*trained(keep=keep)), unbroken()[1])


def test_an_interrupt_in_the_first_step_leaves_no_file(tmp_path, monkeypatch):
    moved = later(module.AveragedModel.update_parameters, 0, KeyboardInterrupt)
    monkeypatch.setattr(module.AveragedModel, "update_parameters", moved)
    with pytest.raises(KeyboardInterrupt):
        trained(keep=tmp_path / "run.pt")
    assert os.listdir(tmp_path) == []


# Numbers that are none


def nan_loss(net, x1, y):
    return net(x1, x1[:, 0], x1[:, 0]).mean(1) * math.nan


def infinite_loss(net, x1, y):
    return net(x1, x1[:, 0], x1[:, 0]).mean(1) + math.inf


def nan_gradient(net, x1, y):
    """The root of 0 is 0, and its slope is no number."""
    return (0 * net(x1, x1[:, 0], x1[:, 0]).mean(1)).sqrt()


def one_bad_sample(net, x1, y):
    bad = torch.zeros(len(x1))
    bad[3] = math.nan
    return net(x1, x1[:, 0], x1[:, 0]).mean(1) + bad


@pytest.mark.parametrize(
    "bad",
    [nan_loss, infinite_loss, nan_gradient, one_bad_sample],
    ids=lambda f: f.__name__,
)
def test_a_loss_or_gradient_that_is_no_number_stops_before_the_weights_move(
    tmp_path, bad
):
    keep, net, calls = tmp_path / "run.pt", small(), []

    def objective(net, x1, y, *, at, generator):
        calls.append(None)
        if len(calls) == 4:
            return bad(net, x1, y)
        return FlowMatching()(net, x1, y, generator=generator)

    track = []
    run = fit(net, objective, draw, steps=9, lr=1e-2, generator=seeded(), keep=keep)
    message = r"got a loss of .* at step 4, the weights are those of the step before"
    with pytest.raises(ValueError, match=message):
        track.extend((step, weights(step.net), weights(step.ema)) for step in run)
    step, last, mean = track[-1]
    assert step.number == 3
    assert torch.equal(weights(net), last)
    assert torch.equal(weights(step.ema), mean)
    held = torch.load(keep, weights_only=True)
    assert held["done"] == 3
    assert torch.equal(weights(loaded(small(), held["net"])), last)


# Files to go on from


def garbage(path):
    path.write_bytes(b"not a run")


def empty(path):
    path.write_bytes(b"")


def half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def no_adam(path):
    state = torch.load(path)
    del state["adam"]
    torch.save(state, path)


def no_generator(path):
    state = torch.load(path)
    del state["generator"]
    torch.save(state, path)


def other_net(path):
    path.unlink()
    trained(steps=2, net=MLP(2, width=9), keep=path)


def other_kind(path):
    path.unlink()
    trained("unet with labels", steps=2, keep=path)


def damaged_net(path):
    state = torch.load(path)
    state["net"].popitem()
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage",
    [garbage, empty, half, no_adam, no_generator, other_net, other_kind, damaged_net],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_or_one_of_another_net_is_refused_and_left(tmp_path, damage):
    keep = tmp_path / "run.pt"
    trained(steps=2, keep=keep)
    damage(keep)
    before, net = keep.read_bytes(), small(seed=7)
    start = weights(net)
    run = fit(net, *RUNS["mlp"][1:], steps=STEPS, generator=seeded(), keep=keep)
    with pytest.raises(ValueError, match="damaged or of another net, expected a run"):
        next(run)
    assert keep.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]
    assert damage is damaged_net or torch.equal(weights(net), start)


def full_disk(*_, **__):
    raise OSError("no space left on device")


def half_written(state, draft):
    draft.write_bytes(b"half")
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [(torch, "save", half_written), (os, "replace", full_disk)],
    ids=["half written", "not renamed"],
)
def test_a_full_disk_leaves_the_older_state(tmp_path, monkeypatch, owner, name, fault):
    keep = tmp_path / "run.pt"
    trained(steps=2, keep=keep)
    before = keep.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        with pytest.raises(OSError, match="no space left"):
            trained(keep=keep)
    assert keep.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]


# Weights to pass on


@pytest.mark.parametrize(
    "make", [small, small_unet, lambda: DiT(1, 4, width=8, heads=2)]
)
def test_weights_and_facts_come_back(tmp_path, make):
    net, other, path = make(), make(), tmp_path / "net.safetensors"
    for part in other.parameters():
        part.data.fill_(7)
    facts = {"seed": 3, "loss": 0.25, "data": {"name": "digits", "classes": [0, 1]}}
    save(path, net, facts)
    back = read(path, other)
    assert torch.equal(weights(other), weights(net))
    assert {key: back[key] for key in facts} == facts
    assert back["net"] == type(net).__name__
    assert back["version"] == flowtext.__version__
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_facts_do_not_pass_a_net_off_as_another(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, small(), {"net": "UNet", "version": "9"})
    assert read(path, small()) == {"net": "MLP", "version": flowtext.__version__}


def test_half_precision_halves_the_file_and_is_read_in_the_nets_own(tmp_path):
    net, whole, short = MLP(2), tmp_path / "32.safetensors", tmp_path / "16.safetensors"
    save(whole, net, {})
    save(str(short), net, {}, torch.float16)
    sizes = whole.stat().st_size, short.stat().st_size
    assert 1.8 < sizes[0] / sizes[1] < 2.1
    assert all(part.dtype == torch.float16 for part in load_file(short).values())
    for other in (MLP(2), MLP(2).double()):
        kind = next(other.parameters()).dtype
        read(short, other)
        assert all(part.dtype == kind for part in other.parameters())
        assert torch.equal(weights(other), weights(net).half().to(kind))
    assert next(net.parameters()).dtype == torch.float32, "the net itself is untouched"


def rewrite(path, tensors=None, facts=None):
    """The file again, with other weights or other facts."""
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata=facts)


def facts(**words):
    return {"facts": json.dumps({"net": "MLP"} | words)}


def nan_weight(path):
    tensors = load_file(path)
    tensors["first.bias"][2] = math.nan
    rewrite(path, tensors, facts())


def infinite_weight(path):
    tensors = load_file(path)
    tensors["rest.1.weight"][0, 0] = math.inf
    rewrite(path, tensors, facts())


def missing_weight(path):
    tensors = load_file(path)
    del tensors["first.bias"]
    rewrite(path, tensors, facts())


BAD_FILES = {
    "garbage": (garbage, "cannot be read"),
    "empty": (empty, "cannot be read"),
    "half": (half, "cannot be read"),
    "no file": (lambda path: path.unlink(), "cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "no facts": (lambda path: rewrite(path), "cannot be read: 'facts'"),
    "facts of no net": (lambda path: rewrite(path, None, {"facts": "{}"}), "'net'"),
    "facts are a list": (lambda path: rewrite(path, None, {"facts": "[1]"}), "read"),
    "no JSON": (lambda path: rewrite(path, None, {"facts": "seed 3"}), "read"),
    "another kind": (
        lambda path: rewrite(path, None, facts(net="UNet")),
        "got weights of a UNet that fit another net",
    ),
    "another width": (
        lambda path: save(path, MLP(2, width=9), {}),
        "got weights of a MLP that fit another net",
    ),
    "another depth": (lambda path: save(path, MLP(2, 8, 4), {}), "another net"),
    "a weight is missing": (missing_weight, "another net"),
    "NaN": (nan_weight, "got NaN or infinity in"),
    "infinity": (infinite_weight, "got NaN or infinity in"),
}


@pytest.mark.parametrize(("damage", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_weights_that_are_damaged_or_of_another_net_are_refused(
    tmp_path, damage, message
):
    path, net = tmp_path / "net.safetensors", small()
    save(path, net, {})
    damage(path)
    before = weights(net)
    with pytest.raises(ValueError, match=message):
        read(path, net)
    assert torch.equal(weights(net), before)


def test_weights_too_large_for_half_precision_are_found_on_reading(tmp_path):
    net, path = small(), tmp_path / "net.safetensors"
    net.first.bias.data.fill_(1e6)
    save(path, net, {}, torch.float16)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        read(path, net)


def test_a_failed_write_leaves_the_older_weights(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save(path, small(), {"seed": 1})
    before = path.read_bytes()

    def fails(tensors, draft, metadata):
        draft.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        save(path, small(seed=2), {"seed": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        save(tmp_path / "net.safetensors", small(), {"loss": torch.tensor(1.0)})
    assert os.listdir(tmp_path) == []


# Precision


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("native", [True, False])
def test_short_numbers_are_for_a_gpu_that_computes_with_them(monkeypatch, native):
    """A T4 only imitates them, which is slower than float32."""
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    context = precision(torch.device("cuda"))
    assert asked == [False]
    if native:
        assert isinstance(context, torch.autocast)
        assert context.fast_dtype == torch.bfloat16
        assert context.device == "cuda"
    else:
        assert isinstance(context, contextlib.nullcontext)


def test_on_a_cpu_the_precision_is_that_of_the_weights(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert isinstance(precision(torch.device("cpu")), contextlib.nullcontext)


def test_the_objective_runs_in_that_precision(monkeypatch):
    heard = []

    def objective(net, x1, y, *, at, generator):
        heard.append(net.first(torch.randn(4, 12)).dtype)
        return net(x1, x1[:, 0], x1[:, 0]).float().square().mean(1)

    net = MLP(2, width=8)
    monkeypatch.setattr(
        module, "precision", lambda device: torch.autocast("cpu", torch.bfloat16)
    )
    for step in fit(net, objective, draw, steps=1, generator=seeded()):
        assert step.loss.dtype == torch.float32
    assert heard == [torch.bfloat16]
    assert all(part.dtype == torch.float32 for part in net.parameters())


def test_a_batch_may_be_a_list():
    """PyTorch's own loaders give lists of data and labels."""

    def weights(kind):
        torch.manual_seed(0)
        x1, y = torch.randn(8, 2), torch.arange(8) % 3
        net, objective = MLP(2, width=8, labels=3), FlowMatching()
        generator = torch.Generator().manual_seed(1)
        run = fit(net, objective, lambda g: kind((x1, y)), steps=2, generator=generator)
        return [*run][-1].net.state_dict()

    a, b = weights(tuple), weights(list)
    assert all(torch.equal(a[name], b[name]) for name in a)
