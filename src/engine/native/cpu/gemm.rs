//! Matrix products whose every output is one chain of fused multiply-adds over the inputs in order.
//!
//! The chain takes inputs in pairs, of each pair the odd one first, which is the order of the CPU's
//! own product of BF16 pairs. The order is all that decides the bits of a result; cutting rows into
//! tiles, inputs into stretches (the partial sum is stored and taken up again) and outputs into tasks
//! changes nothing. That is why one row and many rows, alone or in a batch, give the same bits.

use std::ops::Range;

use super::inputs::{Multiply, PackedRows, Tile};
use super::math::{load, store};
use super::matrix::{CELLS, Cell, Matrix, PANEL, Panels};
use super::memory::Bf16Cell;
use super::share::{Block, each_block};
use super::simd::{Bf16Pair, Isa, Kernel, LANES, Simd};
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
/// [`STRETCH`] where there are few rows and memory is the limit: the next stretch, which the tiles
/// fetch as they go, is then in the cache just in time, and little is fetched in vain.
const SHORT_STRETCH: usize = 128;
/// Cells between the one that a single tile multiplies and the one it asks for.
const AHEAD: usize = 64;

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
    let panels = if rows > FEW_ROWS { PANELS_AT_ONCE } else { 1 };
    let width = panels * PANEL;
    let work = rows * matrix.inputs * matrix.outputs / LANES;
    packed.cut(isa, rows, matrix.inputs);
    if let (Panels::Bf16(cells), Some(dots), true) = (&matrix.panels, isa.dots(), matrix.rounds) {
        let (inputs, tiles) = packed.pairs(team, x, matrix.inputs);
        return each_block(team, work, out, matrix.outputs, &[0, rows], width, |_, task, out| {
            let job = Job { inputs, tiles, matrix, first_panel: task * panels };
            dots.run(Product::<Bf16Pair, Bf16Cell> { job, cells, out });
        });
    }
    let (inputs, tiles) = packed.floats(team, x, matrix.inputs, matrix.rounds);
    each_block(team, work, out, matrix.outputs, &[0, rows], width, |_, task, out| {
        let job = Job { inputs, tiles, matrix, first_panel: task * panels };
        match &matrix.panels {
            Panels::Bf16(cells) => isa.run(Product { job, cells, out }),
            Panels::F16(cells) => isa.run(Product { job, cells, out }),
            Panels::F32(cells) => isa.run(Product { job, cells, out }),
        }
    });
}

struct Job<'a, I> {
    inputs: &'a [I],
    tiles: &'a [Tile],
    matrix: &'a Matrix,
    first_panel: usize,
}

/// The product of all rows with the panels of one task.
struct Product<'a, I, C> {
    job: Job<'a, I>,
    cells: &'a [C],
    out: Block<'a>,
}

impl<I: Multiply<C>, C: Cell> Kernel for Product<'_, I, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let all = self.job.tiles;
        let rows: usize = all.iter().map(|tile| tile.rows).sum();
        let pairs = self.job.matrix.pairs();
        let panels = self.out.row(0).len().div_ceil(PANEL);
        if rows <= FULL_WIDTH {
            for panel in 0..panels {
                self.stretch::<S>(s, all, panel, 0..pairs);
            }
            return;
        }
        let length = if rows > FEW_ROWS { STRETCH } else { SHORT_STRETCH };
        let stretches = pairs.div_ceil(length);
        for tiles in all.chunks((ROWS_AT_ONCE / S::TILE_ROWS).max(1)) {
            for i in 0..stretches * panels {
                let (stretch, panel) = if rows > FEW_ROWS {
                    (i / panels, i % panels)
                } else {
                    (i % stretches, i / stretches)
                };
                let from = stretch * length;
                self.stretch::<S>(s, tiles, panel, from..pairs.min(from + length));
            }
        }
    }
}

