//! Which variant of a kernel a shape gets, where there are several: the list of all, a cost model on paper that picks one,
//! and [`Choices`], by which tests, benchmarks and users force one.
//!
//! The model counts cycles of a Hopper multiprocessor from what it can do at most; it knows nothing of what a GPU measured.
//! `cargo bench --bench kernels --features cuda -- --variants` times every variant at every shape beside the model's pick.

use super::abi::{ATTENTION_SM90_BARRIERS, ATTENTION_SM90_GROUP_QUERIES};
use crate::device::AttentionShape;

/// Variants that are forced, by name; `None` leaves the choice to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// For `attention`: a name of [`AttentionForward`], or [`PORTABLE`]. Calls of another head width are not touched.
    pub attention: Option<String>,
}

/// The name of the kernels for any GPU, in the place of a variant for Hopper.
pub const PORTABLE: &str = "portable";

/// The environment variable that forces a variant of `attention`.
const ATTENTION: &str = "LADD_FAST_ATTENTION";

impl Choices {
    /// What the environment variables say.
    pub fn from_environment() -> Self {
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { attention: value(ATTENTION) }
    }

    /// One variant of one operation of [`Backend`](crate::device::Backend); nothing where the operation has no variants.
    pub fn of(operation: &str, variant: &str) -> Self {
        let forced = |name: &str| (operation == name).then(|| variant.to_owned());
        Self { attention: forced("attention") }
    }

    /// The variant for a call of `attention` on a Hopper; `None` for the portable kernels.
    ///
    /// # Errors
    /// Names the variants there are when the forced one is not among them.
    pub fn attention(&self, shape: &AttentionShape, multiprocessors: u32) -> Result<Option<AttentionForward>, String> {
        let Some(name) = &self.attention else { return Ok(Some(AttentionForward::best(shape, multiprocessors))) };
        if name == PORTABLE {
            return Ok(None);
        }
        let Some(forced) = [64, 128].into_iter().flat_map(AttentionForward::all).find(|variant| variant.name() == *name) else {
            let names = [64, 128].map(|head_dim| variants("attention", head_dim).join(", ")).join(", ");
            return Err(format!("{ATTENTION}: there is no variant {name:?}; there are {PORTABLE}, {names}"));
        };
        let fits = forced.tile.head_dim as usize == shape.head_dim;
        Ok(Some(if fits { forced } else { AttentionForward::best(shape, multiprocessors) }))
    }
}

/// The names of an operation's variants for a head width on a Hopper; empty where there is no choice.
pub fn variants(operation: &str, head_dim: usize) -> Vec<String> {
    match operation {
        "attention" => AttentionForward::all(head_dim).map(AttentionForward::name).collect(),
        _ => Vec::new(),
    }
}

/// The name of the variant that an operation gets by default on a Hopper; `None` where there is no choice.
pub fn chosen(operation: &str, shape: &AttentionShape, multiprocessors: u32) -> Option<String> {
    let attention = operation == "attention" && !variants(operation, shape.head_dim).is_empty();
    attention.then(|| AttentionForward::best(shape, multiprocessors).name())
}

// ---- what a multiprocessor of a Hopper does in a cycle, at most ---------------------------------------------------------

/// Floating-point operations of the tensor cores, bf16 with fp32 sums.
const FLOPS: f64 = 4096.0;
/// Exponentials of the special-function units.
const EXPONENTIALS: f64 = 16.0;
/// Maxima, and pairs rounded to bf16: half the rate of multiply-adds.
const MAXIMA: f64 = 64.0;
/// Bytes from shared memory.
const SHARED_BYTES: f64 = 128.0;
/// Bytes from L2. Assumed: the A100's 5120 over all of an H100's 132 multiprocessors.
const L2_BYTES: f64 = 38.0;

// ---- what has to be assumed until a GPU tells, in cycles ----------------------------------------------------------------

/// Latencies in the chain of one tile of scores that nothing of the same warpgroup hides: barriers, shuffles, first results.
const CHAIN_LATENCY: f64 = 150.0;
/// A launch or a new block until its first products: barriers, first copies.
const BLOCK_START: f64 = 1500.0;
/// Between two pieces of work: results stored while nothing of the same warpgroup runs beside.
const PIECE: f64 = 300.0;
/// A second kernel that adds up the parts of cut tiles.
const COMBINE: f64 = 4000.0;

// ---- attention, forward -------------------------------------------------------------------------------------------------

