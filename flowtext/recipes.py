"""Every trained model by name, how it was made, and the records of what it can do."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path as File

import pooch
import torch
from torch import Generator, Tensor, nn

import flowtext
from flowtext import measure, nets
from flowtext.consistency import ConsistencyTraining
from flowtext.data import Batches, load, minibatches
from flowtext.fit import Step, fading, fit, read
from flowtext.guide import drop_labels
from flowtext.ladder import METHODS, WORLDS, Method, waves
from flowtext.maps import LagrangianMap, ordered
from flowtext.objectives import At, FlowMatching
from flowtext.sources import fingerprint
from flowtext.tensors import Label, State

HERE = File(__file__).parent
RELEASED = HERE / "released"
MODELS = HERE.parent / "book" / "models"  # in a clone; elsewhere they are fetched
SOURCE = "https://github.com/flowtext/flowtext/raw/v{}/book/models/"
CALLS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained and measured.

    `batches(device)` gives the draw of training data; `measure(net, calls)` yields
    rows (seed, sampler, calls, metric, value, floor). A step costs `passes` of the
    network: 1 forward, 2 backward, 2 for a derivative along a direction. Training
    starts from the released weights of the recipe `begin`, if one is named.
    """

    about: str
    world: str
    net: Callable[[], nn.Module]
    objective: Callable
    batches: Callable[[str], Batches]
    steps: int
    lr: float
    measure: Callable[[nn.Module, Sequence[int]], measure.Rows]
    calls: Sequence[int] = CALLS
    clip: float = 1.0
    passes: int = 3
    begin: str = ""


def waves_flow() -> Recipe:
    """Flow matching on images whose flow map is known, three seeds at once."""
    return replace(
        plane_flow("eight", 3),
        about="flow matching on straight lines, MLP 3 x 256",
        world="waves",
        net=lambda: nets.Twins([nets.MLP(64, 256) for _ in range(3)]),
        batches=lambda device: lambda g: waves().sample(3 * 256, g).float(),
        steps=4000,
        lr=2e-3,
        measure=lambda net, calls: measure.path(net, calls, waves()),
    )


def waves_map() -> Recipe:
    """Its flow map, taught by the released velocity that it starts from."""
    samplers = ("map", "renoised map")
    return replace(
        waves_flow(),
        about="Lagrangian flow map, taught by waves-flow",
        objective=LagrangianMap(teacher("waves-flow"), ordered(diagonal=0.0)),
        measure=lambda net, calls: measure.path(net, calls, waves(), samplers),
        calls=(1, 2, 4, 8),
        passes=10,
        begin="waves-flow",
    )


def digits_features() -> Recipe:
    """The classifier in whose features digits are compared."""
    return features("digits", size=8, steps=600)


def mnist_features() -> Recipe:
    """The classifier in whose features MNIST images are compared."""
    return features("mnist", size=28, steps=2000)


def cifar10_features() -> Recipe:
    """The classifier in whose features CIFAR-10 images are compared."""
    return features("cifar10", size=32, steps=6000, channels=3, width=64)


def digits_flow() -> Recipe:
    """Flow matching on 8 x 8 digits, with labels."""
    return image_flow("digits", (32, 64), 1, batch=64, steps=2000)


def digits_unet() -> Recipe:
    """A small UNet on digits, trained for less than a minute."""
    return short(lambda: nets.UNet(1, (16, 32), labels=10), 64, 600, 4e-3)


def digits_shuffled() -> Recipe:
    """The same UNet on digits whose pixels are shuffled, all in one way."""
    view = measure.shuffle
    return short(lambda: nets.UNet(1, (16, 32), labels=10), 64, 600, 4e-3, view)


def digits_mlp() -> Recipe:
    """An MLP on digits, for about as many seconds."""
    return short(lambda: nets.MLP(64, 256, labels=10), 256, 2200, 3e-3)


def mnist_flow() -> Recipe:
    """Flow matching on MNIST, with labels."""
    return image_flow("mnist", (32, 64), 2, batch=64, steps=12_000)


def cifar10_flow() -> Recipe:
    """Flow matching on CIFAR-10, with labels."""
    return image_flow("cifar10", (96, 128, 128), 1, batch=128, steps=60_000)


def digits_map() -> Recipe:
    """The flow map of the digits' teacher."""
    return image_map(digits_flow(), "digits-flow", batch=64, steps=2000)


def digits_map_unet() -> Recipe:
    """The same map by a UNet that starts from nothing."""
    return image_student(lambda: nets.UNet(1, (32, 64), labels=10), 1000, 2e-3)


def digits_map_mlp() -> Recipe:
    """The same map by an MLP, which knows nothing of neighbours."""
    return image_student(lambda: nets.MLP(64, 384, labels=10), 5000, 4e-3)


def digits_map_dit() -> Recipe:
    """The same map by a transformer over patches."""
    return image_student(lambda: nets.DiT(1, 8, labels=10), 1300, 4e-3)


