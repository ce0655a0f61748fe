//! Disjoint parts of one slice, each given to one task of a team.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use crate::engine::native::cpu::team::Team;

/// A pointer that tasks on several threads may hold.
struct Base<T>(*mut T);

// SAFETY: Tasks make slices of it only for parts that no other task gets (see the users below).
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// The pointer; as a method, so that closures capture all of `self`.
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Runs `task(i, data[cuts[i]..cuts[i + 1]])` for all parts, spread over the team
/// if there is enough `work` (see [`Team::run`]).
///
/// # Panics
/// If the cuts are not ascending or end beyond the data.
pub(in crate::engine::native::cpu) fn each_part<T: Send>(
    team: &mut Team,
    work: usize,
    data: &mut [T],
    cuts: &[usize],
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    assert!(cuts.is_sorted() && cuts.last().is_none_or(|end| *end <= data.len()), "bad cuts");
    let base = Base(data.as_mut_ptr());
    team.run(work, cuts.len().saturating_sub(1), |i| {
        // SAFETY: The cuts are ascending and within `data`, which is borrowed mutably for the
        // whole run, and the team runs each index once: no two tasks get the same value.
        let part = unsafe {
            std::slice::from_raw_parts_mut(base.get().add(cuts[i]), cuts[i + 1] - cuts[i])
        };
        task(i, part);
    });
}

/// A rectangle of a row-major matrix.
pub(in crate::engine::native::cpu) struct Block<'a> {
    base: *mut f32,
    stride: usize,
    rows: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

impl Block<'_> {
    /// One row of the rectangle.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub(in crate::engine::native::cpu) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "no such row");
        // SAFETY: `each_block` made this rectangle from within the matrix, and `&mut self` allows
        // one row at a time.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.stride), self.width) }
    }
}

/// Cuts a row-major matrix at `row_cuts` and every `width` columns, and runs
/// `task(part of rows, part of columns, block)` for all blocks, spread over the team
/// if there is enough `work` (see [`Team::run`]).
///
/// # Panics
/// If the cuts are not ascending or end beyond the data.
pub(in crate::engine::native::cpu) fn each_block(
    team: &mut Team,
    work: usize,
    data: &mut [f32],
    stride: usize,
    row_cuts: &[usize],
    width: usize,
    task: impl Fn(usize, usize, Block<'_>) + Sync,
) {
    let rows = row_cuts.last().copied().unwrap_or(0);
    assert!(width > 0 && stride > 0, "an empty block");
    assert!(row_cuts.is_sorted() && rows <= data.len() / stride, "bad cuts");
    let columns = stride.div_ceil(width);
    let base = Base(data.as_mut_ptr());
    team.run(work, row_cuts.len().saturating_sub(1) * columns, |i| {
        let (part, column) = (i / columns, i % columns);
        let (first, end) = (row_cuts[part], row_cuts[part + 1]);
        let from = column * width;
        let block = Block {
            // SAFETY: `first <= rows` and `from < stride`: inside `data` or, for an empty part at
            // the very end, at most one row past it and then never read.
            base: unsafe { base.get().add((first * stride + from).min(rows * stride)) },
            stride,
            rows: end - first,
            width: width.min(stride - from),
            // The team runs each index once, so no other task gets this rectangle, and `data` is
            // borrowed mutably for the whole run.
            matrix: PhantomData,
        };
        task(part, column, block);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_matrix_without_overlap() {
        let mut team = Team::new(3).unwrap();
        let (rows, stride) = (7, 10);
        let mut data = vec![0.0; rows * stride];
        each_block(
            &mut team,
            usize::MAX,
            &mut data,
            stride,
            &[0, 3, 3, 7],
            4,
            |part, column, mut block| {
                for row in 0..[3, 0, 4][part] {
                    for value in block.row(row) {
                        *value += (100 * part + column + 1) as f32;
                    }
                }
            },
        );
        for (i, value) in data.iter().enumerate() {
            let part = if i / stride < 3 { 0 } else { 2 };
            assert_eq!(*value, (100 * part + i % stride / 4 + 1) as f32, "{i}");
        }
    }

    #[test]
    fn parts_cover_a_slice_without_overlap() {
        let mut team = Team::new(2).unwrap();
        let mut data = vec![0_usize; 10];
        each_part(&mut team, usize::MAX, &mut data, &[0, 4, 4, 10], |i, part| {
            for value in part {
                *value += i + 1;
            }
        });
        assert_eq!(data, [1, 1, 1, 1, 3, 3, 3, 3, 3, 3]);
    }
}
