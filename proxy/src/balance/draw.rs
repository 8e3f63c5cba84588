//! Draws a position in proportion to weights, in constant time.

/// One part of a group: its positions, and how to draw one.
#[derive(Debug)]
pub(super) struct Part {
    /// The first position.
    pub(super) start: usize,
    /// How many there are.
    pub(super) length: usize,
    /// `None`: all weigh the same.
    table: Option<Box<[Column]>>,
}

/// A column of an alias table: below `own` it stands for itself, else for the other.
#[derive(Debug, Clone, Copy)]
struct Column {
    own: f32,
    other: u32,
}

impl Part {
    /// Positions from `start` on, with their weights.
    pub(super) fn new(start: usize, weights: &[u32]) -> Self {
        let even = weights.iter().all(|&weight| weight == weights[0]);
        Self { start, length: weights.len(), table: (!even).then(|| alias(weights)) }
    }

    /// Its positions.
    pub(super) fn positions(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.length
    }

    /// A position at random, by weight. There must be one.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        let column = rng.usize(..self.length);
        let drawn = match &self.table {
            None => column,
            Some(table) if rng.f32() < table[column].own => column,
            Some(table) => table[column].other as usize,
        };
        self.start + drawn
    }

    /// A position at random other than `first`, all alike. There must be one.
    pub(super) fn draw_other(&self, first: usize, rng: &mut fastrand::Rng) -> usize {
        let further = 1 + rng.usize(..self.length - 1);
        self.start + (first - self.start + further) % self.length
    }
}

/// Source: Vose, "A Linear Algorithm for Generating Random Numbers with a Given Distribution", IEEE
/// TSE 1991.
fn alias(weights: &[u32]) -> Box<[Column]> {
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mut scaled: Vec<f64> =
        weights.iter().map(|&weight| f64::from(weight) * weights.len() as f64 / sum).collect();
    let mut columns: Vec<Column> =
        (0..weights.len()).map(|index| Column { own: 1.0, other: index as u32 }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|&index| scaled[index] < 1.0);
    while let (Some(&less), Some(&more)) = (small.last(), large.last()) {
        small.pop();
        columns[less] = Column { own: scaled[less] as f32, other: more as u32 };
        scaled[more] -= 1.0 - scaled[less];
        if scaled[more] < 1.0 {
            large.pop();
            small.push(more);
        }
    }
    columns.into()
}
