//! Weight matrices, packed once at load into the order in which the kernels read them.
//!
//! A linear layer's matrix has `outputs` rows of `inputs` values in the file. Packed, 64 outputs
//! form a panel, and within a panel two consecutive inputs of sixteen outputs form a [`Cell`]:
//! `[panel][input / 2][4 cells]`. One cache line then holds a cell of 16-bit values, and its even
//! and odd inputs are one shift or mask away. What is missing in the last panel and pair is 0.

use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};

use super::math::drop_small_bf16;
use super::memory::{Bf16Cell, F16Cell, F32Cell, Pages, Plain};
use super::share::each_part;
use super::simd::{LANES, Simd};
use super::team::Team;
use crate::engine::native::Precision;
use crate::engine::native::checkpoint::{Element, Tensor};
use crate::engine::native::error::LoadError;

/// Outputs in a panel.
pub(super) const PANEL: usize = 64;
/// Cells side by side in a panel.
pub(super) const CELLS: usize = PANEL / LANES;
/// Pairs of inputs that are packed for all outputs of a panel before the next ones: a cache's worth.
const PACKED_AT_ONCE: usize = 128;

/// Weights of sixteen outputs for two consecutive inputs.
pub(super) trait Cell: Plain + 'static {
    /// A weight as it is kept.
    type Weight: Copy + Default;
    /// The weights of the even input.
    fn even<S: Simd>(&self, s: S) -> S::V;
    /// The weights of the odd input.
    fn odd<S: Simd>(&self, s: S) -> S::V;
    /// Sets the weights of one output.
    fn set(&mut self, output: usize, even: Self::Weight, odd: Self::Weight);
    /// The weights of one output.
    fn get(&self, output: usize) -> [f32; 2];
}

impl Cell for Bf16Cell {
    type Weight = u16;

    #[inline(always)]
    fn even<S: Simd>(&self, s: S) -> S::V {
        s.even_bf16(&self.0)
    }

    #[inline(always)]
    fn odd<S: Simd>(&self, s: S) -> S::V {
        s.odd_bf16(&self.0)
    }

    fn set(&mut self, output: usize, even: u16, odd: u16) {
        self.0[2 * output] = even;
        self.0[2 * output + 1] = odd;
    }

    fn get(&self, output: usize) -> [f32; 2] {
        [self.0[2 * output], self.0[2 * output + 1]].map(|bits| bf16::from_bits(bits).to_f32())
    }
}

impl Cell for F16Cell {
    type Weight = u16;

    #[inline(always)]
    fn even<S: Simd>(&self, s: S) -> S::V {
        s.even_f16(&self.0)
    }

    #[inline(always)]
    fn odd<S: Simd>(&self, s: S) -> S::V {
        s.odd_f16(&self.0)
    }

    fn set(&mut self, output: usize, even: u16, odd: u16) {
        self.0[2 * output] = even;
        self.0[2 * output + 1] = odd;
    }

    fn get(&self, output: usize) -> [f32; 2] {
        [self.0[2 * output], self.0[2 * output + 1]].map(|bits| f16::from_bits(bits).to_f32())
    }
}

impl Cell for F32Cell {
    type Weight = f32;

    #[inline(always)]
    fn even<S: Simd>(&self, s: S) -> S::V {
        s.load(&self.0[0])
    }

    #[inline(always)]
    fn odd<S: Simd>(&self, s: S) -> S::V {
        s.load(&self.0[1])
    }

    fn set(&mut self, output: usize, even: f32, odd: f32) {
        self.0[0][output] = even;
        self.0[1][output] = odd;
    }

    fn get(&self, output: usize) -> [f32; 2] {
        [self.0[0][output], self.0[1][output]]
    }
}

/// A packed matrix of a linear layer, with its bias.
pub(in crate::engine::native) struct Matrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) panels: Panels,
    /// Whether inputs are rounded to BF16, as the weights are.
    pub(super) rounds: bool,
    /// One value an output, padded to whole panels.
    pub(super) bias: Option<Vec<f32>>,
}

/// The packed weights by type: `outputs / 64` panels of [`Matrix::panel_cells`].
pub(super) enum Panels {
    Bf16(Pages<Bf16Cell>),
    F16(Pages<F16Cell>),
    F32(Pages<F32Cell>),
}