/// A kernel of `kernels/attention_sm90.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionTile {
    /// Name of the function.
    pub kernel: &'static str,
    /// Head width.
    pub head_dim: u32,
    /// Consumer warpgroups, of 64 queries each.
    pub groups: u32,
    /// Keys of a tile.
    pub keys: u32,
    /// Tiles of keys, and of values, that shared memory holds.
    pub stages: u32,
    /// Whether the warpgroups queue their products in turns ("ping-pong").
    pub turns: bool,
    /// How many of eight exponentials are a polynomial.
    pub polynomial: u32,
    /// Instructions of a warp for a tile of keys, as nvcc 13.0 makes them: `tests/it/built.rs` counts them again.
    pub instructions: u32,
}

/// Every kernel there is; of equals the model takes the first. Not there, because on paper something else is always as good:
///
/// - 64 queries a block. Two such blocks fill a multiprocessor like one of 128 queries, and copy keys and values twice; what
///   finer tiles win where a grid is small, [`Work::Cut`] wins with larger ones.
/// - D = 64, less than 128 keys: the chain of a tile has its latencies more often, and the queries are read more often.
/// - D = 64, 160 keys and D = 128, 96 keys with three warpgroups: 160 registers a thread do not hold scores, probabilities and
///   results; ptxas spills 240 and 48 bytes, and serialises the products of the former.
/// - D = 128, 176 keys, two warpgroups: the results would have to leave through the queries' place, which then waits for them;
///   with 128 keys the tensor cores are what everything waits for already.
/// - A quarter of the exponentials by polynomial: two or three warps have more instructions than a scheduler issues meanwhile.
/// - Polynomials at D = 128: the tensor cores need twice the time of all exponentials.
#[rustfmt::skip]
pub const ATTENTION_TILES: [AttentionTile; 16] = [
    tile("attention_sm90_d64_q128_k128_turns", 64, [2, 128, 3], true, 0, 407),
    tile("attention_sm90_d64_q128_k128_turns_p1", 64, [2, 128, 3], true, 1, 472),
    tile("attention_sm90_d64_q128_k128", 64, [2, 128, 3], false, 0, 405),
    tile("attention_sm90_d64_q128_k128_p1", 64, [2, 128, 3], false, 1, 470),
    tile("attention_sm90_d64_q128_k176_turns", 64, [2, 176, 3], true, 0, 527),
    tile("attention_sm90_d64_q128_k176_turns_p1", 64, [2, 176, 3], true, 1, 616),
    tile("attention_sm90_d64_q128_k176", 64, [2, 176, 3], false, 0, 525),
    tile("attention_sm90_d64_q128_k176_p1", 64, [2, 176, 3], false, 1, 614),
    tile("attention_sm90_d64_q192_k128_turns", 64, [3, 128, 3], true, 0, 412),
    tile("attention_sm90_d64_q192_k128_turns_p1", 64, [3, 128, 3], true, 1, 477),
    tile("attention_sm90_d64_q192_k128", 64, [3, 128, 3], false, 0, 410),
    tile("attention_sm90_d64_q192_k128_p1", 64, [3, 128, 3], false, 1, 475),
    tile("attention_sm90_d128_q128_k128_turns", 128, [2, 128, 2], true, 0, 451),
    tile("attention_sm90_d128_q128_k128", 128, [2, 128, 2], false, 0, 449),
    tile("attention_sm90_d128_q192_k80_turns", 128, [3, 80, 3], true, 0, 338),
    tile("attention_sm90_d128_q192_k80", 128, [3, 80, 3], false, 0, 336),
];

const fn tile(
    kernel: &'static str,
    head_dim: u32,
    [groups, keys, stages]: [u32; 3],
    turns: bool,
    polynomial: u32,
    instructions: u32,
) -> AttentionTile {
    AttentionTile { kernel, head_dim, groups, keys, stages, turns, polynomial, instructions }
}

impl AttentionTile {
    /// Whether the model may choose it: see [`AttentionForward::best`].
    fn by_default(&self) -> bool {
        self.turns && self.polynomial == 0
    }

    /// Queries of a block.
    pub fn queries(&self) -> u32 {
        self.groups * ATTENTION_SM90_GROUP_QUERIES
    }

    /// Threads of a block: the producer's warpgroup and the consumers'.
    pub fn threads(&self) -> u32 {
        128 * (1 + self.groups)
    }

