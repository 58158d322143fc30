"""Adding a matrix product to a large matrix on Hopper, in Gluon, which comes with Triton.

The sum is as large as its factors are thin: reading and writing it takes as long as multiplying.
Here two groups of warps take turns: one multiplies a tile, the other adds its tile to memory and
writes it. A third loads for both.
"""

# Gluon knows neither `enumerate` nor a star in a list.
# ruff: noqa: ANN001, ANN202, RUF005, SIM113
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from gwa_torch._triton import on

__all__ = ["add_tiles"]

# Triton 3.9 has other names for them.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

# Rows and columns of a tile of the sum, what is multiplied at a time, and how many of these wait in
# shared memory, which they fill: the fastest of twelve on an H200.
TILE = (128, 128)
DEPTH = 64
STAGES = 5

# The step of a product at which the tile of the sum is loaded.
SUM_STEP = 3

# Registers of a thread of the second group and of the loader; the first group has what is left.
REGISTERS = (224, 40)


@gluon.jit
def _load(factors, sums, work, sum_step):
    # Factors go round the stages; the tile of the sum goes to the group whose turn it is.
    a, b, a_room, b_room, ready, empty = factors
    out, out_room, out_ready, out_empty = sums
    tiles, across, steps = work
    rows: gl.constexpr = a.block_type.shape[0]
    depth: gl.constexpr = a.block_type.shape[1]
    columns: gl.constexpr = b.block_type.shape[1]
    stages: gl.constexpr = a_room.type.shape[0]
    i = 0
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row = (tile // across) * rows
        column = (tile % across) * columns
        group = count % 2
        for k in range(steps):
            stage = i % stages
            mbarrier.wait(empty.index(stage), ((i // stages) & 1) ^ 1)
            mbarrier.expect(ready.index(stage), a.block_type.nbytes + b.block_type.nbytes)
            load_tile(a, [row, k * depth], ready.index(stage), a_room.index(stage))
            load_tile(b, [k * depth, column], ready.index(stage), b_room.index(stage))
            i += 1
            if k == sum_step:
                mbarrier.wait(out_empty.index(group), ((count // 2) & 1) ^ 1)
                mbarrier.expect(out_ready.index(group), out.block_type.nbytes)
                load_tile(out, [row, column], out_ready.index(group), out_room.index(group))
        count += 1


@gluon.jit
def _multiply(factors, sums, turn, work, GROUP: gl.constexpr):
    # Every other tile. A group multiplies alone, and adds while the other one multiplies.
    a, b, a_room, b_room, ready, empty = factors
    out, out_room, out_ready, out_empty = sums
    tiles, across, steps = work
    rows: gl.constexpr = a.block_type.shape[0]
    columns: gl.constexpr = b.block_type.shape[1]
    stages: gl.constexpr = a_room.type.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16]
    )
    count = 0
    mine = out_room.index(GROUP)
    for tile in range(gl.program_id(0) + GROUP * gl.num_programs(0), tiles, gl.num_programs(0) * 2):
        row = (tile // across) * rows
        column = (tile % across) * columns
        i = (count * 2 + GROUP) * steps
        total = gl.zeros([rows, columns], gl.float32, layout)
        mbarrier.wait(turn.index(GROUP), (count & 1) ^ (1 - GROUP))
        for k in range(steps):
            stage = i % stages
            mbarrier.wait(ready.index(stage), (i // stages) & 1)
            begun = warpgroup_mma(
                a_room.index(stage), b_room.index(stage), total, is_async=True, use_acc=k > 0
            )
            # The product before this one is there, and its stage is free.
            total = warpgroup_mma_wait(1, deps=(begun,))
            mbarrier.arrive(empty.index((i + stages - 1) % stages), count=1, pred=k > 0)
            i += 1
        total = warpgroup_mma_wait(0, deps=(total,))
        mbarrier.arrive(empty.index((i + stages - 1) % stages), count=1)
        mbarrier.arrive(turn.index(1 - GROUP), count=1)
        mbarrier.wait(out_ready.index(GROUP), count & 1)
        total += mine.load(layout).to(gl.float32)
        mine.store(total.to(out.dtype))
        fence_async_shared()
        store_tile(out, [row, column], mine)
        tma.store_wait(0)
        mbarrier.arrive(out_empty.index(GROUP), count=1)
        count += 1


# One variant, the one that is tried first, whatever these numbers are.
@gluon.jit(do_not_specialize=["tiles", "across", "steps", "sum_step"])
def add_kernel(
    a, b, out, tiles, across, steps, sum_step, STAGES: gl.constexpr, REGISTERS: gl.constexpr
):
    # out (C, D) += a (C, n) times b (n, D); what is beyond an edge is loaded as 0 and not stored.
    a_room = gl.allocate_shared_memory(a.dtype, [STAGES] + a.block_type.shape, a.layout)
    b_room = gl.allocate_shared_memory(b.dtype, [STAGES] + b.block_type.shape, b.layout)
    out_room = gl.allocate_shared_memory(out.dtype, [2] + out.block_type.shape, out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    out_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    out_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    for group in gl.static_range(2):
        mbarrier.init(out_ready.index(group), count=1)
        mbarrier.init(out_empty.index(group), count=1)
        mbarrier.init(turn.index(group), count=1)
    factors = (a, b, a_room, b_room, ready, empty)
    sums = (out, out_room, out_ready, out_empty)
    work = (tiles, across, steps)
    gl.warp_specialize(
        [
            (_multiply, (factors, sums, turn, work, 0)),
            (_multiply, (factors, sums, turn, work, 1)),
            (_load, (factors, sums, work, sum_step)),
        ],
        [4, 1],
        REGISTERS,
    )


def add_tiles(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a (C, n) times b (n, D) to out (C, D), rounded once; rows begin at 16 bytes each."""
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[out.dtype]
    rows, columns = TILE
    shapes = ([rows, DEPTH], [DEPTH, columns], [rows, columns])
    described = [
        TensorDescriptor.from_tensor(x, shape, gl.NVMMASharedLayout.get_default_for(shape, kind))
        for x, shape in zip((a, b, out), shapes, strict=True)
    ]
    across = triton.cdiv(out.shape[1], columns)
    tiles = triton.cdiv(out.shape[0], rows) * across
    steps = triton.cdiv(a.shape[1], DEPTH)
    processors = torch.cuda.get_device_properties(out.device).multi_processor_count
    with on(out.device):
        add_kernel[(min(processors, tiles),)](
            *(*described, tiles, across, steps, min(SUM_STEP, steps - 1)),
            STAGES=STAGES,
            REGISTERS=REGISTERS,
            num_warps=4,
        )
