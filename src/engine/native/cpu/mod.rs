//! The CPU backend: what the forward pass does, on vectors and a team of threads.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod gemm;
mod inputs;
mod math;
mod matrix;
mod memory;
mod pool;
mod rowwise;
mod scalar;
mod share;
mod simd;
mod team;

use super::backend::{Attention, Backend, Geometry};
use super::checkpoint::{Rope, Tensor};
use super::error::LoadError;
use super::{Instructions, Precision, TILE_TOKENS};
use crate::engine::EngineError;
use crate::engine::model::{Batch, KvPool};
use inputs::PackedRows;
use matrix::Matrix;
use pool::Pool;
use simd::Isa;
use team::Team;

/// Rows of elementwise work that one task takes.
const ROWS_AT_ONCE: usize = 16;

/// This machine's CPU.
pub(super) struct Cpu {
    isa: Isa,
    precision: Precision,
    team: Team,
    geometry: Geometry,
    pool: Pool,
    packed: PackedRows,
    plan: Plan,
}

/// Activations: row-major.
#[derive(Debug)]
pub(super) struct Rows {
    data: Vec<f32>,
    width: usize,
    rows: usize,
}

impl Rows {
    /// Sets the number of rows; their content is then undefined. Keeps the memory.
    fn resize(&mut self, rows: usize) -> &mut [f32] {
        self.rows = rows;
        let len = rows * self.width;
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
        &mut self.data[..len]
    }

    fn values(&self) -> &[f32] {
        &self.data[..self.rows * self.width]
    }
}

/// What the operations have to know about the batch, kept from pass to pass.
#[derive(Debug, Default)]
struct Plan {
    /// Each row's position.
    positions: Vec<usize>,
    /// Each row's place in the pool: block, and token within it.
    slots: Vec<(usize, usize)>,
    /// Cosines and sines, `head_dim / 2` a row.
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// Blocks of all spans.
    table: Vec<usize>,
    attention: attention::Plan,
}

impl Cpu {
    pub(super) fn new(
        threads: usize,
        instructions: Instructions,
        precision: Precision,
        geometry: Geometry,
    ) -> Result<Self, LoadError> {
        let isa = Isa::detect(instructions).ok_or_else(|| LoadError::Option {
            option: "instructions",
            value: format!("{instructions:?}"),
            rule: "this CPU does not have them; use Best".to_owned(),
        })?;
        let team =
            Team::new(threads).map_err(|source| LoadError::Threads { count: threads, source })?;
        let pool = Pool::new(geometry)?;
        let (packed, plan) = (PackedRows::default(), Plan::default());
        Ok(Self { isa, precision, team, geometry, pool, packed, plan })
    }
}

