"""Dense volumes to grids. B grids, X Y Z voxels an axis."""

from torch import Tensor

from sparsevox import morton
from sparsevox.morton import Bricks
from sparsevox.ops import _checks, _library

_dense_bricks = _library.register(
    f"dense_bricks(Tensor mask, int[3] lower) -> {_library.BRICKS}",
    stem="dense",
    fake=lambda mask, lower: _library.fake_bricks(mask, mask.shape[0]),
)


def from_mask(mask: Tensor, lower: object) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel has the coordinates `lower`.

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If it does not have four axes, has more than 1024 items, or leaves [-2^17, 2^17).
    """
    _checks.booleans("mask", _checks.shape("mask", mask, "B", "X", "Y", "Z"))
    _checks.batch_size(mask.shape[0])
    first = _checks.int_triple("lower", lower)
    last = [a + size - 1 for a, size in zip(first, mask.shape[1:], strict=True)]
    if mask.numel() and (min(first) < morton.COORD_MIN or max(last) > morton.COORD_MAX):
        raise ValueError(
            f"the volume reaches from lower={tuple(first)} to {tuple(last)}, but coordinates lie in "
            f"[{morton.COORD_MIN}, {morton.COORD_MAX}]"
        )
    return Bricks(*_dense_bricks(mask.contiguous(), first))
