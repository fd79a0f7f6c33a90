//! Work that runs side by side on a GPU, one after the other here: in which order, and whether any order would do.

use std::ops::Range;

use super::{Queued, Schedule};
use crate::flow::philox::block;

/// The order of two branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All of the side branch, then all of the main one.
    SideFirst,
    /// The other way round.
    MainFirst,
    /// Operation by operation, by chance; the number seeds it.
    Mixed(u32),
}

impl Order {
    /// The order that goes with a schedule: each of [`Schedule::ALL`] has another one.
    pub fn of(schedule: Schedule) -> Self {
        match schedule {
            Schedule { seed: 0, late: false } => Self::SideFirst,
            Schedule { seed: 0, late: true } => Self::MainFirst,
            Schedule { seed, .. } => Self::Mixed(seed),
        }
    }
}

/// Two branches.
#[derive(Clone, Debug, Default)]
pub struct Fork {
    pub side: Vec<Queued>,
    pub main: Vec<Queued>,
    /// Whether the side branch was ended: what is queued now belongs to the main one.
    pub ended: bool,
}

impl Fork {
    pub fn push(&mut self, work: Queued) {
        if self.ended { self.main.push(work) } else { self.side.push(work) }
    }
}

/// An operation within forks.
#[derive(Debug)]
pub struct Leaf<'a> {
    pub work: &'a Queued,
    /// The forks it lies in, from the outermost, and whether it belongs to their side branch.
    forks: Vec<(*const Fork, bool)>,
}

impl Leaf<'_> {
    /// Whether the two lie in different branches of one fork.
    pub fn beside(&self, other: &Self) -> bool {
        self.forks.iter().any(|(fork, side)| other.forks.contains(&(*fork, !side)))
    }
}

/// The operations of a fork, forks within it included, in an order they may run in. `count` makes every fork's other.
pub fn ordered(fork: &Fork, order: Order, count: u32) -> Vec<Leaf<'_>> {
    let mut draws = Draws { seed: order, count, drawn: 0 };
    flatten(fork, &[], &mut draws)
}

fn flatten<'a>(fork: &'a Fork, outer: &[(*const Fork, bool)], draws: &mut Draws) -> Vec<Leaf<'a>> {
    let mut branch = |work: &'a [Queued], side: bool| {
        let mut leaves = Vec::new();
        let forks = [outer, &[(std::ptr::from_ref(fork), side)]].concat();
        for work in work {
            match work {
                Queued::Fork(inner) => leaves.extend(flatten(inner, &forks, draws)),
                work => leaves.push(Leaf { work, forks: forks.clone() }),
            }
        }
        leaves.into_iter()
    };
    let (mut side, mut main) = (branch(&fork.side, true), branch(&fork.main, false));
    let mut all = Vec::with_capacity(side.len() + main.len());
    while side.len() + main.len() > 0 {
        let take_side = match draws.seed {
            _ if main.len() == 0 => true,
            _ if side.len() == 0 => false,
            Order::SideFirst => true,
            Order::MainFirst => false,
            Order::Mixed(seed) => draws.below(seed, side.len() + main.len()) < side.len(),
        };
        all.extend(if take_side { side.next() } else { main.next() });
    }
    all
}

/// Random numbers for the order of one fork.
struct Draws {
    seed: Order,
    count: u32,
    drawn: u64,
}

impl Draws {
    fn below(&mut self, seed: u32, bound: usize) -> usize {
        self.drawn += 1;
        let [word, ..] = block(u64::from(seed), self.count, 0, self.drawn);
        word as usize % bound
    }
}

/// The device memory that an operation read and wrote.
#[derive(Clone, Debug, Default)]
pub struct Accesses {
    pub read: Vec<Range<u64>>,
    pub written: Vec<Range<u64>>,
}

impl Accesses {
    /// Sorts the ranges.
    pub fn sorted(mut self) -> Self {
        [&mut self.read, &mut self.written].into_iter().for_each(|ranges| ranges.sort_by_key(|range| range.start));
        self
    }

    /// The first byte that one of the two writes and the other touches.
    pub fn clash(&self, other: &Self) -> Option<u64> {
        let pairs = [(&self.written, &other.written), (&self.written, &other.read), (&self.read, &other.written)];
        pairs.into_iter().find_map(|(a, b)| common(a, b))
    }
}

/// The first byte in both of two sorted lists of ranges.
fn common(a: &[Range<u64>], b: &[Range<u64>]) -> Option<u64> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        let first = left.start.max(right.start);
        if first < left.end.min(right.end) {
            return Some(first);
        }
        if left.end <= right.end {
            a.next()
        } else {
            b.next()
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(from: u64) -> Queued {
        Queued::Copy { from, to: 0, bytes: 0 }
    }

    fn froms(leaves: &[Leaf<'_>]) -> Vec<u64> {
        leaves.iter().map(|leaf| if let Queued::Copy { from, .. } = leaf.work { *from } else { 0 }).collect()
    }

    /// Side 1, 2, 3 and main 10, (20 | 30), 40.
    fn nested() -> Fork {
        let inner = Fork { side: vec![copy(20)], main: vec![copy(30)], ended: true };
        Fork { side: vec![copy(1), copy(2), copy(3)], main: vec![copy(10), Queued::Fork(inner), copy(40)], ended: true }
    }

    #[test]
    fn branches_keep_their_own_order() {
        let fork = nested();
        assert_eq!(froms(&ordered(&fork, Order::SideFirst, 0)), [1, 2, 3, 10, 20, 30, 40]);
        assert_eq!(froms(&ordered(&fork, Order::MainFirst, 0)), [10, 30, 20, 40, 1, 2, 3]);
        let mixed: Vec<_> = (0..20).map(|count| froms(&ordered(&fork, Order::Mixed(5), count))).collect();
        for order in &mixed {
            let place = |value: u64| order.iter().position(|v| *v == value).unwrap();
            assert!([[1, 2], [2, 3], [10, 20], [10, 30], [20, 40], [30, 40]].iter().all(|[a, b]| place(*a) < place(*b)), "{order:?}");
        }
        assert!(mixed.windows(2).any(|pair| pair[0] != pair[1]), "every fork has an order of its own");
        assert_eq!(mixed[7], froms(&ordered(&fork, Order::Mixed(5), 7)), "the same again");
    }

    #[test]
    fn what_may_run_side_by_side() {
        let fork = nested();
        let leaves = ordered(&fork, Order::SideFirst, 0);
        let beside: Vec<_> = leaves.iter().map(|leaf| leaves.iter().filter(|other| leaf.beside(other)).count()).collect();
        assert_eq!(beside, [4, 4, 4, 3, 4, 4, 3]);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
    fn clashes() {
        let accesses = |read: &[Range<u64>], written: &[Range<u64>]| Accesses { read: read.to_vec(), written: written.to_vec() }.sorted();
        let a = accesses(&[0..8, 32..40], &[20..24, 8..16]);
        assert_eq!(a.clash(&accesses(&[0..8, 24..60], &[])), None, "both only read");
        assert_eq!(a.clash(&accesses(&[0..8], &[16..20, 24..32])), None, "side by side");
        assert_eq!(a.clash(&accesses(&[15..17], &[])), Some(15));
        assert_eq!(a.clash(&accesses(&[], &[39..40])), Some(39));
        assert_eq!(a.clash(&accesses(&[], &[0..64])), Some(8));
    }
}
