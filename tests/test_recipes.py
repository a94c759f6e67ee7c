"""Recipes: from a name to a net, to its records, and back."""

import dataclasses
import datetime
import hashlib
import json
import math
import re

import pytest
import torch

from flowtext import __main__ as shell
from flowtext import measure, nets, recipes
from flowtext.data import load
from flowtext.fit import read
from flowtext.ladder import waves
from flowtext.objectives import FlowMatching
from flowtext.worlds import eight_modes

RELEASED = sorted(json.loads((recipes.RELEASED / "weights.json").read_text()))
EACH = pytest.mark.parametrize("name", RELEASED)


def tiny():
    """Two small nets in the plane, trained together for six steps."""
    return recipes.Recipe(
        about="a small test",
        world="eight modes",
        net=lambda: nets.Twins([nets.MLP(2, width=8) for _ in range(2)]),
        objective=FlowMatching(),
        batches=lambda device: lambda g: eight_modes().sample(16, g).float(),
        steps=6,
        lr=1e-2,
        measure=lambda net, calls: measure.plane(net, calls, eight_modes()),
        calls=(1, 2),
        clip=math.inf,
    )


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty place where `tiny` is trained, measured and released."""
    monkeypatch.chdir(tmp_path)
    for name in ("RELEASED", "MODELS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(recipes, name, tmp_path / name)
    monkeypatch.setitem(recipes.RECIPES, "tiny-flow", tiny)
    monkeypatch.setattr(recipes, "source_of", lambda name, trained=False: "here")
    monkeypatch.setattr(measure, "SAMPLES", 100)
    return tmp_path


@EACH
def test_released_weights_are_those_of_the_registry(name):
    net, facts = recipes.released(name)
    assert facts["recipe"] == name
    assert facts["seed"] == 0
    assert not any(p.requires_grad for p in net.parameters())
    path = recipes.MODELS / f"{name}.safetensors"
    known = json.loads((recipes.RELEASED / "weights.json").read_text())[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known
    assert path.stat().st_size <= 8e6


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in recipes.MODELS.iterdir()) <= 20e6


@EACH
def test_records_are_of_the_code_as_it_stands(name):
    found = recipes.records(name)
    stale = f"python -m flowtext fit {name}, then release {name}"
    assert {record["source"] for record in found} == {recipes.source_of(name)}, stale
    assert all(math.isfinite(record["value"]) for record in found)


def test_a_record_of_the_day_is_found_again():
    """Seed 0's weights are released, so what few calls give can be measured again."""
    name = RELEASED[datetime.date.today().toordinal() % len(RELEASED)]
    old = {
        (r["calls"], r["metric"]): r["value"]
        for r in recipes.records(name)
        if r["seed"] == 0 and r["calls"] <= 2
    }
    net, _ = recipes.released(name)
    calls = [c for c in recipes.recipe_of(name).calls if c <= 2]
    new = {
        (calls, metric): value
        for _, _, calls, metric, value, _ in recipes.recipe_of(name).measure(net, calls)
    }
    assert new == pytest.approx(old, rel=2e-2, abs=2e-3)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"got recipe 'mnist', expected one of \['wav"):
        recipes.train("mnist")
    with pytest.raises(ValueError, match="got 'mnist'"):
        recipes.records("mnist")


def test_a_model_from_the_shell(workshop, capsys):
    assert shell.main(["fit", "tiny-flow"]) == 0
    assert shell.main(["release", "tiny-flow"]) == 0
    rows = recipes.records("tiny-flow")
    assert len(rows) == 2 * 2 * 4  # two seeds, two numbers of calls, four metrics
    assert {row["seed"] for row in rows} == {0, 1}
    assert rows[0]["train_steps"] == 6
    assert rows[0]["sampler"] == "euler"
    capsys.readouterr()
    assert shell.main(["score", "tiny-flow"]) == 0
    header, *lines = capsys.readouterr().out.strip().splitlines()
    assert header.split() == shell.COLUMNS
    assert [float(line.split()[4]) for line in lines] == [row["value"] for row in rows]
    alone, facts = recipes.released("tiny-flow")
    both = tiny().net()
    read(workshop / "runs" / "tiny-flow-0.safetensors", both)
    x, t = torch.randn(5, 2), torch.rand(5)
    first = both.net(0)(x, t, t)
    assert (alone(x, t, t) - first).abs().max() < 1e-2 * first.abs().max()
    assert facts["train_seconds"] >= 0  # to a tenth of a second


