//! The input rows of a matrix product, packed so that a tile reads them in order.

use super::math::round_bf16;
use super::matrix::{CELLS, Cell};
use super::memory::Bf16Cell;
use super::share::each_part;
use super::simd::{Bf16Pair, Isa, Simd};
use super::team::Team;

/// Two consecutive inputs of a row, as they are multiplied with a cell.
pub(super) trait Multiply<C>: Copy + Send + Sync {
    /// Continues the chains of `R` rows by `N` cells, of which `first` is the first.
    fn multiply<S: Simd, const R: usize, const N: usize>(
        s: S,
        inputs: &[Self; R],
        cells: &[C; CELLS],
        first: usize,
        sums: &mut [[S::V; N]; R],
    );
}

impl<C: Cell> Multiply<C> for [f32; 2] {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const N: usize>(
        s: S,
        inputs: &[Self; R],
        cells: &[C; CELLS],
        first: usize,
        sums: &mut [[S::V; N]; R],
    ) {
        let mut odd = [s.splat(0.0); N];
        for n in 0..N {
            odd[n] = cells[first + n].odd(s);
        }
        for r in 0..R {
            let x = s.splat(inputs[r][1]);
            for n in 0..N {
                sums[r][n] = s.fma(odd[n], x, sums[r][n]);
            }
        }
        let mut even = [s.splat(0.0); N];
        for n in 0..N {
            even[n] = cells[first + n].even(s);
        }
        for r in 0..R {
            let x = s.splat(inputs[r][0]);
            for n in 0..N {
                sums[r][n] = s.fma(even[n], x, sums[r][n]);
            }
        }
    }
}

impl Multiply<Bf16Cell> for Bf16Pair {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const N: usize>(
        s: S,
        inputs: &[Self; R],
        cells: &[Bf16Cell; CELLS],
        first: usize,
        sums: &mut [[S::V; N]; R],
    ) {
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.dot_bf16(&cells[first + n].0, inputs[r], sums[r][n]);
            }
        }
    }
}

/// Rows that a kernel multiplies together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// The first row.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Where the tile's inputs start: `[pair][row of the tile]`.
    pub(super) start: usize,
}

/// Packed input rows, kept from product to product: tiles one after the other.
#[derive(Debug, Default)]
pub(super) struct PackedRows {
    floats: Vec<[f32; 2]>,
    pairs: Vec<Bf16Pair>,
    tiles: Vec<Tile>,
    /// Where each tile starts, and the end.
    cuts: Vec<usize>,
}

impl PackedRows {
    /// Cuts rows into tiles for an instruction set.
    pub(super) fn cut(&mut self, isa: Isa, rows: usize, inputs: usize) {
        let pairs = inputs.div_ceil(2);
        let count = rows.div_ceil(isa.tile_rows());
        // Tiles of nearly the same size: 13 rows become 6 and 7, not 12 and 1.
        let first = |tile: usize| tile * rows / count;
        self.tiles.clear();
        self.tiles.extend((0..count).map(|tile| {
            let row = first(tile);
            Tile { row, rows: first(tile + 1) - row, start: row * pairs }
        }));
        self.cuts.clear();
        self.cuts.extend((0..=count).map(|tile| first(tile) * pairs));
    }

    /// Packs the rows of `x` as floats, rounded to BF16 if `rounds`.
    pub(super) fn floats(
        &mut self,
        team: &mut Team,
        x: &[f32],
        inputs: usize,
        rounds: bool,
    ) -> (&[[f32; 2]], &[Tile]) {
        let (tiles, cuts) = (&self.tiles, &self.cuts);
        if rounds {
            let pair = |x: [f32; 2]| x.map(|x| f32::from_bits(u32::from(round_bf16(x)) << 16));
            pack(team, x, inputs, tiles, cuts, &mut self.floats, pair);
        } else {
            pack(team, x, inputs, tiles, cuts, &mut self.floats, |x| x);
        }
        (&self.floats, tiles)
    }

