"""Nets: one signature, derivatives in every input, labels, twins that do not mix."""

import math

import pytest
import torch
from conftest import PATHS, points
from torch import nn
from torch.func import functional_call, jvp, stack_module_state

from flowtext.fit import fit
from flowtext.nets import (
    MLP,
    Classifier,
    DiT,
    Twins,
    UNet,
    _Attention,
    _Block,
    _Layer,
    as_velocity,
    attention,
    begin,
    time_features,
    velocity,
)
from flowtext.objectives import FlowMatching
from flowtext.paths import linear
from flowtext.solve import euler, grid, integrate

SHAPES = {
    "mlp": (lambda labels: MLP(3, width=16, labels=labels), (3,)),
    "mlp on images": (lambda labels: MLP(16, width=16, labels=labels), (1, 4, 4)),
    "unet": (lambda labels: UNet(2, (8, 16), patch=2, labels=labels), (2, 8, 12)),
    "dit": (lambda labels: DiT(2, 8, 2, 16, 2, heads=2, labels=labels), (2, 8, 8)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(net):
    """The net in float64 with no weight left at zero, so that every layer matters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in net.double().parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += noise / math.sqrt(max(parameter[0].numel(), 4))
    return net


def made(name, labels=0, n=3):
    """A net that is awake, and (x, s, t) for it."""
    make, shape = SHAPES[name]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n, *shape, generator=generator).double()
    s, t = torch.rand(2, n, generator=generator).double()
    return awake(make(labels)), x, s, t


every_net = pytest.mark.parametrize("name", SHAPES)


@every_net
def test_an_answer_has_the_shape_of_the_state(name):
    net, x, s, t = made(name, labels=3)
    assert net(x, s, t).shape == x.shape
    assert net(x, s, t, torch.tensor([0, 2, -1])).shape == x.shape
    assert net(x, s, t).isfinite().all()


@every_net
def test_samples_of_a_batch_do_not_see_each_other(name):
    net, x, s, t = made(name, labels=3)
    y = torch.tensor([0, 2, -1])
    alone = [net(*(part[i : i + 1] for part in (x, s, t, y))) for i in range(3)]
    assert (net(x, s, t, y) - torch.cat(alone)).abs().max() < 1e-12


@every_net
@pytest.mark.parametrize("which", ["x", "s", "t"])
def test_the_forward_derivative_is_the_slope_by_differences(name, which):
    net, *inputs = made(name)
    tangents = [
        torch.randn_like(part) if key == which else torch.zeros_like(part)
        for key, part in zip("xst", inputs, strict=True)
    ]
    slope, h = jvp(net, tuple(inputs), tuple(tangents))[1], 1e-5
    above, below = (
        net(*(part + step * way for part, way in zip(inputs, tangents, strict=True)))
        for step in (h, -h)
    )
    assert slope.abs().max() > 1e-2
    assert (slope - (above - below) / (2 * h)).abs().max() < 1e-7 * slope.abs().max()


@every_net
def test_nets_can_be_stacked(name):
    net, x, s, t = made(name, labels=3)
    y = torch.tensor([0, 2, -1])
    other = awake(awake(SHAPES[name][0](3)))
    weights, buffers = stack_module_state([net, other])
    assert not buffers, "a buffer would be shared between seeds"
    both = torch.vmap(
        lambda weights: functional_call(net, weights, (x, s, t, y)), randomness="error"
    )(weights)
    assert (both[0] - net(x, s, t, y)).abs().max() < 1e-12
    assert (both[1] - other(x, s, t, y)).abs().max() < 1e-12
    assert (both[0] - both[1]).abs().max() > 0.1


def test_the_derivative_of_stacked_nets_exists():
    net, x, s, t = made("unet")
    weights, _ = stack_module_state([net, net])

    def slope(weights):
        def call(s):
            return functional_call(net, weights, (x, s, t))

        return jvp(call, (s,), (torch.ones_like(s),))[1]

    alone = jvp(lambda s: net(x, s, t), (s,), (torch.ones_like(s),))[1]
    assert (torch.vmap(slope)(weights)[1] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_an_image_net_starts_at_zero_and_all_of_it_learns(name):
    make, shape = SHAPES[name]
    net = make(3)
    x, s, y = torch.randn(4, *shape), torch.rand(4), torch.arange(4) - 1
    assert net(x, s, s, y).abs().max() == 0
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(4):
        adam.zero_grad()
        (net(x, s, s, y) - x).square().mean().backward()
        adam.step()
    asleep = [
        key
        for key, part in net.named_parameters()
        if part.grad is None or not part.grad.any()
    ]
    assert not asleep


def test_layers_start_as_the_identity():
    x, when = torch.randn(2, 16, 4, 4), torch.randn(2, 10)
    assert torch.equal(_Block(16, 16, 10)(x, when), x)
    assert torch.equal(_Attention(16)(x), x)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(_Layer(16, heads=2)(tokens, torch.randn(2, 16)), tokens)


# Labels


@every_net
def test_labels_matter_and_none_is_minus_one(name):
    net, x, s, t = made(name, labels=3)
    answers = [net(x, s, t, torch.full((3,), label)) for label in (-1, 0, 1, 2)]
    assert torch.equal(net(x, s, t), answers[0])
    for i in range(4):
        for j in range(i):
            change = (answers[i] - answers[j]).flatten(1).abs().amax(1)
            assert change.min() > 1e-3


@every_net
def test_a_net_made_with_labels_holds_one_vector_a_label_and_one_for_none(name):
    make = SHAPES[name][0]
    sizes = [
        sum(part.numel() for part in make(labels).parameters())
        for labels in (0, 1, 5, 10)
    ]
    assert sizes[3] - sizes[2] == 5 * 16
    assert sizes[1] - sizes[0] == 2 * 16


# Attention


@pytest.mark.parametrize("shape", [(5, 4), (2, 7, 3), (2, 3, 6, 8)])
def test_attention_is_that_of_torch(shape):
    q, k, v = 2 * torch.randn(3, *shape).double()
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    assert (attention(q, k, v) - expected).abs().max() < 1e-14


def multihead(look, leave, heads):
    """PyTorch's own multi-head attention with the weights of ours."""
    width = len(leave.weight)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).double()
    theirs.in_proj_weight.data = look.weight.data.flatten(1)
    theirs.in_proj_bias.data = look.bias.data
    theirs.out_proj.weight.data = leave.weight.data.flatten(1)
    theirs.out_proj.bias.data = leave.bias.data
    return lambda x: theirs(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (32, 2), (48, 3), (56, 7)])