impl Matrix {
    /// Packs the outputs of all parts, one part after the other. Parts of one type keep it; parts
    /// of several types become F32.
    ///
    /// # Errors
    /// No memory, or F16 weights that are not finite.
    pub(super) fn pack(
        team: &mut Team,
        parts: &[Tensor<'_>],
        inputs: usize,
        bias: Option<Vec<f32>>,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let mut rows = Vec::new();
        for part in parts {
            let bytes = (inputs * part.element.bytes()).max(1);
            rows.extend(part.data.chunks_exact(bytes).map(|row| (part.element, row)));
        }
        let outputs = rows.len();
        let element = parts.first().map_or(Element::F32, |part| part.element);
        let same = parts.iter().all(|part| part.element == element);
        let rounds = same && element == Element::Bf16 && precision == Precision::Weights;
        let panels = match element {
            Element::Bf16 if rounds => Panels::Bf16(pack(team, &rows, inputs, |_, row, to| {
                pack_row(row, to, |bytes| drop_small_bf16(u16::from_le_bytes(bytes)));
            })?),
            Element::Bf16 if same => Panels::Bf16(pack(team, &rows, inputs, |_, row, to| {
                pack_row(row, to, u16::from_le_bytes);
            })?),
            Element::F16 if same => {
                let finite = AtomicBool::new(true);
                let panels = pack(team, &rows, inputs, |_, row, to| pack_f16(row, to, &finite))?;
                if !finite.into_inner() {
                    return Err(parts[0].wrong(
                        "holds, or is packed with one that holds, an infinity or NaN",
                        "F16 weights must be finite",
                    ));
                }
                Panels::F16(panels)
            }
            _ => Panels::F32(pack(team, &rows, inputs, |element, row, to| match element {
                Element::F32 => pack_row(row, to, f32::from_le_bytes),
                Element::F16 => pack_row(row, to, |b| f16::from_le_bytes(b).to_f32()),
                Element::Bf16 => pack_row(row, to, |b| bf16::from_le_bytes(b).to_f32()),
            })?),
        };
        let bias = bias.map(|mut bias| {
            bias.resize(outputs.next_multiple_of(PANEL), 0.0);
            bias
        });
        Ok(Self { outputs, inputs, panels, rounds, bias })
    }

    /// Pairs of inputs.
    pub(super) fn pairs(&self) -> usize {
        self.inputs.div_ceil(2)
    }

    /// Cells of one panel.
    pub(super) fn panel_cells(&self) -> usize {
        self.pairs() * CELLS
    }

    /// The weights of one output, as floats.
    pub(super) fn row(&self, output: usize, to: &mut [f32]) {
        match &self.panels {
            Panels::Bf16(cells) => self.unpack(cells, output, to),
            Panels::F16(cells) => self.unpack(cells, output, to),
            Panels::F32(cells) => self.unpack(cells, output, to),
        }
    }

    fn unpack<C: Cell>(&self, cells: &[C], output: usize, to: &mut [f32]) {
        debug_assert!(output < self.outputs, "no such output");
        let (panel, column) = (output / PANEL, output % PANEL);
        let first = panel * self.panel_cells() + column / LANES;
        let column = cells[first..].iter().step_by(CELLS).map(|cell| cell.get(column % LANES));
        for (to, pair) in to.chunks_mut(2).zip(column) {
            to.copy_from_slice(&pair[..to.len()]);
        }
    }
}

/// The cells of one output within a stretch of a panel, and the output's place in them.
struct Column<'a, C> {
    cells: &'a mut [C],
    output: usize,
}

fn pack<C: Cell>(
    team: &mut Team,
    rows: &[(Element, &[u8])],
    inputs: usize,
    pack_row: impl Fn(Element, &[u8], Column<'_, C>) + Sync,
) -> Result<Pages<C>, LoadError> {
    let panel_cells = inputs.div_ceil(2) * CELLS;
    let panels = rows.len().div_ceil(PANEL);
    let count = panels.saturating_mul(panel_cells);
    let mut cells = Pages::zeroed(count).map_err(|source| LoadError::Memory {
        what: "packed weights",
        bytes: count.saturating_mul(size_of::<C>()),
        source,
    })?;
    let cuts: Vec<usize> = (0..=panels).map(|panel| panel * panel_cells).collect();
    each_part(team, usize::MAX, &mut cells, &cuts, |panel, cells| {
        let rows = &rows[panel * PANEL..rows.len().min((panel + 1) * PANEL)];
        for (stretch, cells) in cells.chunks_mut(PACKED_AT_ONCE * CELLS).enumerate() {
            for (column, (element, row)) in rows.iter().enumerate() {
                let pair = 2 * element.bytes();
                let from = stretch * PACKED_AT_ONCE * pair;
                let end = row.len().min(from + PACKED_AT_ONCE * pair);
                let cells = &mut cells[column / LANES..];
                pack_row(*element, &row[from..end], Column { cells, output: column % LANES });
            }
        }
    });
    Ok(cells)
}

/// Puts one output's weights, of `N` bytes each, into their cells.
#[inline(always)]
fn pack_row<C: Cell, const N: usize>(
    row: &[u8],
    to: Column<'_, C>,
    mut read: impl FnMut([u8; N]) -> C::Weight,
) {
    let (pairs, rest) = row.as_chunks::<N>().0.as_chunks::<2>();
    let mut cells = to.cells.iter_mut().step_by(CELLS);
    for ([even, odd], cell) in pairs.iter().zip(&mut cells) {
        cell.set(to.output, read(*even), read(*odd));
    }
    if let (Some(last), Some(cell)) = (rest.first(), cells.next()) {
        cell.set(to.output, read(*last), C::Weight::default());
    }
}

/// [`pack_row`] for F16, whose kernels do not know infinities and NaN.
fn pack_f16(row: &[u8], to: Column<'_, F16Cell>, finite: &AtomicBool) {
    const EXPONENT: u16 = 0x7c00;
    let mut good = true;
    pack_row(row, to, |bytes| {
        let bits = u16::from_le_bytes(bytes);
        good &= bits & EXPONENT != EXPONENT;
        bits
    });
    if !good {
        finite.store(false, Ordering::Relaxed);
    }
}