def test_training_in_slices_gives_the_same_weights(workshop):
    assert shell.main(["fit", "tiny-flow", "--seed", "3"]) == 0
    whole = tiny().net()
    read(workshop / "runs" / "tiny-flow-3.safetensors", whole)
    for file in (workshop / "runs").iterdir():
        file.unlink()
    for _ in range(6):
        assert not (workshop / "runs" / "tiny-flow-3.safetensors").exists()
        assert shell.main(["fit", "tiny-flow", "--seed", "3", "--minutes", "0"]) == 0
    parts = tiny().net()
    read(workshop / "runs" / "tiny-flow-3.safetensors", parts)
    assert all(
        torch.equal(*pair)
        for pair in zip(*(each.parameters() for each in (whole, parts)), strict=True)
    )
    log = json.loads((workshop / "runs" / "tiny-flow-3.json").read_text())
    assert [part["until"] for part in log] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_run_keeps_its_steps_and_its_seconds(workshop, monkeypatch):
    whole = recipes.train

    def interrupted(name, seed, keep):
        for step in whole(name, seed, keep):
            yield step
            if step.number == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "train", interrupted)
        assert shell.main(["fit", "tiny-flow"]) == 130
    log = workshop / "runs" / "tiny-flow-0.json"
    (first,) = json.loads(log.read_text())
    assert first["until"] == 2
    assert shell.main(["fit", "tiny-flow"]) == 0
    assert [part["until"] for part in json.loads(log.read_text())] == [2, 6]


def test_the_average_is_what_is_kept(workshop):
    *_, last = recipes.train("tiny-flow", 0)
    shell.main(["fit", "tiny-flow"])
    kept = tiny().net()
    read(workshop / "runs" / "tiny-flow-0.safetensors", kept)
    for average, found in zip(last.ema.parameters(), kept.parameters(), strict=True):
        assert torch.equal(average, found)


def test_a_seed_is_a_run_of_its_own(workshop):
    def loss(seed):
        *_, last = recipes.train("tiny-flow", seed)
        return last.loss

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    nets_ = [next(recipes.train("tiny-flow", seed)).net for seed in (1, 2)]
    assert not torch.equal(nets_[0].stacks[0], nets_[1].stacks[0])


def test_a_seed_draws_its_own_data(workshop, monkeypatch):
    drawn = []

    def recipe():
        def batch(generator):
            drawn.append(eight_modes().sample(16, generator).float())
            return drawn[-1]

        return dataclasses.replace(tiny(), batches=lambda device: batch)

    monkeypatch.setitem(recipes.RECIPES, "tiny-flow", recipe)
    for seed in (1, 2, 1):
        next(recipes.train("tiny-flow", seed))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_what_is_not_there_is_said(workshop, capsys, monkeypatch):
    assert shell.main(["score", "tiny-flow"]) == 1
    assert (
        "runs/tiny-flow-0.safetensors, which cannot be read" in capsys.readouterr().err
    )
    assert shell.main(["release", "tiny-flow"]) == 1
    assert "expected seed 0: fit it first" in capsys.readouterr().err
    shell.main(["fit", "tiny-flow"])
    monkeypatch.setattr(recipes, "source_of", lambda name, trained=False: "new")
    assert shell.main(["release", "tiny-flow"]) == 1
    assert "trained by other code" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shell.main(["fit"])
    assert "fit needs a NAME" in capsys.readouterr().err
    (workshop / "RELEASED" / "weights.json").write_text("{}")
    with pytest.raises(
        ValueError, match=re.escape("got 'tiny-flow', expected one of []")
    ):
        recipes.released("tiny-flow")


def test_damaged_weights_are_refused(workshop, monkeypatch):
    shell.main(["fit", "tiny-flow"])
    shell.main(["release", "tiny-flow"])
    path = recipes.MODELS / "tiny-flow.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="got a damaged"):
        recipes.released("tiny-flow")
    monkeypatch.setenv("FLOWTEXT_MODELS", str(workshop / "elsewhere"))
    (workshop / "elsewhere").mkdir()
    path.rename(workshop / "elsewhere" / path.name)
    with pytest.raises(ValueError, match="elsewhere"):
        recipes.released("tiny-flow")


def test_the_list_says_what_is_released(capsys):
    assert shell.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*recipes.RECIPES]
    said = {line.split()[0] for line in lines if line.split()[1] == "released"}
    assert said == set(RELEASED)


def test_measures_of_the_plane_know_the_truth(monkeypatch):
    """The exact velocity has a path error that Euler's steps leave, and no strays."""
    monkeypatch.setattr(measure, "SAMPLES", 400)
    world = eight_modes()
    v = world.velocity(measure.linear)

    def exact(x, s, t, y=None):
        return v(x.double(), t.double()).float()

    found = {
        (c, k): value for *_, c, k, value, _ in measure.plane(exact, (1, 64), world)
    }
    assert found[64, "rmse"] < 0.1 < 1.5 < found[1, "rmse"]
    assert found[64, "off-mode"] < 0.01
    assert found[1, "off-mode"] == 1
    floors = {k: floor for *_, k, _, floor in measure.plane(exact, (1,), world)}
    assert floors["rmse"] == 0
    assert found[64, "sw2"] < 2 * floors["sw2"]