def test_attention_over_places_is_multihead_attention(width, heads):
    ours = awake(_Attention(width))
    x = torch.randn(2, width, 3, 5).double()
    theirs = multihead(ours.look, ours.leave, heads)
    seen = theirs(ours.norm(x).flatten(2).mT).mT.unflatten(2, (3, 5))
    assert (ours(x) - x - seen).abs().max() < 1e-12


def test_a_layer_is_a_transformer_block_scaled_shifted_and_gated_by_time():
    ours, x = awake(_Layer(16, heads=4)), torch.randn(2, 5, 16).double()
    when = torch.randn(2, 16).double()
    a, b, gate, c, d, gate_too = ours.when(when).unflatten(1, (6, 1, 16)).unbind(1)
    norm = nn.LayerNorm(16, elementwise_affine=False)
    see = multihead(ours.look, ours.leave, 4)
    y = x + gate * see(norm(x) * (1 + a) + b)
    y = y + gate_too * ours.think(norm(y) * (1 + c) + d)
    assert (ours(x, when) - y).abs().max() < 1e-12


def test_a_block_is_scaled_and_shifted_by_time_after_its_norm():
    ours, x = awake(_Block(8, 16, 10)), torch.randn(2, 8, 4, 4).double()
    when = torch.randn(2, 10).double()
    scale, shift = ours.when(when).unflatten(1, (2, 16, 1, 1)).unbind(1)
    inner = nn.functional.group_norm(x, 8, ours.before[0].weight, ours.before[0].bias)
    inner = ours.before[2](nn.functional.silu(inner))
    inner = nn.functional.group_norm(inner, 8, ours.norm.weight, ours.norm.bias)
    inner = nn.functional.silu(inner * (1 + scale) + shift)
    expected = ours.skip(x) + ours.after[1](inner)
    assert (ours(x, when) - expected).abs().max() < 1e-12