    /// Packs the rows of `x`, rounded to BF16.
    pub(super) fn pairs(
        &mut self,
        team: &mut Team,
        x: &[f32],
        inputs: usize,
    ) -> (&[Bf16Pair], &[Tile]) {
        let (tiles, cuts) = (&self.tiles, &self.cuts);
        pack(team, x, inputs, tiles, cuts, &mut self.pairs, |x| x.map(round_bf16));
        (&self.pairs, tiles)
    }
}

fn pack<I: Copy + Default + Send>(
    team: &mut Team,
    x: &[f32],
    inputs: usize,
    tiles: &[Tile],
    cuts: &[usize],
    to: &mut Vec<I>,
    pair: impl Fn([f32; 2]) -> I + Sync,
) {
    let all = cuts.last().copied().unwrap_or(0);
    if to.len() < all {
        to.resize(all, I::default());
    }
    each_part(team, all / 2, to, cuts, |tile, to| {
        let Tile { row, rows, .. } = tiles[tile];
        for (column, x) in x[row * inputs..(row + rows) * inputs].chunks_exact(inputs).enumerate() {
            let (pairs, last) = x.as_chunks::<2>();
            let mut to = to[column..].iter_mut().step_by(rows);
            for (x, to) in pairs.iter().zip(&mut to) {
                *to = pair(*x);
            }
            if let (Some(x), Some(to)) = (last.first(), to.next()) {
                *to = pair([*x, 0.0]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::simd::Kernel;
    use super::*;
    use crate::engine::native::Instructions;

    /// Two rows by one column of cells, by [`Simd::dot_bf16`] or in floats.
    #[derive(Clone)]
    struct Chains {
        cells: Vec<[Bf16Cell; CELLS]>,
        rows: Vec<[Bf16Pair; 2]>,
        floats: bool,
    }

    impl Kernel for Chains {
        type Output = [[u32; 16]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut sums = [[s.splat(0.0)]; 2];
            for (cells, rows) in self.cells.iter().zip(&self.rows) {
                if self.floats {
                    let float = |bits: u16| f32::from_bits(u32::from(bits) << 16);
                    let rows = rows.map(|row| row.map(float));
                    Multiply::multiply(s, &rows, cells, 0, &mut sums);
                } else {
                    Multiply::multiply(s, rows, cells, 0, &mut sums);
                }
            }
            sums.map(|[sum]| {
                let mut lanes = [0.0; 16];
                s.store(sum, &mut lanes);
                lanes.map(f32::to_bits)
            })
        }
    }

    /// Random numbers of the widest range that BF16 products are made for, zeros among them.
    fn number(random: &mut u64) -> u16 {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let exponent = -52 + (*random >> 32) as i32 % 105;
        let sign = if *random & 1 == 0 { 1.0 } else { -1.0 };
        round_bf16(sign * (1.0 + (*random >> 40) as f32 / (1 << 24) as f32) * 2_f32.powi(exponent))
    }

    #[test]
    fn products_of_bf16_are_the_same_to_the_bit_by_any_instructions() {
        let mut random = 0x9e37_79b9_7f4a_7c15;
        println!("seed {random:#x}");
        for _ in 0..2000 {
            let mut next = || number(&mut random);
            let cells =
                (0..7).map(|_| [Bf16Cell(std::array::from_fn(|_| next())); CELLS]).collect();
            let rows = (0..7).map(|_| std::array::from_fn(|_| [next(), next()])).collect();
            let chains = Chains { cells, rows, floats: false };
            let want = Isa::detect(Instructions::Scalar).unwrap().run(chains.clone());
            for kind in [Instructions::Scalar, Instructions::Avx2, Instructions::Avx512] {
                let Some(isa) = Isa::detect(kind) else { continue };
                for floats in [false, true] {
                    assert_eq!(isa.run(Chains { floats, ..chains.clone() }), want, "{kind:?}");
                }
                if let Some(dots) = isa.dots() {
                    assert_eq!(dots.run(chains.clone()), want, "{kind:?}, its own product");
                }
            }
        }
    }
}