/// Cuts rows into tasks.
fn row_cuts(rows: usize) -> Vec<usize> {
    (0..rows).step_by(ROWS_AT_ONCE).chain([rows]).collect()
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Rows = Rows;

    fn kv_pool(&self) -> Option<KvPool> {
        self.pool.shared()
    }

    fn matrix(
        &mut self,
        parts: &[Tensor<'_>],
        inputs: usize,
        bias: &[Tensor<'_>],
    ) -> Result<Matrix, LoadError> {
        let values = bias.iter().flat_map(Tensor::values).collect();
        let bias = if bias.is_empty() { None } else { Some(values) };
        Matrix::pack(&mut self.team, parts, inputs, bias, self.precision)
    }

    fn vector(&mut self, tensor: &Tensor<'_>) -> Result<Vec<f32>, LoadError> {
        Ok(tensor.values())
    }

    fn rows(&mut self, width: usize) -> Rows {
        Rows { data: Vec::new(), width, rows: 0 }
    }

    fn begin(&mut self, batch: &Batch, rope: &Rope) {
        let plan = &mut self.plan;
        plan.table.clear();
        plan.table.extend(batch.blocks.iter().map(|block| block.0 as usize));
        plan.positions.clear();
        plan.slots.clear();
        for span in &batch.spans {
            debug_assert_eq!(span.first_row, plan.positions.len(), "spans in row order");
            let table = &plan.table[span.first_block..][..span.blocks];
            for position in span.start..span.start + span.rows {
                let block = table[position / self.geometry.block_tokens];
                plan.positions.push(position);
                plan.slots.push((block, position % self.geometry.block_tokens));
            }
        }
        assert_eq!(plan.positions.len(), batch.tokens.len(), "spans cover the batch");
        let half = rope.half();
        plan.cosines.resize(plan.positions.len() * half, 0.0);
        plan.sines.resize(plan.positions.len() * half, 0.0);
        let rows = plan.cosines.chunks_exact_mut(half).zip(plan.sines.chunks_exact_mut(half));
        for (position, (cosines, sines)) in plan.positions.iter().zip(rows) {
            rope.fill(*position, cosines, sines);
        }
        plan.attention.prepare(batch);
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut Rows) {
        let width = out.width;
        let cuts = row_cuts(tokens.len());
        let work = tokens.len() * width;
        let out = out.resize(tokens.len());
        share::each_block(&mut self.team, work, out, width, &cuts, width, |part, _, mut out| {
            for (row, token) in tokens[cuts[part]..cuts[part + 1]].iter().enumerate() {
                table.row(*token as usize, out.row(row));
            }
        });
    }

    fn rms_norm(&mut self, x: &Rows, weight: &Vec<f32>, eps: f32, out: &mut Rows) {
        let width = x.width;
        let cuts = row_cuts(x.rows);
        let isa = self.isa;
        let (x, out) = (x.values(), out.resize(x.rows));
        let work = x.len() / TILE_TOKENS * 2;
        share::each_block(&mut self.team, work, out, width, &cuts, width, |part, _, out| {
            let x = &x[cuts[part] * width..cuts[part + 1] * width];
            isa.run(rowwise::RmsNorm { x, weight, eps, out });
        });
    }

    fn multiply(&mut self, x: &Rows, matrix: &Matrix, out: &mut Rows) {
        debug_assert_eq!((x.width, out.width), (matrix.inputs, matrix.outputs), "shapes");
        let rows = x.rows;
        let out = out.resize(rows);
        gemm::multiply(self.isa, &mut self.team, &mut self.packed, (x.values(), rows), matrix, out);
    }

    fn rotate_and_store(&mut self, layer: &Attention<Vec<f32>>, qkv: &mut Rows) {
        let (isa, plan, geometry) = (self.isa, &self.plan, &self.geometry);
        let (width, rows) = (qkv.width, qkv.rows);
        let cuts = row_cuts(rows);
        let half = geometry.head_dim / 2;
        let work = rows * width / TILE_TOKENS * 2;
        let data = &mut qkv.data[..rows * width];
        share::each_block(&mut self.team, work, data, width, &cuts, width, |part, _, qkv| {
            let range = cuts[part] * half..cuts[part + 1] * half;
            isa.run(rowwise::Rotate {
                qkv,
                geometry,
                layer,
                cosines: &plan.cosines[range.clone()],
                sines: &plan.sines[range],
            });
        });
        for (row, slot) in qkv.values().chunks_exact(width).zip(&plan.slots) {
            self.pool.store(layer.layer, *slot, &row[geometry.q_dim()..]);
        }
    }

    fn attend(&mut self, layer: &Attention<Vec<f32>>, qkv: &Rows, out: &mut Rows) {
        let (isa, plan, pool) = (self.isa, &self.plan, &self.pool);
        let stride = out.width;
        let out = out.resize(qkv.rows);
        let width = stride / self.geometry.kv_heads;
        let work = plan.attention.work() * stride / TILE_TOKENS;
        let cuts = plan.attention.cuts();
        share::each_block(&mut self.team, work, out, stride, cuts, width, |part, kv_head, out| {
            isa.run(attention::Attend {
                qkv: qkv.values(),
                qkv_width: qkv.width,
                pool,
                table: &plan.table,
                part: plan.attention.part(part),
                kv_head,
                layer: layer.layer,
                window: layer.window,
                out,
            });
        });
    }

    fn silu_mul(&mut self, gate_up: &Rows, out: &mut Rows) {
        let width = out.width;
        let isa = self.isa;
        let cuts = row_cuts(gate_up.rows);
        let (gate_up, out) = (gate_up.values(), out.resize(gate_up.rows));
        let work = out.len();
        share::each_block(&mut self.team, work, out, width, &cuts, width, |part, _, out| {
            let gate_up = &gate_up[2 * cuts[part] * width..2 * cuts[part + 1] * width];
            isa.run(rowwise::SiluMul { gate_up, out });
        });
    }

    fn add(&mut self, x: &mut Rows, delta: &Rows) {
        let width = x.width;
        let isa = self.isa;
        let cuts = row_cuts(x.rows);
        let (x, delta) = (&mut x.data[..delta.rows * width], delta.values());
        let work = x.len() / TILE_TOKENS;
        share::each_block(&mut self.team, work, x, width, &cuts, width, |part, _, x| {
            isa.run(rowwise::Add { x, delta: &delta[cuts[part] * width..cuts[part + 1] * width] });
        });
    }

    fn keep(&mut self, x: &mut Rows, rows: &[usize]) {
        for (to, from) in rows.iter().enumerate() {
            x.data.copy_within(from * x.width..(from + 1) * x.width, to * x.width);
        }
        x.rows = rows.len();
    }

    fn read<'a>(&mut self, x: &'a mut Rows) -> Result<&'a mut [f32], EngineError> {
        Ok(&mut x.data[..x.rows * x.width])
    }
}
