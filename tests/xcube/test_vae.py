"""The VAE: its switches, its limits, and that it learns."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from xcube.geometry.parts import bridged
from xcube.geometry.pyramid import pooling_tree, truth_tree
from xcube.geometry.shell import certain_parts, is_solid, sealed
from xcube.networks.blocks import Head, count_per_grid
from xcube.networks.configs import VAEConfig
from xcube.networks.losses import LossConfig, normal_angle, vae_losses, voxel_iou
from xcube.networks.vae import VAE

SIZE = 1 / 32
SMALL: dict[str, Any] = {"voxel_size": SIZE, "channels": (8, 8, 16), "latent_channels": 4, "hidden": 8}


def sphere(radius: float, item: int = 0) -> Tensor:
    axis = torch.arange(-15, 15)
    ijk = torch.cartesian_prod(axis, axis, axis)
    distance = (ijk + 0.5).square().sum(1).sqrt()
    shell = ijk[(distance - radius).abs() < 0.8]
    return torch.nn.functional.pad(shell, (1, 0), value=item)


def spheres(*radii: float) -> Voxels:
    """A batch of shells with normals; a radius of 0 is an empty item."""
    coords = torch.cat([sphere(radius, item) for item, radius in enumerate(radii) if radius] or [sphere(3)[:0]])
    grid = Grid.from_coords(coords, batch_size=len(radii), voxel_size=SIZE, origin=SIZE / 2)
    center = grid.ijk.float() + 0.5
    fill = (1 - center.norm(dim=1) / 16).clamp(0, 1)
    return Voxels(grid, {"normal": torch.nn.functional.normalize(center, dim=1), "fill": fill})


FLAT: dict[str, Any] = {"dilation": "none", "strides": ((2, 2, 1), (2, 2, 2))}
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {},
    "attention": {"attention": True},
    "dense neck": {"dense_neck": (4, 4, 4)},
    "dilated": {"dilation": "all"},
    "plain": {"dilation": "none"},
    "flat": FLAT,
    "checkpointing": {"checkpointing": True},
    "solid": {"solid": True},
    "fill": {"fill": True},
    "thresholds": {"thresholds": (0.4, 0.3, 0.2)},
    "solid, thresholds": {"solid": True, "thresholds": (0.5, 0.3, 0.2)},
    "solid, certain": {"solid": True, "certain": 0.8},
    "solid, bridge": {"solid": True, "certain": 0.8, "bridge": 0.01},
    "official": dataclasses.asdict(VAEConfig.official()),
    "official, flat": dataclasses.asdict(VAEConfig.official(**FLAT)),
    "official, attention": dataclasses.asdict(VAEConfig.official(attention=True)),
    "official, checkpointing": dataclasses.asdict(VAEConfig.official(checkpointing=True)),
}


def model_of(name: str, seed: int = 0, **changes: Any) -> VAE:
    torch.manual_seed(seed)
    return VAE(VAEConfig(**(VARIANTS[name] | SMALL | changes)))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_every_variant_runs_and_every_parameter_learns(name: str, training: bool) -> None:
    model, voxels = model_of(name, keep="union").train(training), spheres(6, 0, 4)
    posterior, decoded = model(voxels)
    assert posterior.grid.same_voxels(model.latent_grid(voxels.grid))
    assert decoded.voxels.grid.batch_size == 3
    assert decoded.voxels.grid.voxel_size == pytest.approx((SIZE,) * 3)
    losses = vae_losses(model, voxels, posterior, decoded, LossConfig())
    losses.total.backward()
    if training:  # the decoder continues with the truth, so every layer gets a gradient
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        # Behind a convolution that begins at zero nothing has a gradient at first.
        assert all(".conv1." in name or ".norm" in name for name in idle), idle
    assert all(value.isfinite().all() for value in (*losses.terms.values(), *losses.metrics.values()))


@pytest.mark.parametrize("name", VARIANTS)
def test_structure_is_consistent(name: str) -> None:
    model, voxels = model_of(name), spheres(6, 5)
    with torch.no_grad():
        for head in model.decoder.solids if model.config.solid else ():
            head.get_parameter("out.weight").mul_(20)  # so that some voxels are certain
        decoded = model.eval().decode(model.encode(voxels).sample(), generated=True)
    strides = (*model.config.all_strides, None)
    for resolution, (decided, stride) in enumerate(zip(decoded.structure, strides, strict=True)):
        least = model.config.all_thresholds[resolution]
        predicted = parts = (probability := decided.logits.sigmoid()) > least
        if decided.solid is not None:
            probability = decided.solid.sigmoid()
            solid, certain = probability > least, probability > model.config.certain
            assert 0 < certain.sum() < solid.sum() < len(solid)
            parts = certain_parts(decided.candidates, solid, certain)
        if (bridge := model.config.bridge) is not None:
            parts = bridged(decided.candidates, parts, probability, bridge)
        keep = parts if decided.solid is None else sealed(decided.candidates, predicted, parts)
        assert decided.grid.same_voxels(decided.candidates.prune(keep))
        if stride is not None:
            assert decided.candidates.same_voxels(decoded.structure[resolution + 1].grid.subdivide(stride))
    assert decoded.structure[0].grid.same_voxels(decoded.voxels.grid)


@pytest.mark.parametrize("name", VARIANTS)
def test_items_of_a_batch_do_not_depend_on_each_other(name: str) -> None:
    model, batch = model_of(name).eval(), spheres(6, 0, 4)
    with torch.no_grad():
        together = model.decode(model.encode(batch).mode()).voxels
        for item, single in enumerate(batch.unbind()):
            alone = model.decode(model.encode(single).mode()).voxels
            part = together.unbind()[item]
            assert part.grid.same_voxels(alone.grid)
            torch.testing.assert_close(part.attributes["normal"], alone.attributes["normal"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("more", [{}, {"num_labels": 3, "intensity": True, "color": True, "attention": True}])
def test_nothing_at_all_is_legal(name: str, more: dict[str, Any]) -> None:
    model, nothing = model_of(name, **more).train(), spheres(0, 0)
    if more:
        none: dict[str, Any] = {"label": torch.zeros(0).long(), "intensity": torch.zeros(0), "color": torch.zeros(0, 3)}
        nothing = nothing.with_attributes(**none)
    posterior, decoded = model(nothing)
    losses = vae_losses(model, nothing, posterior, decoded, LossConfig())
    assert losses.total.isfinite()
    losses.total.backward()


@pytest.mark.parametrize("name", ["modern", "official"])
def test_a_decode_that_comes_out_empty_is_legal(name: str) -> None:
    model, voxels = model_of(name, keep="predicted").train(), spheres(6, 4)
    with torch.no_grad():
        root = model.decoder.heads[-1] if name == "official" else model.decoder.root
        assert isinstance(root, Head)
        root.out.weight.zero_()
        root.out.bias.copy_(torch.tensor([-1.0, 1.0])[: len(root.out.bias)])
    posterior, decoded = model(voxels)
    assert decoded.voxels.num_voxels == 0
    assert decoded.voxels.attributes["normal"].shape == (0, 3)
    losses = vae_losses(model, voxels, posterior, decoded, LossConfig())
    assert losses.total.isfinite()
    assert float(losses.metrics["iou"]) == 0
    losses.total.backward()


# Voxels that the decoder continues with in training


def truth_of(model: VAE, voxels: Voxels) -> list[Grid]:
    return model.truth(voxels.grid)


def test_union_lets_the_truth_through_and_no_explosion() -> None:
    model, voxels = model_of("modern").train(), spheres(6, 4)
    _, decoded = model(voxels)
    for decided, real in zip(decoded.structure, truth_of(model, voxels), strict=True):
        assert (real - decided.grid).num_voxels == 0
        size, true = count_per_grid(torch.ones(decided.grid.num_voxels), decided.grid), real.offsets.diff()
        assert bool((size <= (1 + model.config.keep_ratio) * true).all())


def test_items_that_explode_do_not_cost_the_others_their_prediction() -> None:
    model, voxels = model_of("modern", keep_ratio=1.0).train(), spheres(6, 4)
    candidates, real = voxels.grid.dilate(2), voxels.grid
    predicted = candidates.batch == 0  # all of the first item, nothing of the second
    true = real.contains(candidates.coords)
    assert torch.equal(model.decoder.guided(candidates, predicted, true, 0), true)
    odd = (~true & (candidates.batch == 1)).nonzero()[0]
    predicted[odd] = True  # one voxel of the second, which is no explosion
    expected = true.clone()
    expected[odd] = True
    assert torch.equal(model.decoder.guided(candidates, predicted, true, 0), expected)


@pytest.mark.parametrize("name", ["modern", "official"])
def test_a_hard_cap_holds_from_random_weights_on(name: str) -> None:
    voxels = spheres(9, 8)
    most = max(
        8 * g.num_voxels for g in truth_tree(voxels.grid, [(2, 2, 2)] * 2, VAEConfig(**VARIANTS[name]).dilation)[1:]
    )
    model = model_of(name, seed=1, max_voxels=most, keep_ratio=100.0).train()
    with torch.no_grad():  # it wants everything
        for head in [*model.decoder.heads, *([model.decoder.root] if name == "modern" else [])]:
            assert isinstance(head, Head)
            yes = torch.tensor([10.0, -10.0]) if name == "official" else torch.full_like(head.out.bias, 10)
            head.out.bias.copy_(yes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(4):
        posterior, decoded = model(voxels)
        for decided in decoded.structure[:-1]:
            assert decided.candidates.num_voxels <= most
        optimizer.zero_grad()
        vae_losses(model, voxels, posterior, decoded, LossConfig(normal=1.0)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_the_cutoff_of_the_official_code_empties_what_explodes() -> None:
    options: dict[str, Any] = {"cutoff": 0.3, "box": (32, 32, 32), "keep": "predicted"}
    for fraction, survives in ((0.2, True), (0.4, False)):
        model = model_of("official", **options).train()
        candidates = Grid.full((-8, -8, -8), (8, 8, 8), voxel_size=2 * SIZE, origin=SIZE)
        predicted = torch.arange(candidates.num_voxels) < fraction * candidates.num_voxels
        real = torch.ones_like(predicted)
        keep = model.decoder.guided(candidates, predicted, real, 1)
        assert bool(keep.any()) == survives
        assert model.decoder.guided(candidates, predicted, real, 2).any()  # never at the latent resolution


def test_evaluation_never_sees_the_truth() -> None:
    model, voxels = model_of("modern").eval(), spheres(6)
    latents = model.encode(voxels).mode()
    with torch.no_grad():
        assert model.decode(latents, voxels.grid).voxels.grid.same_voxels(model.decode(latents).voxels.grid)


@pytest.mark.parametrize("name", ["modern", "official"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    voxels, gradients = spheres(6, 4), []
    for checkpointing in (False, True):
        model = model_of(name, checkpointing=checkpointing, keep="union").train()
        noise = torch.randn(model.latent_grid(voxels.grid).num_voxels, 4, generator=torch.Generator().manual_seed(0))
        posterior, decoded = model(voxels, noise)
        vae_losses(model, voxels, posterior, decoded, LossConfig()).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_bfloat16_autocast_keeps_losses_in_float32() -> None:
    model, voxels = model_of("modern").train(), spheres(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        posterior, decoded = model(voxels)
        losses = vae_losses(model, voxels, posterior, decoded, LossConfig())
    assert posterior.mean.dtype == decoded.structure[0].logits.dtype == losses.total.dtype == torch.float32
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# It learns


@pytest.mark.parametrize("name", ["modern", "official"])
def test_it_learns_a_shape_by_heart(name: str) -> None:
    model, voxels = model_of(name, keep="union").train(), spheres(9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config = LossConfig(structure=1.0, normal=0.3, kl=1e-4)
    for _ in range(60):
        posterior, decoded = model(voxels)
        optimizer.zero_grad()
        vae_losses(model, voxels, posterior, decoded, config).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        decoded = model.eval().decode(model.encode(voxels).mode())
    assert float(voxel_iou(decoded.voxels.grid, voxels.grid)) > 0.7


def test_the_inside_of_a_shape_is_learned_and_closes_its_shell() -> None:
    model, voxels = model_of("solid").train(), spheres(5.5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        posterior, decoded = model(voxels)
        losses = vae_losses(model, voxels, posterior, decoded, LossConfig(structure=1, solid=1, normal=1, kl=0))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.weights["solid-0"] == losses.weights["solid-1"] == 1
    model.eval()
    with torch.no_grad():
        # A shell that is found missing altogether, but not its inside.
        torch.nn.init.constant_(model.decoder.heads[0].get_parameter("out.bias"), -100)
        found = model.decode(model.encode(voxels).mode())
    decision = found.structure[0]
    assert decision.solid is not None
    assert not decision.predicted.any()
    inside = is_solid(decision.candidates, voxels.grid)
    assert ((decision.solid > 0) == inside).float().mean() > 0.9
    grid = found.voxels.grid  # one layer of voxels, where the shell of the sphere has up to two
    assert grid.num_voxels > 300
    assert voxels.grid.contains(grid.coords).float().mean() > 0.85
    core = Grid.full((-3, -3, -3), (3, 3, 3), voxel_size=grid.voxel_size, origin=grid.origin)
    assert is_solid(core, grid).all()  # it is closed


def test_lower_thresholds_keep_more_voxels() -> None:
    voxels, sizes = spheres(6), []
    for threshold in (0.8, 0.5, 0.2, 1e-6):
        model = model_of("modern", thresholds=(0.5, threshold, threshold)).eval()
        with torch.no_grad():
            found = model.decode(model.encode(voxels).mode())
        for decision, least in zip(found.structure, (0.5, threshold, threshold), strict=True):
            assert torch.equal(decision.predicted, decision.logits.sigmoid() > least)
            assert decision.grid.same_voxels(decision.candidates.prune(decision.predicted))
        sizes.append(found.structure[1].grid.num_voxels)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 8 * model.latent_grid(voxels.grid).num_voxels


def test_voxel_iou_counts_sets() -> None:
    a = Grid.from_coords(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]), batch_size=4)
    b = Grid.from_coords(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 2], [2, 0, 0, 0]]), batch_size=4)
    assert voxel_iou(a, b).tolist() == pytest.approx([1 / 3, 0, 0, 1])


def test_normal_angle_leaves_out_what_has_none() -> None:
    x, y, zero = torch.eye(3)[0], torch.eye(3)[1], torch.zeros(3)
    assert float(normal_angle(torch.stack([x, x, x]), torch.stack([x, y, zero]))) == pytest.approx(45.0, abs=0.1)


# Trees


@pytest.mark.parametrize("dilation", ["all", "latent", "none"])
def test_trees(dilation: Any) -> None:
    grid, strides = spheres(7).grid, [(2, 2, 2)] * 3
    tree, truth = pooling_tree(grid, strides, dilation), truth_tree(grid, strides, dilation)
    centers = grid.to_world(grid.ijk)
    for resolution in (1, 2, 3):
        size = SIZE * 2**resolution
        enclosing = Grid.from_points(centers, mode="enclosing", voxel_size=size, origin=size / 2)
        plain = Grid.from_points(centers, voxel_size=size, origin=size / 2)
        dilated = dilation == "all" or (dilation == "latent" and resolution == 3)
        assert tree[resolution].same_voxels(enclosing if dilated else plain)
        assert truth[resolution].same_voxels(enclosing if dilation == "all" else plain)
        assert tree[resolution].voxel_size == pytest.approx((size,) * 3)
    assert tree[0] is grid


# Bad input


def test_configs_go_through_plain_values() -> None:
    config = VAEConfig.official(strides=((2, 2, 1), (2, 2, 2)), dilation="none", channels=(8, 16, 32))
    assert VAEConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="VAEConfig has no field chanels; it has architecture, attention, "):
        VAEConfig.from_dict({"chanels": [1]})


@pytest.mark.parametrize(("changes", "message"), [
    ({"architecture": "paper"}, "architecture must be one of modern, official, got 'paper'"),
    ({"channels": ()}, "channels, latent_channels and hidden must be positive"),
    ({"strides": ((2, 2, 2),)}, "strides must be 2 triples for 3 resolutions"),
    ({"strides": ((2, 2, 1), (2, 2, 2))}, r"strides other than \(2, 2, 2\) need dilation 'none'"),
    ({"strides": ((0, 2, 2), (2, 2, 2))}, "strides must be 2 triples"),
    ({"voxel_size": 0.0}, "voxel_size must be one positive number or three, got 0.0"),
    ({"dense_neck": (0, 1, 1)}, "dense_neck must be three positive numbers"),
    ({"box": (16, 16)}, "box must be three positive numbers"),
    ({"num_labels": -1}, "num_labels and keep_ratio must not be negative"),
    ({"max_voxels": 0}, "max_voxels must be positive, got 0"),
    ({"cutoff": 0.3}, "cutoff needs architecture 'official', got 'modern'"),
    ({"cutoff": 0.3, "architecture": "official"}, "cutoff is a fraction of a box"),
    ({"solid": True, "architecture": "official"}, "solid needs architecture 'modern' and at least two resolutions"),
    ({"fill": True, "architecture": "official"}, "fill needs architecture 'modern', got 'official'"),
    ({"thresholds": (0.5, 0.5)}, r"thresholds must be 3 numbers in \(0, 1\), one per resolution, got \(0.5, 0.5\)"),
    ({"thresholds": (0.5, 0.5, 1.0)}, "thresholds must be 3 numbers"),
    ({"certain": 1.0}, r"certain must lie in \(0, 1\), got 1.0"),
    ({"bridge": 0.0}, r"bridge must lie in \(0, 1\), got 0.0"),
    ({"solid": True, "channels": (8,)}, "solid needs .*, got 'modern' and 1"),
])  # fmt: skip
def test_bad_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig(**changes)


def test_bad_input_is_named() -> None:
    model, voxels = model_of("modern"), spheres(6)
    with pytest.raises(KeyError, match=r"the model needs the attributes .*'normal'.*, got voxels without"):
        model.encode(Voxels(voxels.grid))
    with pytest.raises(ValueError, match=r"voxels must have voxel_size \(0.03125"):
        model.encode(Voxels(voxels.grid.coarsen(2)))
    with pytest.raises(ValueError, match="latents must have 4 channels, got 3"):
        model.decode(SparseTensor(voxels.grid, torch.zeros(voxels.num_voxels, 3)))
    with pytest.raises(ValueError, match=r"latents must have voxel_size \(0.125"):
        model.decode(SparseTensor(voxels.grid, torch.zeros(voxels.num_voxels, 4)))


def test_all_inputs_and_outputs() -> None:
    model = model_of("modern", num_labels=5, label_dim=3, intensity=True, color=True, fill=True).train()
    voxels = spheres(6, 4)
    n = voxels.num_voxels
    voxels = voxels.with_attributes(label=torch.arange(n) % 5, intensity=torch.rand(n, 1), color=torch.rand(n, 3))
    posterior, decoded = model(voxels)
    losses = vae_losses(model, voxels, posterior, decoded, LossConfig())
    assert set(losses.terms) == {"structure-0", "structure-1", "structure-2", "normal", "color", "fill", "label", "kl"}
    assert decoded.voxels.attributes["label"].shape == (decoded.voxels.num_voxels,)
    losses.total.backward()
    inputs = [model.encoder.featurizer.label.weight, model.encoder.featurizer.mix.weight]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in inputs)
    for pair in itertools.combinations(("label", "intensity", "color", "normal", "fill"), 4):
        with pytest.raises(KeyError, match="got voxels without"):
            model.encode(Voxels(voxels.grid, {name: voxels.attributes[name] for name in pair}))