# Images


class Nothing(nn.Module):
    """A layer that passes on its first input, and remembers it."""

    def forward(self, x, *_):
        self.seen = x
        return x


def test_a_unet_folds_its_image_and_puts_every_pixel_back():
    net = UNet(3, (8,), patch=2)
    net.enter, net.leave = Nothing(), Nothing()
    net.down, net.up = nn.ModuleList(), nn.ModuleList()
    net.middle = nn.ModuleList(Nothing() for _ in range(3))
    x, t = torch.randn(2, 3, 4, 6), torch.rand(2)
    assert torch.equal(net(x, t, t), x)
    assert torch.equal(net.enter.seen, nn.functional.pixel_unshuffle(x, 2))


def test_a_transformer_folds_its_image_and_puts_every_pixel_back():
    net = DiT(3, size=6, patch=2, width=12, depth=1)
    net.enter, net.leave, net.blocks = Nothing(), Nothing(), nn.ModuleList()
    net.place.data.zero_()
    x, t = torch.randn(2, 3, 6, 6), torch.rand(2)
    assert torch.equal(net(x, t, t), x)
    expected = nn.functional.unfold(x, 2, stride=2).mT
    assert torch.equal(net.enter.seen, expected)


def test_a_unet_on_a_torus_moves_with_its_image():
    """With edges that wrap, a shift by a pixel of the coarsest grid is a shift."""
    net, x, s, t = made("unet")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    for shift in ((4, 0), (0, 8)):
        moved = net(x.roll(shift, (2, 3)), s, t)
        assert (moved - net(x, s, t).roll(shift, (2, 3))).abs().max() < 1e-12
    assert (net(x.roll(1, 2), s, t) - net(x, s, t).roll(1, 2)).abs().max() > 1e-3


def test_a_transformer_knows_places_only_by_their_vectors():
    net, x, s, t = made("dit")

    def swap(x):
        rows = x.unflatten(2, (4, 2))
        return rows[:, :, [2, 0, 3, 1]].flatten(2, 3)

    assert (net(swap(x), s, t) - swap(net(x, s, t))).abs().max() > 1e-2
    net.place.data.zero_()
    assert (net(swap(x), s, t) - swap(net(x, s, t))).abs().max() < 1e-12


def test_every_patch_of_a_transformer_reaches_every_other():
    net, x, s, t = made("dit")
    for place in ((0, 0), (7, 3)):
        moved = x.clone()
        moved[:, :, *place] += 1
        change = (net(moved, s, t) - net(x, s, t)).abs().sum(1)
        assert change.min() > 1e-8


def test_fine_detail_passes_a_unet_by_the_skips():
    """What averaging over two pixels removes still comes out."""
    net, x, s, t = made("unet")
    board = torch.ones(4, 6).double()
    board[::2, ::2] = board[1::2, 1::2] = -1  # in patches, gone at half resolution
    board = board.repeat_interleave(2, 0).repeat_interleave(2, 1)
    change = net(x + board, s, t) - net(x, s, t)
    blocks = change.unflatten(2, (4, 2)).unflatten(4, (6, 2))
    assert (
        blocks * board.unflatten(0, (4, 2)).unflatten(2, (6, 2))
    ).mean().abs() > 0.01


def test_an_mlp_reads_an_image_as_a_row_of_numbers():
    net, x, s, t = made("mlp on images")
    flat = net(x.flatten(1), s, t)
    assert torch.equal(net(x, s, t), flat.unflatten(1, (1, 4, 4)))


