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

/// Most rows of a tile that is a whole panel wide.
const FULL_WIDTH: usize = 5;
/// Pairs of inputs that all tiles of a row block go through before the next pairs: the stretch of a
/// panel stays in the second-level cache.
const STRETCH: usize = 1024;
/// Rows that go through a task's panels together: their inputs stay in the second-level cache.
const ROWS_AT_ONCE: usize = 256;
/// With more rows than this, a task keeps to one stretch of inputs for all its panels.
const FEW_ROWS: usize = 64;
/// Panels of a task where there are many rows.
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
    fn pack(&mut self, isa: Isa, team: &mut Team, x: &[f32], rows: usize, inputs: usize) {
        let padded = inputs.next_multiple_of(2);
        let count = rows.div_ceil(isa.tile_rows());
        self.tiles.clear();
        // Tiles of nearly the same size: 13 rows become 6 and 7, not 12 and 1.
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
    packed.pack(isa, team, x, rows, matrix.inputs);
    let all = matrix.outputs.div_ceil(PANEL);
    let most = if rows > FEW_ROWS { PANELS_AT_ONCE } else { all };
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
        let rows = &self.job.packed.tiles;
        let tiles = rows.len() - 1;
        let all_rows = rows[tiles];
        let pairs = self.job.matrix.pairs();
        let panels = self.out.row(0).len().div_ceil(PANEL);
        if all_rows <= FULL_WIDTH {
            for panel in 0..panels {
                self.stretch::<S, CELLS>(s, 0..1, panel, 0..pairs);
            }
            return;
        }
        let stretches = pairs.div_ceil(STRETCH);
        let tiles_at_once = (ROWS_AT_ONCE / S::TILE_ROWS).max(1);
        for first in (0..tiles).step_by(tiles_at_once) {
            let tiles = first..tiles.min(first + tiles_at_once);
            for i in 0..stretches * panels {
                let (stretch, panel) = if all_rows > FEW_ROWS {
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
        let weights = cells[..pairs.len() * CELLS].as_chunks::<CELLS>().0;
        for tile in tiles.clone() {
            let (row, rows) = (packed.tiles[tile], packed.tiles[tile + 1] - packed.tiles[tile]);
            let inputs = &packed.data[packed.cuts[tile]..packed.cuts[tile + 1]]
                [2 * pairs.start * rows..2 * pairs.end * rows];
            let first = tile == tiles.start;
            let place = Place { row, panel, first, starts: pairs.start == 0, ends: pairs.end };
            let step = Step { inputs, weights, cells, ahead: AHEAD };
            match rows {
                1 => self.columns::<S, 1, CELLS, P>(s, step, place),
                2 if S::WIDE => self.columns::<S, 2, CELLS, P>(s, step, place),
                3 if S::WIDE => self.columns::<S, 3, CELLS, P>(s, step, place),
                4 if S::WIDE => self.columns::<S, 4, CELLS, P>(s, step, place),
                5 if S::WIDE => self.columns::<S, 5, CELLS, P>(s, step, place),
                6 if S::WIDE => self.columns::<S, 6, 2, 2>(s, step, place),
                7 if S::WIDE => self.columns::<S, 7, 2, 2>(s, step, place),
                8 if S::WIDE => self.columns::<S, 8, 2, 2>(s, step, place),
                9 if S::WIDE => self.columns::<S, 9, 2, 2>(s, step, place),
                10 if S::WIDE => self.columns::<S, 10, 2, 2>(s, step, place),
                11 if S::WIDE => self.columns::<S, 11, 2, 2>(s, step, place),
                12 if S::WIDE => self.columns::<S, 12, 2, 2>(s, step, place),
                2 => self.columns::<S, 2, 1, 1>(s, step, place),
                3 => self.columns::<S, 3, 1, 1>(s, step, place),
                4 => self.columns::<S, 4, 1, 1>(s, step, place),
                5 => self.columns::<S, 5, 1, 1>(s, step, place),
                _ => unreachable!("tiles have at most S::TILE_ROWS rows"),
            }
        }
    }

    /// One tile through one stretch, `N` cells at a time, the most that the registers hold.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const N: usize, const P: usize>(
        &mut self,
        s: S,
        mut step: Step<'_, C>,
        place: Place,
    ) {
        for first in (0..CELLS).step_by(N) {
            if N < CELLS {
                // Going through a tile's columns, the first tile fetches the next stretch.
                let next = step.weights.len() * (CELLS + first);
                step.ahead = if place.first { next } else { 0 };
            }
            self.tile::<S, R, N, P>(s, step, place, first);
        }
    }

    /// `R` rows by `N` cells of outputs through one stretch.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize, const P: usize>(
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
    /// Whether this is the first tile to go through the stretch.
    first: bool,
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