    /// Bytes of shared memory: queries and results on their way out, stages of keys and values, barriers.
    pub fn shared(&self) -> u32 {
        2 * self.head_dim * (2 * self.queries() + 2 * self.stages * self.keys) + ATTENTION_SM90_BARRIERS
    }

    /// Cycles from a warpgroup's scores of a tile to its next: product, maxima, exponentials, rounding, rescaled results.
    /// Its product with the values runs beside.
    fn chain(&self) -> f64 {
        let scores = f64::from(ATTENTION_SM90_GROUP_QUERIES * self.keys);
        let product = scores * f64::from(2 * self.head_dim) / FLOPS;
        let exponentials = scores * f64::from(8 - self.polynomial) / 8.0 / EXPONENTIALS;
        let results = f64::from(ATTENTION_SM90_GROUP_QUERIES * self.head_dim) / (2.0 * MAXIMA);
        product + scores / MAXIMA + exponentials + scores / 2.0 / MAXIMA + results + CHAIN_LATENCY
    }

    /// Cycles of a block for one tile of keys: whatever takes longest, and the shortest are hidden.
    fn step(&self) -> f64 {
        let [queries, keys, head_dim] = [self.queries(), self.keys, self.head_dim].map(f64::from);
        let products = 4.0 * queries * keys * head_dim / FLOPS;
        let exponentials = queries * keys * f64::from(8 - self.polynomial) / 8.0 / EXPONENTIALS;
        // Of each group: its queries, once a tile, and all keys and values.
        let shared = 2.0 * head_dim * (queries + 2.0 * keys * f64::from(self.groups)) / SHARED_BYTES;
        let l2 = 4.0 * keys * head_dim / L2_BYTES;
        // Each of the four schedulers has one warp of each group, and issues one instruction a cycle.
        let issue = f64::from(self.groups * self.instructions);
        [products, exponentials, shared, l2, issue, self.chain()].into_iter().fold(0.0, f64::max)
    }
}

/// How the tiles of queries are dealt to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A block for each.
    Blocks,
    /// One block a multiprocessor, which takes one after the other and copies the next while it finishes one.
    Persistent,
    /// The same, but tiles behind the last full round, and those of the round before it, are cut along the keys so that all
    /// blocks get as much; a second kernel adds up the parts.
    Cut,
}

impl Work {
    const ALL: [(Self, &'static str); 3] = [(Self::Persistent, "persistent"), (Self::Cut, "cut"), (Self::Blocks, "blocks")];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(work, _)| *work == self).map_or("", |(_, name)| name)
    }
}

/// A variant of `attention` on a Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionForward {
    /// The kernel.
    pub tile: &'static AttentionTile,
    /// How it is launched.
    pub work: Work,
}

/// What a variant makes of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Tiles of queries of a head.
    pub query_tiles: u64,
    /// Tiles of keys of a head.
    pub key_tiles: u64,
    /// Tiles of queries of all heads and samples.
    pub tiles: u64,
    /// How many of them, from the first, are not cut.
    pub whole: u64,
    /// Blocks of the launch.
    pub blocks: u64,
}

impl AttentionForward {
    /// Every variant for a head width.
    pub fn all(head_dim: usize) -> impl Iterator<Item = Self> {
        let tiles = ATTENTION_TILES.iter().filter(move |tile| tile.head_dim as usize == head_dim);
        tiles.flat_map(|tile| Work::ALL.map(|(work, _)| Self { tile, work }))
    }

    /// Such as `d64_q128_k128_turns.persistent`.
    pub fn name(self) -> String {
        format!("{}.{}", self.tile.kernel.trim_start_matches("attention_sm90_"), self.work.name())
    }

    /// What it makes of a shape, which has queries and keys.
    pub fn plan(self, shape: &AttentionShape, multiprocessors: u32) -> AttentionPlan {
        let query_tiles = shape.queries().div_ceil(self.tile.queries() as usize) as u64;
        let key_tiles = shape.keys().div_ceil(self.tile.keys as usize) as u64;
        let tiles = (shape.batch * shape.heads) as u64 * query_tiles;
        let device = u64::from(multiprocessors.max(1));
        let (whole, blocks) = match self.work {
            Work::Blocks => (tiles, tiles),
            Work::Persistent => (tiles, device.min(tiles)),
            Work::Cut if tiles.is_multiple_of(device) => (tiles, device),
            Work::Cut => ((tiles / device).saturating_sub(1) * device, device.min(tiles * key_tiles)),
        };
        AttentionPlan { query_tiles, key_tiles, tiles, whole, blocks }
    }