def mnist_map_distilled() -> Recipe:
    """The flow map of MNIST's teacher."""
    return image_map(mnist_flow(), "mnist-flow", batch=64, steps=5000)


def mnist_map_scratch() -> Recipe:
    """A flow map of MNIST that has no teacher: its own diagonal is one."""
    law = drop_labels(LagrangianMap(None, ordered(diagonal=0.75)), 0.1)
    base = replace(mnist_map_distilled(), about="Lagrangian flow map, self-taught")
    return replace(base, objective=law, steps=12_000, lr=2e-3, begin="")


def mnist_consistency() -> Recipe:
    """MNIST's teacher, tuned to jump to the data without being asked again."""
    base, law = mnist_map_distilled(), drop_labels(ConsistencyTraining(), 0.1)
    base = replace(base, about="easy consistency tuning of mnist-flow", passes=4)
    return replace(base, objective=law, steps=8000)


def cifar10_map() -> Recipe:
    """The flow map of CIFAR-10's teacher."""
    return image_map(cifar10_flow(), "cifar10-flow", batch=128, steps=20_000)


def plane_flow(world: str, seeds: int) -> Recipe:
    """Flow matching in the plane, many seeds at once."""
    return Recipe(
        about="flow matching on straight lines, MLP 3 x 128",
        world=world,
        net=lambda: nets.Twins([nets.MLP(2) for _ in range(seeds)]),
        objective=FlowMatching(),
        batches=lambda device: _points(world, 512 * seeds),
        steps=6000,
        lr=8e-3,
        measure=lambda net, calls: measure.plane(net, calls, WORLDS[world]()),
        clip=float("inf"),
    )


def plane_map(world: str, seeds: int, method: Callable[[nets.Net], Method]) -> Recipe:
    """A map in the plane by a method of the ladder, many seeds at once."""
    name, samplers = f"{world}-flow", ("map", "renoised map")
    made = method(teacher(name))
    return replace(
        plane_flow(world, seeds),
        about=made.about,
        objective=made.objective,
        batches=lambda device: _points(world, 256 * seeds),
        steps=10_000,
        lr=made.lr,
        measure=lambda net, calls: measure.plane(net, calls, WORLDS[world](), samplers),
        calls=(1, 2, 4, 8),
        passes=made.passes,
        begin=name if made.warm else "",
    )


RECIPES = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        waves_flow,
        waves_map,
        digits_features,
        digits_flow,
        digits_unet,
        digits_shuffled,
        digits_mlp,
        mnist_features,
        mnist_flow,
        cifar10_features,
        cifar10_flow,
        digits_map,
        digits_map_unet,
        digits_map_mlp,
        digits_map_dit,
        mnist_map_distilled,
        mnist_map_scratch,
        mnist_consistency,
        cifar10_map,
    )
}
for _world, _seeds in zip(WORLDS, (20, 5, 5), strict=True):
    RECIPES[f"{_world}-flow"] = partial(plane_flow, _world, _seeds)
    RECIPES |= {
        f"{_world}-{method.__name__.replace('_', '-')}": partial(
            plane_map, _world, _seeds, method
        )
        for method in METHODS
    }


def short(
    net: Callable[[], nn.Module],
    batch: int,
    steps: int,
    lr: float,
    view: Callable[[State], State] = lambda x: x,
) -> Recipe:
    """A net with labels on digits, seen through `view`, for a short time."""

    def batches(device: str) -> Batches:
        data = load("digits")
        return minibatches(view(data.x).to(device), batch, data.y.to(device))

    return Recipe(
        about="flow matching on straight lines, a short training",
        world="digits",
        net=net,
        objective=drop_labels(FlowMatching(), 0.1),
        batches=batches,
        steps=steps,
        lr=lr,
        measure=lambda net, calls: measure.regression(net, calls, "digits", view),
        calls=(1, 2),
    )


def image_flow(
    name: str, widths: Sequence[int], patch: int, batch: int, steps: int
) -> Recipe:
    """A UNet with labels, a tenth of them left out, on images of a set."""
    channels = 3 if name == "cifar10" else 1
    return Recipe(
        about=f"flow matching on straight lines, UNet {'-'.join(map(str, widths))}",
        world=name,
        net=lambda: nets.UNet(channels, widths, patch, labels=10),
        objective=drop_labels(FlowMatching(), 0.1),
        batches=lambda device: _draw(name, batch, device),
        steps=steps,
        lr=2e-3,
        measure=lambda net, calls: measure.images(net, calls, name, judge_of(name)),
    )


def image_map(flow: Recipe, name: str, batch: int, steps: int) -> Recipe:
    """A flow map on images, taught by the released velocity that it starts from."""
    objective = LagrangianMap(teacher(name), ordered(diagonal=0.0))
    world, samplers = flow.world, ("map", "renoised map")
    return replace(
        flow,
        about=f"Lagrangian flow map, taught by {name}",
        objective=drop_labels(objective, 0.1),
        batches=lambda device: _draw(world, batch, device),
        steps=steps,
        lr=1e-3,
        measure=lambda net, calls: measure.images(
            net, calls, world, judge_of(world), samplers
        ),
        calls=(1, 2, 4, 8),
        passes=10,
        begin=name,
    )