def test_sizes_are_as_the_book_says():
    def count(net):
        return sum(part.numel() for part in net.parameters())

    hidden = 128 * 128 + 128
    assert count(MLP(2)) == (2 + 10 + 1) * 128 + 2 * hidden + (128 + 1) * 2
    assert count(MLP(2, width=64, depth=1)) == 13 * 64 + 65 * 2
    assert count(UNet(1, patch=2, labels=10)) < 500_000
    largest = UNet(3, (96, 128, 128), labels=10)
    assert 2 * count(largest) < 8_000_000, "in float16, the weights have 8 MB at most"


# Times


def test_time_is_seen_by_the_start_and_the_length():
    s, t = torch.rand(2, 50).double()
    features = time_features(s, t)
    assert features.shape == (50, 10)
    one = math.tau * (t - s)
    expected = torch.stack([t - s, one.cos(), (one / 2).sin()], 1)
    assert (features[:, [5, 9, 6]] - expected).abs().max() < 1e-14
    assert torch.equal(features[:, :5], time_features(s, s)[:, :5])
    assert torch.equal(features[:, 5:], time_features(s * 0, t - s)[:, 5:])


def test_on_the_diagonal_the_length_says_nothing():
    s = torch.rand(50)
    assert time_features(s, s)[:, 5:].std(0).max() == 0
    assert time_features(s, s)[:, :5].std(0).min() > 0.1


def test_the_features_of_time_are_slow():
    """No derivative above 2 pi: a map's derivatives in time grow with this number."""
    s, t = torch.rand(2, 100).double()
    one = torch.ones_like(s)
    assert jvp(time_features, (s, t), (0 * s, one))[1].abs().max() <= math.tau
    assert jvp(time_features, (s, t), (one, 0 * s))[1].abs().max() <= math.tau


# Velocities


def test_a_velocity_is_the_diagonal_of_a_net():
    net, x, _, t = made("mlp", labels=3)
    y = torch.tensor([0, 2, -1])
    assert torch.equal(velocity(net)(x, t), net(x, t, t))
    assert torch.equal(velocity(net, y)(x, t), net(x, t, t, y))


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_a_perfect_prediction_becomes_the_exact_velocity(world, path, kind, generator):
    x, _ = points(world, generator)
    s, t = 0.3 + 0.6 * torch.rand(2, len(x), generator=generator).double()
    data = world.denoise(path)

    def net(x, s, t, y):
        a, b = path.alpha(s)[:, None], path.sigma(s)[:, None]
        return data(x, s) if kind == "data" else (x - a * data(x, s)) / b

    found = as_velocity(net, path, kind)(x, s, t)
    exact = world.velocity(path)(x, s)
    assert (found - exact).abs().max() < 1e-11 * exact.abs().max()


def test_a_net_that_predicts_the_velocity_is_left_as_it_is():
    net = MLP(2)
    assert as_velocity(net, linear, "velocity") is net


def test_times_and_labels_reach_a_net_that_predicts_the_data():
    heard = []

    def net(*inputs):
        heard.append(inputs)
        return inputs[0]

    x, (s, t), y = torch.randn(4, 2), torch.rand(2, 4), torch.arange(4)
    as_velocity(net, linear, "data")(x, s, t, y)
    for told, meant in zip(heard[0], (x, s, t, y), strict=True):
        assert told is meant


@pytest.mark.parametrize("floor", [0.05, 0.2])
def test_a_wrong_prediction_stays_bounded_at_the_ends(floor):
    """Where the divisor would be 0 it is the floor: the miss, magnified 1/floor."""
    x, wrong = torch.randn(2, 6, 2).double()
    zero, one = torch.zeros(6).double(), torch.ones(6).double()

    def net(x, s, t, y):
        return wrong

    v = as_velocity(net, linear, "data", floor=floor)(x, one, one)
    assert (v - (wrong - (x - wrong) / floor)).abs().max() < 1e-13
    v = as_velocity(net, linear, "noise", floor=floor)(x, zero, zero)
    assert (v - ((x - wrong) / floor - wrong)).abs().max() < 1e-13