impl<I: Multiply<C>, C: Cell> Product<'_, I, C> {
    /// Takes all tiles through some pairs of one panel.
    #[inline(always)]
    fn stretch<S: Simd>(&mut self, s: S, tiles: &[Tile], panel: usize, pairs: Range<usize>) {
        let first_cell =
            ((self.job.first_panel + panel) * self.job.matrix.pairs() + pairs.start) * CELLS;
        let cells = &self.cells[first_cell..];
        let weights = cells[..pairs.len() * CELLS].as_chunks::<CELLS>().0;
        let (starts, ends) = (pairs.start == 0, pairs.end);
        for (nth, tile) in tiles.iter().enumerate() {
            let Tile { row, rows, start } = *tile;
            let inputs = &self.job.inputs[start + pairs.start * rows..start + pairs.end * rows];
            let place = Place { row, panel, nth, tiles: tiles.len(), starts, ends };
            let step = Step { inputs, weights, cells, ahead: AHEAD };
            match rows {
                1 => self.columns::<S, 1, CELLS>(s, step, place),
                2 if S::WIDE => self.columns::<S, 2, CELLS>(s, step, place),
                3 if S::WIDE => self.columns::<S, 3, CELLS>(s, step, place),
                4 if S::WIDE => self.columns::<S, 4, CELLS>(s, step, place),
                5 if S::WIDE => self.columns::<S, 5, CELLS>(s, step, place),
                6 if S::WIDE => self.columns::<S, 6, 2>(s, step, place),
                7 if S::WIDE => self.columns::<S, 7, 2>(s, step, place),
                8 if S::WIDE => self.columns::<S, 8, 2>(s, step, place),
                9 if S::WIDE => self.columns::<S, 9, 2>(s, step, place),
                10 if S::WIDE => self.columns::<S, 10, 2>(s, step, place),
                11 if S::WIDE => self.columns::<S, 11, 2>(s, step, place),
                12 if S::WIDE => self.columns::<S, 12, 2>(s, step, place),
                2 => self.columns::<S, 2, 1>(s, step, place),
                3 => self.columns::<S, 3, 1>(s, step, place),
                4 => self.columns::<S, 4, 1>(s, step, place),
                5 => self.columns::<S, 5, 1>(s, step, place),
                _ => unreachable!("tiles have at most S::TILE_ROWS rows"),
            }
        }
    }

    /// One tile through one stretch, `N` cells at a time, the most that the registers hold.
    ///
    /// The first two tiles fetch the next stretch, each its half, so that memory is read evenly.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const N: usize>(
        &mut self,
        s: S,
        mut step: Step<'_, I, C>,
        place: Place,
    ) {
        for first in (0..CELLS).step_by(N) {
            if N < CELLS {
                step.ahead = step.weights.len() * (CELLS + first);
            }
            match (place.nth, place.tiles) {
                (nth @ 0..2, 2..) if N == 2 => {
                    step.ahead += step.weights.len() * nth;
                    self.tile::<S, R, N, 1>(s, step, place, first);
                }
                (0, _) => self.tile::<S, R, N, N>(s, step, place, first),
                _ => self.tile::<S, R, N, 0>(s, step, place, first),
            }
        }
    }

    /// `R` rows by `N` cells of outputs through one stretch.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize, const P: usize>(
        &mut self,
        s: S,
        step: Step<'_, I, C>,
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
        let mut sums = chain::<S, I, C, R, N, P>(s, step, first, sums);
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
struct Step<'a, I, C> {
    /// `[pair][row of the tile]`.
    inputs: &'a [I],
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
    /// The how-manieth tile it is that goes through the stretch, and of how many.
    nth: usize,
    tiles: usize,
    /// Whether the sums start here.
    starts: bool,
    /// The pair before which the stretch ends.
    ends: usize,
}

/// The chains of `R` rows by `N` cells, continued through one stretch.
#[inline(always)]
fn chain<S: Simd, I: Multiply<C>, C: Cell, const R: usize, const N: usize, const P: usize>(
    s: S,
    step: Step<'_, I, C>,
    first: usize,
    mut sums: [[S::V; N]; R],
) -> [[S::V; N]; R] {
    let inputs = step.inputs.as_chunks::<R>().0;
    let mut ahead = step.ahead;
    for (inputs, cells) in inputs.iter().zip(step.weights) {
        for p in 0..P {
            s.prefetch(step.cells, ahead + p);
        }
        ahead += P;
        I::multiply(s, inputs, cells, first, &mut sums);
    }
    sums
}