def image_student(net: Callable[[], nn.Module], steps: int, lr: float) -> Recipe:
    """The digits' flow map by another net, with the same teacher, from nothing."""
    return replace(digits_map(), net=net, steps=steps, lr=lr, begin="")


def features(
    name: str, size: int, steps: int, channels: int = 1, width: int = 32
) -> Recipe:
    """A small classifier of the images of a set."""
    return Recipe(
        about="a classifier whose last hidden layer gives features",
        world=name,
        net=lambda: nets.Classifier(channels, size, 10, width),
        objective=classify,
        batches=lambda device: _draw(name, 64, device),
        steps=steps,
        lr=3e-3,
        measure=lambda net, calls: measure.classifier(net, calls, name),
        calls=(1,),
    )


def classify(net, x1: State, y: Label, *, at: At, generator: Generator) -> Tensor:
    """The cross-entropy of a classifier, one loss a sample."""
    return nn.functional.cross_entropy(net(x1), y, reduction="none")


def train(name: str, seed: int = 0, keep: File | None = None) -> Iterator[Step]:
    """Train a model by its recipe, on a GPU if there is one; yields after each step.

    Raises ValueError for an unknown name, with the known ones.
    """
    return start(recipe_of(name), seed, keep)


def start(recipe: Recipe, seed: int, keep: File | None) -> Iterator[Step]:
    """The training of a recipe: everything random in it comes from the seed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    net = recipe.net()
    if recipe.begin:
        nets.begin(net, released(recipe.begin)[0])
    return fit(
        net.to(device),
        recipe.objective,
        recipe.batches(device),
        steps=recipe.steps,
        lr=fading(recipe.lr),
        clip=recipe.clip,
        generator=Generator(device).manual_seed(seed),
        keep=keep,
    )


def recipe_of(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"got recipe {name!r}, expected one of {[*RECIPES]}")
    return RECIPES[name]()


def records(name: str) -> list[dict]:
    """What was measured of a model: one record a seed, number of calls and metric.

    Raises ValueError for a name without records.
    """
    path = RELEASED / f"{name}.json"
    if not path.exists():
        known = sorted(file.stem for file in RELEASED.glob("*-*.json"))
        raise ValueError(f"got {name!r}, expected one of {known}")
    stored = json.loads(path.read_text())
    return [
        dict(zip(stored["columns"], row, strict=True)) | stored["all"]
        for row in stored["rows"]
    ]


def released(name: str) -> tuple[nn.Module, dict]:
    """A released net of a recipe, ready to be called, and its facts.

    From the clone, from the folder or address in $FLOWTEXT_MODELS, or fetched once.
    Raises ValueError for an unknown name or a damaged file.
    """
    recipe = recipe_of(name)
    registry = json.loads((RELEASED / "weights.json").read_text())
    if name not in registry:
        raise ValueError(f"got {name!r}, expected one of {[*registry]}")
    file, place = f"{name}.safetensors", os.environ.get("FLOWTEXT_MODELS", str(MODELS))
    if not (path := File(place) / file).exists():
        source = place if "://" in place else SOURCE.format(flowtext.__version__)
        path = pooch.retrieve(f"{source.rstrip('/')}/{file}", registry[name])
    if pooch.file_hash(path) != registry[name]:
        raise ValueError(f"got a damaged {path}, expected SHA-256 {registry[name]}")
    net = alone(recipe.net())
    facts = read(path, net)
    return net.eval().requires_grad_(False), facts


def teacher(name: str) -> nets.Net:
    """A released net as a function, loaded when it is first called."""

    @cache
    def loaded(device: torch.device) -> nn.Module:
        return released(name)[0].to(device)

    return lambda x, s, t, y=None: loaded(x.device)(x, s, t, y)


def judge_of(name: str) -> nets.Classifier:
    """The released classifier in whose features images of a set are compared."""
    return released(f"{name}-features")[0]


def alone(net: nn.Module) -> nn.Module:
    """The first net of many that were trained together; another net as it is."""
    return net.net(0) if isinstance(net, nets.Twins) else net


def source_of(name: str, *, trained: bool = False) -> str:
    """The fingerprint of all code behind a recipe's records, or its training alone."""
    recipe_of(name)
    made = RECIPES[name]
    parts = [made.func, *made.args] if isinstance(made, partial) else [made]
    parts = [part for part in (*parts, start) if callable(part)]
    places = [f"{part.__module__}.{part.__name__}" for part in parts]
    apart = ("RECIPES", "measure", "judge_of") if trained else ("RECIPES",)
    return fingerprint(*[p.removeprefix("flowtext.") for p in places], apart=apart)


def _points(world: str, n: int) -> Batches:
    return lambda generator: WORLDS[world]().sample(n, generator).float()


def _draw(name: str, size: int, device: str) -> Batches:
    data = load(name)
    return minibatches(data.x.to(device), size, data.y.to(device))