def test_the_floor_is_a_twentieth():
    x, wrong, one = torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1)
    v = as_velocity(lambda *_: wrong, linear, "data")(x, one, one)
    assert abs(float(v) + 20) < 1e-5


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_converted_net_has_derivatives_too(path):
    net, x, s, t = made("mlp")
    converted, h = as_velocity(net, path, "data"), 1e-6
    s = 0.3 + 0.5 * s
    slope = jvp(lambda s: converted(x, s, t), (s,), (torch.ones_like(s),))[1]
    by_hand = (converted(x, s + h, t) - converted(x, s - h, t)) / (2 * h)
    assert (slope - by_hand).abs().max() < 1e-7 * slope.abs().max()


# Twins


def twins_of(name, n=3, labels=0):
    make, shape = SHAPES[name]
    nets = [awake(awake(make(labels))) for _ in range(n)]
    x = torch.randn(4 * n, *shape).double()
    s, t = torch.rand(2, 4 * n).double()
    return nets, Twins(nets), x, s, t


@every_net
def test_twins_answer_as_each_net_would_alone(name):
    nets, twins, x, s, t = twins_of(name, labels=3)
    y = torch.randint(-1, 3, (len(x),))
    for parts in ((x, s, t), (x, s, t, y)):
        together = twins(*parts)
        chunks = zip(*(part.chunk(3) for part in parts), strict=True)
        alone = [net(*chunk) for net, chunk in zip(nets, chunks, strict=True)]
        assert (together - torch.cat(alone)).abs().max() < 1e-12
    assert (nets[0](x, s, t) - nets[1](x, s, t)).abs().max() > 0.1


def test_gradients_of_twins_do_not_mix():
    _, twins, x, s, t = twins_of("mlp")
    loss = twins(x, s, t).square().mean(1)
    for i, part in enumerate(loss.chunk(3)):
        for stack in torch.autograd.grad(
            part.mean(), [*twins.parameters()], None, True
        ):
            alive = stack.flatten(1).abs().amax(1) > 0
            assert alive.tolist() == [j == i for j in range(3)]


def test_an_optimiser_finds_the_weights_of_twins():
    twins = Twins([MLP(3, width=16) for _ in range(5)])
    assert all(part.is_leaf and part.requires_grad for part in twins.parameters())
    each = sum(part.numel() for part in MLP(3, width=16).parameters())
    assert sum(part.numel() for part in twins.parameters()) == 5 * each
    assert not [*twins.buffers()]


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_one_of_the_twins_is_a_net_like_any_other(name):
    nets, twins, x, s, t = twins_of(name)
    for i, net in enumerate(nets):
        alone = twins.net(i)
        assert type(alone) is type(net)
        assert torch.equal(alone(x, s, t), net(x, s, t))
        assert all(part.requires_grad for part in alone.parameters())
    next(alone.parameters()).data.zero_()
    assert torch.equal(twins.net(2)(x, s, t), nets[2](x, s, t)), "it is a copy"


def test_one_of_the_twins_has_their_precision():
    twins = Twins([MLP(3, width=16) for _ in range(2)])
    assert next(twins.net(0).parameters()).dtype == torch.float32
    assert next(twins.double().net(0).parameters()).dtype == torch.float64


def test_twins_do_not_share_weights_with_the_nets_they_are_made_of():
    nets, twins, x, s, t = twins_of("mlp")
    before = twins(x, s, t)
    for net in nets:
        next(net.parameters()).data.zero_()
    assert torch.equal(twins(x, s, t), before)


