//! Matrix products whose every output is one chain of fused multiply-adds over the inputs in order.
//!
//! The order of the chain is all that decides the bits of a result; cutting rows into tiles, inputs
//! into stretches (the partial sum is stored and taken up again) and outputs into tasks changes
//! nothing. That is why one row and many rows, alone or in a batch, give the same bits.

use std::ops::Range;

use super::math::{load, store};
use super::matrix::{CELLS, Cell, Matrix, PANEL, Panels};
use super::share::{Block, each_block, each_part};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Most rows of a tile.
const TILE: usize = 6;
/// Pairs of inputs that all tiles of a row block go through before the next pairs: the stretch of a
/// panel stays in the first-level cache.
const STRETCH: usize = 64;
/// Tiles that go through a task's panels together: their inputs stay in the second-level cache.
const TILES_AT_ONCE: usize = 42;
/// With more tiles than this, a task keeps to one stretch of inputs for all its panels.
const FEW_TILES: usize = 8;
/// Panels of a task where there are many tiles.
const PANELS_AT_ONCE: usize = 4;
/// Tasks for each thread, so that a thread that is held up gets fewer.
const TASKS_PER_THREAD: usize = 4;
/// Cells between the one that a single tile multiplies and the one it asks for.
const AHEAD: usize = 64;

/// The input rows of a product, packed so that a tile reads them in order.
///
/// Tiles one after the other; within a tile `[input][row of the tile]`, padded to whole pairs.
#[derive(Debug, Default)]
pub(super) struct PackedRows {
    data: Vec<f32>,
    /// First row of each tile, and the end.
    tiles: Vec<usize>,
    /// Where each tile starts in `data`, and the end.
    cuts: Vec<usize>,
}

impl PackedRows {
    fn pack(&mut self, team: &mut Team, x: &[f32], rows: usize, inputs: usize) {
        let padded = inputs.next_multiple_of(2);
        let count = rows.div_ceil(TILE);
        self.tiles.clear();
        // Tiles of nearly the same size: 7 rows become 3 and 4, not 6 and 1.
        self.tiles.extend((0..=count).map(|tile| tile * rows / count));
        self.cuts.clear();
        self.cuts.extend(self.tiles.iter().map(|row| row * padded));
        if self.data.len() < rows * padded {
            self.data.resize(rows * padded, 0.0);
        }
        each_part(team, rows * padded / 4, &mut self.data, &self.cuts, |tile, to| {
            let (first, end) = (self.tiles[tile], self.tiles[tile + 1]);
            pack_tile(&x[first * inputs..end * inputs], inputs, end - first, to);
        });
    }
}

fn pack_tile(x: &[f32], inputs: usize, rows: usize, to: &mut [f32]) {
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (to, x) in to[row..].iter_mut().step_by(rows).zip(x) {
            *to = *x;
        }
    }
    to[inputs * rows..].fill(0.0);
}

/// `out = x · matrixᵀ + bias` for `rows` rows; `x` has rows of `matrix.inputs`, `out` of
/// `matrix.outputs`.
pub(super) fn multiply(
    isa: Isa,
    team: &mut Team,
    packed: &mut PackedRows,
    (x, rows): (&[f32], usize),
    matrix: &Matrix,
    out: &mut [f32],
) {
    if rows == 0 {
        return;
    }
    packed.pack(team, x, rows, matrix.inputs);
    let all = matrix.outputs.div_ceil(PANEL);
    let most = if packed.tiles.len() > FEW_TILES { PANELS_AT_ONCE } else { all };
    let panels = (all / (team.threads() * TASKS_PER_THREAD)).clamp(1, most);
    let width = panels * PANEL;
    let work = rows * matrix.inputs * matrix.outputs / LANES;
    each_block(team, work, out, matrix.outputs, &[0, rows], width, |_, task, out| {
        let job = Job { packed, matrix, first_panel: task * panels };
        match &matrix.panels {
            Panels::Bf16(cells) => isa.run(Product { job, cells, out }),
            Panels::F16(cells) => isa.run(Product { job, cells, out }),
            Panels::F32(cells) => isa.run(Product { job, cells, out }),
        }
    });
}

#[derive(Clone, Copy)]
struct Job<'a> {
    packed: &'a PackedRows,
    matrix: &'a Matrix,
    first_panel: usize,
}

/// The product of all rows with the panels of one task.
struct Product<'a, C> {
    job: Job<'a>,
    cells: &'a [C],
    out: Block<'a>,
}

impl<C: Cell> Kernel for Product<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tiles = self.job.packed.tiles.len() - 1;
        let pairs = self.job.matrix.pairs();
        let panels = self.out.row(0).len().div_ceil(PANEL);
        if tiles == 1 {
            for panel in 0..panels {
                self.stretch::<S, CELLS>(s, 0..1, panel, 0..pairs);
            }
            return;
        }
        for first in (0..tiles).step_by(TILES_AT_ONCE) {
            let tiles = first..tiles.min(first + TILES_AT_ONCE);
            let stretches = pairs.div_ceil(STRETCH);
            for i in 0..stretches * panels {
                let (stretch, panel) = if tiles.len() > FEW_TILES {
                    (i / panels, i % panels)
                } else {
                    (i % stretches, i / stretches)
                };
                let from = stretch * STRETCH;
                let pairs = from..pairs.min(from + STRETCH);
                self.stretch::<S, 2>(s, tiles.clone(), panel, pairs);
            }
        }
    }
}