    /// Cycles that the model expects: those of the multiprocessor with the most work.
    pub fn cycles(self, shape: &AttentionShape, multiprocessors: u32) -> f64 {
        let plan = self.plan(shape, multiprocessors);
        let count = |n: u64| n as f64;
        let one = count(plan.key_tiles) * self.tile.step() + PIECE;
        // The first scores and the last product with values have nothing of the same warpgroup beside them.
        let ends = self.tile.chain() + BLOCK_START;
        match self.work {
            Work::Blocks => count(plan.tiles.div_ceil(u64::from(multiprocessors.max(1)))) * (one + ends),
            Work::Persistent => count(plan.whole.div_ceil(plan.blocks)) * one + ends,
            Work::Cut => {
                let steps = ((plan.tiles - plan.whole) * plan.key_tiles).div_ceil(plan.blocks);
                // A share begins and ends within tiles: one piece more than it is long.
                let pieces = if steps == 0 { 0 } else { steps.div_ceil(plan.key_tiles) + 1 };
                let cut = count(steps) * self.tile.step() + count(pieces) * PIECE;
                let combine = if steps == 0 { 0.0 } else { COMBINE };
                count(plan.whole / plan.blocks) * one + ends + cut + combine
            }
        }
    }

    /// The variant with the fewest cycles on paper, of those with turns and without polynomials. What turns are worth the model
    /// cannot tell, but others measured that it is more than they cost. Polynomials keep the rules of attention itself, but
    /// move roundings of whole training steps that the golden tests hold tight: until a GPU shows that they gain, they are
    /// taken only when forced.
    pub fn best(shape: &AttentionShape, multiprocessors: u32) -> Self {
        let candidates = Self::all(shape.head_dim).filter(|variant| variant.tile.by_default());
        let cost = |variant: &Self| variant.cycles(shape, multiprocessors);
        let best = candidates.min_by(|a, b| cost(a).total_cmp(&cost(b)));
        best.unwrap_or(Self { tile: &ATTENTION_TILES[0], work: Work::Persistent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(batch: usize, heads: usize, head_dim: usize, keys: usize) -> AttentionShape {
        AttentionShape { batch, heads, head_dim, image: keys - keys / 5, text: keys / 5, text_queries: true }
    }

    const LENGTHS: [usize; 7] = [1, 63, 129, 1178, 1357, 4250, 4429];
    const MULTIPROCESSORS: [u32; 4] = [1, 4, 114, 132];

    #[test]
    fn every_variant_fits_a_multiprocessor() {
        for tile in &ATTENTION_TILES {
            assert!(tile.shared() <= 227 << 10, "{}: {} bytes of shared memory", tile.kernel, tile.shared());
            assert!(tile.instructions > 4 * tile.keys / 2, "{}: {} instructions", tile.kernel, tile.instructions);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = [64, 128].into_iter().flat_map(|head_dim| variants("attention", head_dim)).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!((names.len(), all), (ATTENTION_TILES.len() * Work::ALL.len(), names.len()));
        assert!(variants("linear", 64).is_empty());
    }

    /// The blocks' pieces, as the kernel walks through them, cover every tile of keys of every tile of queries once, and a
    /// block has at most two that are not whole.
    #[test]
    fn plans_cover_everything_once() {
        for (keys, multiprocessors) in LENGTHS.into_iter().flat_map(|keys| MULTIPROCESSORS.map(|m| (keys, m))) {
            for variant in AttentionForward::all(64) {
                let shape = shape(1, 3, 64, keys);
                let plan = variant.plan(&shape, multiprocessors);
                let AttentionPlan { key_tiles, tiles, whole, blocks, query_tiles } = plan;
                assert!(blocks > 0 && whole <= tiles && tiles == 3 * query_tiles, "{}: {plan:?}", variant.name());
                assert!(whole == tiles || whole.is_multiple_of(blocks), "{}: {plan:?}", variant.name());
                let steps = (tiles - whole) * key_tiles;
                assert!(steps == 0 || steps >= blocks, "{}: {plan:?}", variant.name());
                let begin = |block: u64| block * steps / blocks;
                for step in 0..steps {
                    let block = ((step + 1) * blocks - 1) / steps;
                    assert!((begin(block)..begin(block + 1)).contains(&step), "{}: step {step} of {plan:?}", variant.name());
                }
            }
        }
    }

    #[test]
    fn the_model_takes_the_fewest_cycles_of_what_it_may() {
        for (keys, multiprocessors) in LENGTHS.into_iter().flat_map(|keys| MULTIPROCESSORS.map(|m| (keys, m))) {
            for (batch, heads, head_dim) in [(1, 24, 64), (1, 38, 64), (16, 24, 64), (2, 12, 128)] {
                let shape = shape(batch, heads, head_dim, keys);
                let best = AttentionForward::best(&shape, multiprocessors);
                assert_eq!((best.tile.head_dim as usize, best.tile.by_default()), (head_dim, true));
                for other in AttentionForward::all(head_dim).filter(|other| other.tile.by_default()) {
                    let cycles = [best, other].map(|variant| variant.cycles(&shape, multiprocessors));
                    assert!(cycles[0] <= cycles[1], "{} at {shape:?}: {cycles:?}", other.name());
                }
            }
        }
    }

    /// 38 heads of 1357 tokens make 418 tiles of 128 queries: 22 more than three rounds of 132.
    #[test]
    fn a_round_that_is_nearly_empty_is_cut() {
        let shape = shape(1, 38, 64, 1357);
        let cut = AttentionForward { tile: &ATTENTION_TILES[0], work: Work::Cut };
        let whole = AttentionForward { work: Work::Persistent, ..cut };
        let plan = cut.plan(&shape, 132);
        assert_eq!((plan.tiles, plan.whole, plan.blocks, plan.key_tiles), (418, 264, 132, 11));
        assert!(cut.cycles(&shape, 132) < whole.cycles(&shape, 132));
        assert_eq!(AttentionForward::best(&shape, 132).work, Work::Cut);
    }

    #[test]
    fn choices_are_per_operation_and_head_width() {
        let forced = Choices::of("attention", "d64_q192_k128.blocks");
        let found = forced.attention(&shape(1, 2, 64, 100), 132).unwrap().unwrap();
        assert_eq!((found.name().as_str(), found.work), ("d64_q192_k128.blocks", Work::Blocks));
        let other = shape(1, 2, 128, 100);
        assert_eq!(forced.attention(&other, 132), Ok(Some(AttentionForward::best(&other, 132))));
        assert_eq!(Choices::of("attention", PORTABLE).attention(&other, 132), Ok(None));
        assert_eq!(Choices::of("linear", "x"), Choices::default());
    }

    /// What the model chooses at the shapes of SD3, as docs/performance.md shows it.
    fn table() -> String {
        let mut lines = vec![
            "| B | heads | D | S | variant | tiles of queries | of them whole | tiles of keys | products' share, by the model |".to_owned(),
            "|--:|--:|--:|--:|---|--:|--:|--:|--:|".to_owned(),
        ];
        let models = [(1, 24, 64), (1, 38, 64), (4, 24, 64), (4, 38, 64), (16, 24, 64), (16, 38, 64), (1, 12, 128), (1, 19, 128)];
        for ((batch, heads, head_dim), keys) in models.into_iter().flat_map(|model| [1178, 1357, 4250, 4429].map(|keys| (model, keys))) {
            let shape = shape(batch, heads, head_dim, keys);
            let best = AttentionForward::best(&shape, 132);
            let AttentionPlan { tiles, whole, key_tiles, .. } = best.plan(&shape, 132);
            let floor = 4.0 * (batch * heads * keys * keys * head_dim) as f64 / FLOPS / 132.0;
            let (name, share) = (best.name(), 100.0 * floor / best.cycles(&shape, 132));
            let line = format!("| {batch} | {heads} | {head_dim} | {keys} | `{name}` | {tiles} | {whole} | {key_tiles} | {share:.0} % |");
            lines.push(line);
        }
        lines.join("\n")
    }

    #[test]
    fn the_documentation_shows_what_is_chosen() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
        let (page, table) = (std::fs::read_to_string(&path).unwrap(), table());
        let begin = page.find("| B | heads | D | S |").unwrap();
        let end = begin + page[begin..].find("\n\n").unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, [&page[..begin], &table, &page[end..]].concat()).unwrap();
        } else {
            assert!(page[begin..end] == table, "docs/performance.md is stale: run UPDATE_DOCS=1 cargo test the_documentation_shows");
        }
    }
}
