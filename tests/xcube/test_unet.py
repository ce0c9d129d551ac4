"""Denoisers: shapes of a batch do not see each other, volumes and voxels agree, conditions count, errors are named."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparsevox import Grid, SparseTensor, Voxels
from xcube.networks.conditions import Conditions, Text
from xcube.networks.configs import UNetConfig
from xcube.networks.space import Dense, Space, Sparse
from xcube.networks.unet import UNet, embedding_or_zero

FULL = UNetConfig(
    channels=8,
    multipliers=(1, 2),
    attention=(2,),
    heads=2,
    groups=4,
    position="embedded",
    normal=True,
    fill=True,
    num_labels=5,
    label_dim=3,
    extra=2,
    categories=3,
    text_channels=6,
)


def network(config: UNetConfig, seed: int = 0) -> UNet:
    """With weights that are all different, also where training begins at zero."""
    torch.manual_seed(seed)
    net = UNet(config).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.requires_grad_(False)


def shape(seed: int, count: int) -> Grid:
    generator = torch.Generator().manual_seed(seed)
    return Grid.from_coords(torch.randint(-6, 6, (count, 3), generator=generator), batch_size=1)


def some_conditions(grid: Grid, config: UNetConfig, seed: int) -> Conditions:
    """Everything that a network takes, for one shape."""
    generator = torch.Generator().manual_seed(seed)
    rows = grid.num_voxels
    values: dict[str, Any] = {
        "normal": torch.randn(rows, 3, generator=generator).double(),
        "fill": torch.rand(rows, generator=generator)
        .double()
        .sub(0.2)
        .clamp(min=0)
        .masked_fill(torch.rand(rows, generator=generator) < 0.2, -1),
        "label": torch.randint(-1, 5, (rows,), generator=generator),
        "extra": torch.randn(rows, 2, generator=generator).double(),
        "category": torch.randint(-1, 3, (1,), generator=generator),
        "text": Text(torch.randn(1, 2 + seed % 3, 6, generator=generator).double(), torch.ones(1, 2 + seed % 3) > 0),
    }
    return Conditions(**{name: values[name] for name in config.conditions})


def latents(grid: Grid, seed: int, channels: int = 4) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(grid, torch.randn(grid.num_voxels, channels, generator=generator).double())


OFFICIAL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "attention": (2,), "heads": 2, "groups": 4}
VARIANTS = {
    "modern": FULL,
    "modern without text": replace(FULL, text_channels=0),
    "official without text": replace(FULL, text_channels=0, architecture="official"),
    "official": UNetConfig.official(False, **OFFICIAL, normal=True, position="ijk"),
    "official with text": UNetConfig.official(False, **OFFICIAL, text_channels=6),
}


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_batch_gives_what_its_shapes_give_alone(name: str, sizes: list[int], seed: int) -> None:
    config, net = VARIANTS[name], network(VARIANTS[name])
    grids = [shape(seed + n, count) for n, count in enumerate(sizes)]
    parts = [latents(grid, seed + n) for n, grid in enumerate(grids)]
    conditions = [some_conditions(grid, config, seed + n) for n, grid in enumerate(grids)]
    times = torch.tensor([(seed * 7 + n * 131) % 1000 for n in range(len(sizes))])
    grid = Grid.stack(grids)
    together = net(SparseTensor(grid, torch.cat([p.feats for p in parts])), times, Conditions.stack(conditions))
    alone = [net(part, times[n : n + 1], conditions[n]).feats for n, part in enumerate(parts)]
    torch.testing.assert_close(together.feats, torch.cat(alone), rtol=1e-9, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["modern", "modern without text", "official without text"]),
    st.sampled_from([(2, 2, 2), (2, 4, 6)]),
    st.integers(1, 2),
)
def test_volumes_and_voxels_of_a_box_agree(name: str, half: tuple[int, int, int], batch: int) -> None:
    config = VARIANTS[name]
    grid = Grid.full([-h for h in half], list(half), batch_size=batch)
    x = latents(grid, 0)
    conditions = Conditions.stack([some_conditions(grid[b], config, b) for b in range(batch)])
    nets = [network(replace(config, dense=dense)) for dense in (False, True)]
    nets[1].skip_first = nets[0].skip_first  # that of the official networks differs
    states = [net(x, torch.arange(batch) * 500, conditions).feats for net in nets]
    torch.testing.assert_close(states[0], states[1], rtol=1e-8, atol=1e-8)


def test_both_spaces_do_the_same_as_torch_alone() -> None:
    """Their operations against formulas written out on a volume."""
    grid = Grid.full(-2, 2, batch_size=2)
    x, values = latents(grid, 0, 6), torch.randn(2, 12, dtype=torch.float64)
    volume = x.dense(-2, 2)
    scale, shift = values[:, :6, None, None, None], values[:, 6:, None, None, None]
    blocks = volume.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5, 7))
    tokens = volume.flatten(2).transpose(1, 2).unflatten(2, (2, 3)).transpose(1, 2)
    weights = (tokens @ tokens.transpose(2, 3) / 3**0.5).softmax(3)
    attended = (weights @ tokens).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (4, 4, 4))
    spaces: list[Space] = [Sparse("active"), Sparse("window"), Dense()]
    for space in spaces:
        field = space.from_sparse(x)
        rows = space.rows(field)
        found = {
            "modulate": (space.modulate(field, values), volume * (1 + scale) + shift),
            "down": (space.down(field), blocks),
            "up": (space.up(space.down(field), field), blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
                   .repeat_interleave(2, 4)),
            "cat": (space.cat(field, field), torch.cat([volume, volume], 1)),
            "attend": (space.replace(field, space.attend(field, rows, rows, rows, 2, None)), attended),
        }  # fmt: skip
        for name, (ours, expected) in found.items():
            ours = ours.dense() if isinstance(ours, SparseTensor) else ours
            torch.testing.assert_close(ours, expected, msg=name)
        assert torch.equal(space.to_sparse(field, x).feats, x.feats)


def test_absent_voxels_count_as_zero_or_not_at_all() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0], [0, 0, 1], [2, 0, 0]]))
    x = SparseTensor(grid, torch.tensor([[1.0], [3.0], [8.0]]))
    assert Sparse("active").down(x).feats.flatten().tolist() == [2.0, 8.0]
    assert Sparse("window").down(x).feats.flatten().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("dense", [False, True])
def test_texts_of_no_token_are_legal(dense: bool) -> None:
    config = replace(FULL, dense=dense, multipliers=(1,), attention=())
    net, grid = network(config), Grid.full(-1, 1, batch_size=2)
    text = Text(torch.randn(2, 3, 6).double(), torch.tensor([[True, True, False], [False, False, False]]))
    conditions = replace(Conditions.stack([some_conditions(grid[b], config, b) for b in range(2)]), text=text)
    result = net(latents(grid, 0), 10, conditions).feats
    assert bool(result.isfinite().all())
    other = Text(torch.where(text.mask[:, :, None], text.tokens, 1e6), text.mask)  # tokens that do not exist
    torch.testing.assert_close(net(latents(grid, 0), 10, replace(conditions, text=other)).feats, result)


def test_every_condition_counts() -> None:
    net, grid = network(FULL), shape(0, 40)
    x, conditions = latents(grid, 0), some_conditions(grid, FULL, 0)
    conditions = replace(conditions, category=torch.tensor([1]))
    before = net(x, 100, conditions).feats
    assert float((net(x, 101, conditions).feats - before).abs().max()) > 1e-6
    for name in FULL.conditions:
        dropped = conditions.drop(torch.tensor([True]), grid, [name])
        assert float((net(x, 100, dropped).feats - before).abs().max()) > 1e-6
        assert {n for n in FULL.conditions if getattr(dropped, n) is not getattr(conditions, n)} == {name}


def test_dropping_is_for_some_shapes_only() -> None:
    grid = Grid.stack([shape(0, 30), shape(1, 20), shape(2, 0)])
    conditions = Conditions.stack([some_conditions(part, FULL, n) for n, part in enumerate(grid)])
    dropped = conditions.drop(torch.tensor([False, True, True]), grid)
    first = int(grid.offsets[1])
    for name in ("normal", "fill", "label", "extra"):
        value, nothing = getattr(dropped, name), -1 if name in ("fill", "label") else 0
        assert torch.equal(value[:first], getattr(conditions, name)[:first])
        assert bool((value[first:] == nothing).all())
    assert dropped.category is not None
    assert dropped.category.tolist()[1:] == [-1, -1]
    assert dropped.text is not None
    assert conditions.text is not None
    assert dropped.text.mask.any(1).tolist() == [True, False, False]
    assert torch.equal(dropped.text.mask[0], conditions.text.mask[0])
    empty = Text(torch.full((1, 5, 6), 7.0).double(), torch.tensor([[True, True, False, False, False]]))
    replaced = conditions.drop(torch.tensor([False, True, False]), grid, ["text"], empty_text=empty).text
    assert replaced is not None
    assert replaced.mask.sum(1).tolist() == [2, 2, 4]
    assert bool((replaced.tokens[1][replaced.mask[1]] == 7).all())


def test_looking_up_nothing_gives_zero() -> None:
    table = torch.nn.Embedding(3, 2)
    found = embedding_or_zero(table, torch.tensor([-1, 2]))
    assert found.tolist() == [[0.0, 0.0], table.weight[2].tolist()]


def test_conditions_come_from_voxels_of_the_coarser_level() -> None:
    grid = shape(0, 30)
    voxels = Voxels(grid, {"normal": torch.randn(grid.num_voxels, 3), "color": torch.rand(grid.num_voxels, 3)})
    config = UNetConfig(normal=True)
    conditions = Conditions.from_voxels(voxels, config)
    assert conditions.names == ("normal",)
    assert conditions.normal is voxels.attributes["normal"]
    assert conditions.to("cpu").names == ("normal",)
    with pytest.raises(KeyError, match=r"needs the attributes \['normal', 'label'\], got voxels without \['label'\]"):
        Conditions.from_voxels(voxels, replace(config, num_labels=2))


def test_at_first_nothing_is_predicted_and_everything_learns() -> None:
    torch.manual_seed(0)
    for dense in (False, True):
        config = replace(FULL, dense=dense, checkpointing=True)
        net, grid = UNet(config), Grid.full(-2, 2, batch_size=2)
        conditions = Conditions.stack([some_conditions(grid[b], config, b) for b in range(2)])
        x = latents(grid, 0).to(torch.float32)
        assert not net(x, 10, conditions).feats.any()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):  # what begins at zero lets gradients through one after the other
            optimizer.zero_grad()
            functional.mse_loss(net(x, torch.tensor([10, 500]), conditions).feats, x.feats).backward()
            optimizer.step()
        still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


def test_recomputed_activations_give_the_same_gradients() -> None:
    grid = Grid.stack([shape(0, 40), shape(1, 30)])
    config = replace(FULL, architecture="official")
    conditions = Conditions.stack([some_conditions(part, config, n) for n, part in enumerate(grid)])
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        net = network(replace(config, checkpointing=checkpointing)).requires_grad_(True)
        net(latents(grid, 0), 300, conditions).feats.square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_autocast_is_near_float32() -> None:
    for dense in (False, True):
        config = replace(FULL, dense=dense)
        net, grid = network(config).float(), Grid.full(-2, 2)
        conditions, x = some_conditions(grid, config, 0), latents(grid, 0).to(torch.float32)
        exact = net(x, 10, conditions).feats
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x, 10, conditions).feats
        assert rough.dtype == torch.float32
        assert float((exact - rough).norm() / exact.norm()) < 0.1


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"channels": 0}, "channels must be at least 1, got 0"),
    ({"channels": 7, "heads": 7}, "channels must be even"),
    ({"multipliers": ()}, "multipliers must be positive"),
    ({"attention": (3,)}, "attention must hold powers of two"),
    ({"heads": 5}, "heads must divide the channels of layers with attention, 64, got 5"),
    ({"attention": (1,), "heads": 64}, "heads must divide the channels of layers with attention, 32, got 64"),
    ({"extra": -1}, "extra must be at least 0"),
    ({"position": "xyz"}, "position must be one of none, ijk, embedded, world, got 'xyz'"),
    ({"architecture": "paper"}, "architecture must be one of modern, official, got 'paper'"),
])  # fmt: skip
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**changes)


def test_configurations_become_plain_values_and_back() -> None:
    for config in VARIANTS.values():
        assert UNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("changes", "message"), [
    ({"text": None}, "conditions must be normal, text, as the model takes, got normal"),
    ({"category": torch.zeros(1, dtype=torch.long)}, "must be normal, text, as the model takes, got normal, category"),
    ({"normal": torch.zeros(3, 3)}, r"conditions.normal must have shape \[\d+, 3\], got \[3, 3\]"),
    ({"text": Text(torch.zeros(2, 1, 6), torch.ones(2, 1) > 0)}, r"conditions.text must have shape \[1, 1, 6\]"),
    ({"text": Text(torch.zeros(1, 1, 5), torch.ones(1, 1) > 0)}, r"conditions.text must have shape \[1, 1, 6\]"),
])  # fmt: skip
def test_conditions_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    config = UNetConfig(channels=8, multipliers=(1,), text_channels=6, normal=True)
    net, grid = UNet(config), shape(0, 20)
    given = replace(Conditions(torch.zeros(grid.num_voxels, 3), text=some_conditions(grid, FULL, 0).text), **changes)
    with pytest.raises(ValueError, match=message):
        net(latents(grid, 0).to(torch.float32), 0, given)


def test_classes_out_of_range_are_named() -> None:
    config = UNetConfig(channels=8, multipliers=(1,), num_labels=2, categories=2)
    net, grid = UNet(config), shape(0, 20)
    x, rows = latents(grid, 0), grid.num_voxels
    for label, category, message in (
        (2, 0, r"conditions.label must lie in \[-1, 2\), got 2 to 2"),
        (0, -2, r"conditions.category must lie in \[-1, 2\), got -2 to -2"),
    ):
        with pytest.raises(ValueError, match=message):
            net(x, 0, Conditions(label=torch.full((rows,), label), category=torch.tensor([category])))
    with pytest.raises(ValueError, match=r"conditions\.label must be integers, got torch\.float32"):
        net(x, 0, Conditions(label=torch.zeros(rows), category=torch.tensor([0])))


def test_latents_and_times_that_do_not_fit_are_named() -> None:
    net, grid = UNet(UNetConfig(channels=8, multipliers=(1,))), shape(0, 20)
    with pytest.raises(ValueError, match="x must have 4 channels, got 3"):
        net(latents(grid, 0, 3), 0)
    with pytest.raises(ValueError, match=r"t must have one entry, or one for each of 1 grids, got \[2\]"):
        net(latents(grid, 0), torch.zeros(2))
    dense = UNet(UNetConfig(channels=8, multipliers=(1, 1), dense=True))
    with pytest.raises(ValueError, match="x of a dense network must be on full boxes, all the same"):
        dense(latents(grid, 0), 0)
    boxes = Grid.stack([Grid.full(-1, 1), Grid.full(0, 2)])
    with pytest.raises(ValueError, match="x of a dense network must be on full boxes, all the same"):
        dense(latents(boxes, 0), 0)
    with pytest.raises(ValueError, match=r"edges of a box must be multiples of 2, got \[2, 2, 3\]"):
        dense(latents(Grid.full((0, 0, 0), (2, 2, 3)), 0).to(torch.float32), 0)


def test_bad_conditions_are_named() -> None:
    grid = shape(0, 5)
    with pytest.raises(ValueError, match=r"which must be bool \[1\], got torch.int64 \[1\]"):
        Conditions().drop(torch.zeros(1, dtype=torch.long), grid)
    with pytest.raises(ValueError, match=r"names must be among .*, got gloss"):
        Conditions().drop(torch.tensor([True]), grid, ["gloss"])
    with pytest.raises(ValueError, match="conditions must hold at least one element"):
        Conditions.stack([])
    with pytest.raises(ValueError, match="conditions must be the same ones in all batches"):
        Conditions.stack([Conditions(), Conditions(category=torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"mask bool \[B, S\], got \[1, 2, 3\] and torch.float32 \[1, 2\]"):
        Text(torch.zeros(1, 2, 3), torch.zeros(1, 2))
    two = Text(torch.zeros(2, 1, 6), torch.ones(2, 1) > 0)
    with pytest.raises(ValueError, match="empty_text must be one text, got 2"):
        Conditions(text=two[:1]).drop(torch.tensor([True]), grid, empty_text=two)