impl<C: Cell> Product<'_, C> {
    /// Takes all tiles through some pairs of one panel, asking for `P` cells ahead at each pair.
    #[inline(always)]
    fn stretch<S: Simd, const P: usize>(
        &mut self,
        s: S,
        tiles: Range<usize>,
        panel: usize,
        pairs: Range<usize>,
    ) {
        let packed = self.job.packed;
        let first_cell =
            ((self.job.first_panel + panel) * self.job.matrix.pairs() + pairs.start) * CELLS;
        let cells = &self.cells[first_cell..];
        let weights = &cells[..pairs.len() * CELLS].as_chunks::<CELLS>().0;
        for (i, tile) in tiles.enumerate() {
            let (row, rows) = (packed.tiles[tile], packed.tiles[tile + 1] - packed.tiles[tile]);
            let inputs = &packed.data[packed.cuts[tile]..packed.cuts[tile + 1]]
                [2 * pairs.start * rows..2 * pairs.end * rows];
            // One tile runs ahead of itself; of several, the first two fetch the next stretch.
            let ahead = match i {
                _ if P == CELLS => AHEAD,
                0 | 1 => weights.len() * (CELLS + 2 * i),
                _ => 0,
            };
            let place = Place { row, panel, starts: pairs.start == 0, ends: pairs.end };
            let step = Step { inputs, weights, cells, ahead };
            match rows {
                1 => self.tile::<S, 1, P>(s, step, place),
                2 => self.tile::<S, 2, P>(s, step, place),
                3 => self.tile::<S, 3, P>(s, step, place),
                4 => self.tile::<S, 4, P>(s, step, place),
                5 => self.tile::<S, 5, P>(s, step, place),
                _ => self.tile::<S, TILE, P>(s, step, place),
            }
        }
    }

    /// One tile through one stretch: as wide as the registers allow.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(
        &mut self,
        s: S,
        step: Step<'_, C>,
        place: Place,
    ) {
        if S::WIDE || R == 1 {
            self.columns::<S, R, CELLS, P>(s, step, place, 0);
        } else {
            for first in 0..CELLS {
                self.columns::<S, R, 1, P>(s, step, place, first);
            }
        }
    }

    /// `R` rows by `N` cells of outputs through one stretch.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const N: usize, const P: usize>(
        &mut self,
        s: S,
        step: Step<'_, C>,
        place: Place,
        first: usize,
    ) {
        let column = place.panel * PANEL + first * LANES;
        let mut sums = [[s.splat(0.0); N]; R];
        if !place.starts {
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = self.out.row(place.row + r);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = load(s, row, column + n * LANES);
                }
            }
        }
        let mut sums = chain::<S, C, R, N, P>(s, step, first, sums);
        if place.ends == self.job.matrix.pairs()
            && let Some(bias) = &self.job.matrix.bias
        {
            for n in 0..N {
                let bias = load(s, bias, self.job.first_panel * PANEL + column + n * LANES);
                for sums in &mut sums {
                    sums[n] = s.add(sums[n], bias);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let row = self.out.row(place.row + r);
            for (n, sum) in sums.iter().enumerate() {
                store(s, *sum, row, column + n * LANES);
            }
        }
    }
}

/// What a tile multiplies in one stretch.
#[derive(Clone, Copy)]
struct Step<'a, C> {
    /// `[pair][2][rows of the tile]`.
    inputs: &'a [f32],
    weights: &'a [[C; CELLS]],
    /// The weights and what follows them.
    cells: &'a [C],
    /// Cells from the start of the stretch to the first to ask for.
    ahead: usize,
}

/// Where a tile's outputs are.
#[derive(Clone, Copy)]
struct Place {
    /// The tile's first row.
    row: usize,
    panel: usize,
    /// Whether the sums start here.
    starts: bool,
    /// The pair before which the stretch ends.
    ends: usize,
}

/// The chains of `R` rows by `N` cells, continued through one stretch.
#[inline(always)]
fn chain<S: Simd, C: Cell, const R: usize, const N: usize, const P: usize>(
    s: S,
    step: Step<'_, C>,
    first: usize,
    mut sums: [[S::V; N]; R],
) -> [[S::V; N]; R] {
    let inputs = step.inputs.as_chunks::<R>().0.as_chunks::<2>().0;
    let mut ahead = step.ahead;
    for ([x_even, x_odd], cells) in inputs.iter().zip(step.weights) {
        for p in 0..P {
            s.prefetch(step.cells, ahead + p);
        }
        ahead += P;
        let mut even = [s.splat(0.0); N];
        for n in 0..N {
            even[n] = cells[first + n].even(s);
        }
        for r in 0..R {
            let x = s.splat(x_even[r]);
            for n in 0..N {
                sums[r][n] = s.fma(even[n], x, sums[r][n]);
            }
        }
        let mut odd = [s.splat(0.0); N];
        for n in 0..N {
            odd[n] = cells[first + n].odd(s);
        }
        for r in 0..R {
            let x = s.splat(x_odd[r]);
            for n in 0..N {
                sums[r][n] = s.fma(odd[n], x, sums[r][n]);
            }
        }
    }
    sums
}