@pytest.mark.parametrize(("share", "bound"), [(3, 1e-12), (1, 1e-3)])
def test_training_twins_is_training_each_alone(share, bound):
    """By plain Adam on its own rows: to rounding for a third of the loss, and nearly so
    for all of it, since Adam divides by the size of the gradient plus 1e-8."""
    nets, data = [MLP(2, width=16).double() for _ in range(3)], torch.randn(3, 30, 8, 2)
    noise, times = torch.randn(3, 30, 8, 2).double(), torch.rand(3, 30, 8).double()
    twins, data = Twins(nets), data.double()

    def objective(net, x1, y, *, at, generator):
        k = round(at.progress * 30)
        x0, t = noise[:, k].flatten(0, 1), times[:, k].flatten()
        point = linear.at(x0, x1, t)
        return (net(point.x, t, t) - point.v).square().mean(1)

    batches = iter(data.unbind(1))
    for step in fit(
        twins,
        objective,
        lambda generator: next(batches).flatten(0, 1),
        steps=30,
        lr=1e-2,
        clip=math.inf,
    ):
        assert step.loss.isfinite()
    for i, net in enumerate(nets):
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for k in range(30):
            point = linear.at(noise[i, k], data[i, k], times[i, k])
            adam.zero_grad()
            loss = (net(point.x, point.t, point.t) - point.v).square().mean()
            (loss / share).backward()
            adam.step()
        for ours, theirs in zip(
            twins.net(i).parameters(), net.parameters(), strict=True
        ):
            assert (ours - theirs).abs().max() < bound


def test_twins_are_sampled_together():
    nets, twins, x, *_ = twins_of("mlp")
    together = integrate(velocity(twins), x, grid(4), euler)
    parts = zip(nets, x.chunk(3), strict=True)
    alone = [integrate(velocity(net), part, grid(4), euler) for net, part in parts]
    assert (together - torch.cat(alone)).abs().max() < 1e-12


def test_twins_learn_images_with_labels():
    twins = Twins([UNet(1, (8, 16), labels=2) for _ in range(2)])
    y = torch.arange(2).repeat(8)
    x1 = (2 * y - 1)[:, None, None, None] * torch.ones(1, 4, 4)
    run = fit(
        twins,
        FlowMatching(),
        lambda g: (x1.clone(), y),
        steps=40,
        lr=1e-2,
        clip=math.inf,
        generator=torch.Generator().manual_seed(0),
    )
    losses = [float(step.loss) for step in run]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# A classifier


def test_a_classifier_reads_its_logits_off_its_features():
    net, x = Classifier(1, 8, classes=10).double(), torch.randn(5, 1, 8, 8).double()
    features = net.features(x)
    assert features.shape == (5, 64)
    assert features.abs().max() < 1
    assert torch.equal(net(x), features @ net.head.weight.T + net.head.bias)
    assert Classifier(3, 12, classes=7)(torch.randn(2, 3, 12, 12)).shape == (2, 7)


def test_a_classifier_learns_which_side_is_bright():
    y = torch.arange(2).repeat(32)
    x = 0.5 * torch.randn(64, 1, 8, 8)
    x[y == 0, :, :, :4] += 1
    x[y == 1, :, :, 4:] += 1
    net = Classifier(1, 8, classes=2, width=8)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(30):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[:32]), y[:32]).backward()
        adam.step()
    assert (net(x[32:]).argmax(1) == y[32:]).double().mean() > 0.9


def test_a_training_begins_with_given_weights():
    torch.manual_seed(0)
    source, net = MLP(2, width=8), MLP(2, width=8)
    twins = Twins([MLP(2, width=8) for _ in range(3)])
    x, s, t = torch.randn(6, 2), torch.rand(6), torch.rand(6)
    begin(net, source)
    assert torch.equal(net(x, s, t), source(x, s, t))
    begin(twins, source)
    for i in range(3):
        assert torch.equal(twins.net(i)(x, s, t), source(x, s, t))
    with pytest.raises(ValueError, match="got the weights of a MLP, expected those of"):
        begin(MLP(2, width=16), source)
    with pytest.raises(ValueError, match="got the weights of a MLP, expected those of"):
        begin(Twins([MLP(2, width=16)]), source)