def test_the_path_error_of_images_is_against_their_own_map():
    """It is 0 for the exact average velocity, and falls with Euler's steps."""
    world = waves()
    jump, v = world.flow_map(measure.linear), world.velocity(measure.linear)

    def exact(x, s, t, y=None):
        x, s, t = x.double(), s.double(), t.double()
        u = (jump(x, s, t) - x) / (t - s).clamp(min=1e-9)[:, None]
        return torch.where((s == t)[:, None], v(x, s), u).float()

    rows = list(measure.path(exact, (1, 4), world, ("map", "euler")))
    found = {(kind, calls): value for _, kind, calls, _, value, _ in rows}
    assert found["map", 1] < 1e-5 > found["map", 4]
    # One Euler step lands on the mean, so it misses by the spread of the data.
    assert abs(found["euler", 1] - 0.5) < 0.01
    assert 1.5 * found["euler", 4] < found["euler", 1]


def test_measures_of_images_tell_real_from_noise(monkeypatch):
    """A net that stands still leaves noise; real images stand at the floor."""

    def still(x, s, t, y=None):
        return torch.zeros_like(x)

    judge = recipes.judge_of("digits")
    rows = list(measure.images(still, (1,), "digits", judge))
    found = {metric: (value, floor) for *_, metric, value, floor in rows}
    assert found["frechet"][0] > 20 * found["frechet"][1]
    assert found["precision"][0] < 0.1 < 0.8 < found["precision"][1]
    assert found["agreement"][0] < 0.4 < 0.9 < found["agreement"][1]
    assert found["nearest"][0] > 1.5 * found["nearest"][1]


def test_a_net_that_draws_the_mean_has_no_distance_from_it():
    """One step of v = mean - x0 lands on the mean of the class; real data are at 1."""
    train = load("digits")
    views = {"as they are": lambda x: x, "shuffled": measure.shuffle}
    for view in views.values():
        means = torch.stack([view(train.x)[train.y == k].mean(0) for k in range(10)])

        def mean(x, s, t, y=None, means=means):
            return means[y] - x

        rows = list(measure.regression(mean, (1, 2), "digits", view))
        found = {(calls, metric): value for _, _, calls, metric, value, _ in rows}
        assert found[1, "from-mean"] < 1e-6
        assert found[2, "from-mean"] > 0.2
        assert found[0, "test-loss"] > 0.5
    assert {floor for *_, metric, _, floor in rows if metric == "from-mean"} == {1}


def test_pixels_are_shuffled_in_one_way():
    x = load("digits").x[:3]
    y = measure.shuffle(x)
    assert not torch.equal(x, y)
    assert torch.equal(x.flatten(1).sort().values, y.flatten(1).sort().values)
    assert torch.equal(measure.shuffle(x[1:]), y[1:])


def test_images_are_asked_for_with_the_labels_of_the_floor():
    """Else unequal counts of labels would move the distance, not the net."""
    asked = []

    def listen(x, s, t, y=None):
        asked.append(y)
        return torch.zeros_like(x)

    [*measure.images(listen, (1,), "digits", recipes.judge_of("digits"))]
    counts = load("digits", train=False).y.bincount()
    assert torch.equal(asked[-1].bincount(), counts)


def test_a_recipe_can_begin_with_released_weights(workshop, monkeypatch):
    shell.main(["fit", "tiny-flow"])
    shell.main(["release", "tiny-flow"])
    first, _ = recipes.released("tiny-flow")
    second = dataclasses.replace(tiny(), begin="tiny-flow", lr=1e-9)
    step = next(recipes.start(second, 5, None))
    x, t = torch.randn(5, 2), torch.rand(5)
    assert torch.allclose(step.net.net(1)(x, t, t), first(x, t, t), atol=1e-5)
    assert torch.allclose(recipes.teacher("tiny-flow")(x, t, t), first(x, t, t))


def test_samples_are_made_by_a_known_sampler():
    def net(x, s, t, y=None):
        return -x * (1 + t - s)[:, None]

    x0 = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    flow, chain, fresh, again = (
        measure.sample(net, x0, 2, sampler=name)
        for name in ("euler", "map", "renoised map", "renoised map")
    )
    assert torch.allclose(flow, x0 / 4)
    assert torch.allclose(chain, x0 / 16)
    assert torch.equal(fresh, again)
    assert not torch.allclose(fresh, chain)
    with pytest.raises(ValueError, match="got 'heun', expected one of"):
        measure.sample(net, x0, 2, sampler="heun")
