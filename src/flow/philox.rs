//! Philox4x32-10 (Salmon et al., SC'11), counter-based random numbers: the same (seed, step, stream, element) gives the
//! same bits on every device and with every number of threads, so noise is drawn again where it is needed, never stored.
//!
//! The counter is (element / 4 low, element / 4 high, step, stream), the key is the seed; element `e` is lane `e % 4`.
//! Normals come from Box-Muller in f32 with nothing but `+ - * /`, `sqrt` and comparisons, each rounded once, so that a
//! GPU that does not contract multiply-adds draws the same bits.

/// Purposes of random numbers within one step; every purpose has a stream of its own.
pub mod stream {
    use crate::device::Stream;

    /// The student's time.
    pub const STUDENT_T: Stream = 1;
    /// The student's noise.
    pub const STUDENT_NOISE: Stream = 2;
    /// The discriminator's time.
    pub const RENOISE_T: Stream = 3;
    /// Noise on the student's predictions.
    pub const RENOISE_FAKE: Stream = 4;
    /// Noise on real latents; the mismatched and the perturbed group share it.
    pub const RENOISE_REAL: Stream = 5;
    /// The small perturbation of the approximate R1 penalty.
    pub const PERTURBATION: Stream = 6;
    /// The time to which ADD renoises the student's prediction for the teacher.
    pub const SCORE_T: Stream = 7;
    /// The noise of that.
    pub const SCORE_NOISE: Stream = 8;
    /// Added to all of the above in the discriminator's phase of alternating updates.
    pub const DISCRIMINATOR_PHASE: Stream = 16;
    /// Time in `pretrain`.
    pub const PRETRAIN_T: Stream = 32;
    /// Noise in `pretrain`.
    pub const PRETRAIN_NOISE: Stream = 33;
    /// Which captions `pretrain` drops.
    pub const CAPTION_DROPOUT: Stream = 34;
    /// Rounding of packed moments: this for the student's, one more for the heads'.
    pub const MOMENTS: Stream = 36;
    /// Order of the samples.
    pub const SHUFFLE: Stream = 35;
    /// Masks for inpainting.
    pub const MASKS: Stream = 38;
    /// Noise on the sources of pairs for editing, and which instruction each has.
    pub const PAIRS: Stream = 39;
    /// Noise a sampler starts from.
    pub const SAMPLER_START: Stream = 48;
    /// Fresh noise of the renoise sampler: this plus the number of the sampling step.
    pub const SAMPLER_RENOISE: Stream = 49;
    /// Sizes of the images of a synthesis.
    pub const IMAGE_SIZE: Stream = 37;
    /// Vectors of the word encoder.
    pub const WORDS: Stream = 998;
    /// Initial adapters: this plus the adapter's number.
    pub const ADAPTERS: Stream = 1 << 20;
    /// Initial weights: this plus the tensor's rank in alphabetical order.
    pub const PARAMETERS: Stream = 1000;
}

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The raw generator: a counter and a key to four random words.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The four words of elements `4 block` to `4 block + 3`.
#[inline(always)]
pub fn block(seed: u64, step: u32, stream: u32, block: u64) -> [u32; 4] {
    philox4x32([block as u32, (block >> 32) as u32, step, stream], [seed as u32, (seed >> 32) as u32])
}

/// A word as a number strictly between 0 and 1: the middle of one of 2^23 equal intervals, exact in f32.
#[inline(always)]
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// The uniform number of one element.
pub fn uniform_at(seed: u64, step: u32, stream: u32, element: u64) -> f32 {
    uniform(block(seed, step, stream, element / 4)[(element % 4) as usize])
}

/// The four standard normals of a block.
#[inline(always)]
pub fn normals(words: [u32; 4]) -> [f32; 4] {
    let [a, b] = box_muller(uniform(words[0]), uniform(words[1]));
    let [c, d] = box_muller(uniform(words[2]), uniform(words[3]));
    [a, b, c, d]
}

/// The standard normal of one element.
pub fn normal_at(seed: u64, step: u32, stream: u32, element: u64) -> f32 {
    normals(block(seed, step, stream, element / 4))[(element % 4) as usize]
}

/// Blocks that [`fill_normals`] computes side by side, so that the compiler vectorises the rounds.
const WIDE: usize = 16;

/// Fills `out` with the normals of elements `first ..`.
#[inline(always)]
pub fn fill_normals(seed: u64, step: u32, stream: u32, first: u64, out: &mut [f32]) {
    let mut element = first;
    let mut rest = out;
    while !rest.is_empty() {
        let lane = (element % 4) as usize;
        if lane == 0 && rest.len() >= 4 * WIDE {
            let (now, later) = rest.split_at_mut(4 * WIDE);
            wide_normals(seed, step, stream, element / 4, now);
            element += 4 * WIDE as u64;
            rest = later;
            continue;
        }
        let values = normals(block(seed, step, stream, element / 4));
        let count = (4 - lane).min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&values[lane..lane + count]);
        element += count as u64;
        rest = later;
    }
}

/// The normals of `WIDE` blocks from `first`: the same arithmetic as [`philox4x32`] and [`normals`], word by word.
#[inline(always)]
fn wide_normals(seed: u64, step: u32, stream: u32, first: u64, out: &mut [f32]) {
    let mut c = [[0; WIDE], [0; WIDE], [step; WIDE], [stream; WIDE]];
    for i in 0..WIDE {
        let block = first + i as u64;
        c[0][i] = block as u32;
        c[1][i] = (block >> 32) as u32;
    }
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..ROUNDS {
        let mut next = [[0; WIDE]; 4];
        for i in 0..WIDE {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0][i]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2][i]);
            next[0][i] = (b >> 32) as u32 ^ c[1][i] ^ key[0];
            next[1][i] = b as u32;
            next[2][i] = (a >> 32) as u32 ^ c[3][i] ^ key[1];
            next[3][i] = a as u32;
        }
        c = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let mut values = [[0.0; WIDE]; 4];
    for pair in [0, 2] {
        for i in 0..WIDE {
            let [even, odd] = box_muller(uniform(c[pair][i]), uniform(c[pair + 1][i]));
            values[pair][i] = even;
            values[pair + 1][i] = odd;
        }
    }
    for i in 0..WIDE {
        for word in 0..4 {
            out[4 * i + word] = values[word][i];
        }
    }
}

#[inline(always)]
fn box_muller(u1: f32, u2: f32) -> [f32; 2] {
    let radius = (-2.0 * ln(u1)).sqrt();
    let (cos, sin) = cos_sin_turn(u2);
    [radius * cos, radius * sin]
}

/// Natural logarithm of a number in (0, 1): `m 2^e` with m in [sqrt(1/2), sqrt 2), then the series of artanh.
#[inline(always)]
fn ln(u: f32) -> f32 {
    let shifted = u.to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let exponent = ((shifted >> 23) as i32 - 127) as f32;
    let f = f32::from_bits((shifted & 0x007f_ffff) + 0x3f35_04f3) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let mut q = 1.0 / 9.0;
    q = q * z + 1.0 / 7.0;
    q = q * z + 1.0 / 5.0;
    q = q * z + 1.0 / 3.0;
    q = q * z + 1.0;
    (2.0 * s) * q + exponent * std::f32::consts::LN_2
}

/// Cosine and sine of `2 pi u`, u in (0, 1): Taylor polynomials around the nearest quarter turn.
#[inline(always)]
fn cos_sin_turn(u: f32) -> (f32, f32) {
    let quarter = (4.0 * u + 0.5).floor();
    let a = (u - quarter * 0.25) * std::f32::consts::TAU;
    let a2 = a * a;
    let mut s: f32 = 1.0 / 362_880.0;
    s = s * a2 + -1.0 / 5040.0;
    s = s * a2 + 1.0 / 120.0;
    s = s * a2 + -1.0 / 6.0;
    s = s * a2 + 1.0;
    let sin = a * s;
    let mut c: f32 = -1.0 / 3_628_800.0;
    c = c * a2 + 1.0 / 40_320.0;
    c = c * a2 + -1.0 / 720.0;
    c = c * a2 + 1.0 / 24.0;
    c = c * a2 + -0.5;
    let cos = c * a2 + 1.0;
    // Quadrants 0 to 3 give (c, s), (-s, c), (-c, -s), (s, -c): a choice of polynomial and a choice of sign each.
    let quadrant = quarter as i32 & 3;
    let (first, second) = if quadrant & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let flip = |value: f32, condition: i32| f32::from_bits(value.to_bits() ^ ((condition as u32) << 31));
    (flip(first, ((quadrant + 1) >> 1) & 1), flip(second, quadrant >> 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn logarithm_and_circle_agree_with_the_standard_library() {
        for i in 0..20_000_u32 {
            let u = uniform(i.wrapping_mul(214_013).wrapping_add(7) << 5);
            let exact = f64::from(u).ln();
            assert!((f64::from(ln(u)) - exact).abs() <= 4e-7 * exact.abs().max(0.3), "ln({u})");
            let (cos, sin) = cos_sin_turn(u);
            let angle = f64::from(u) * std::f64::consts::TAU;
            assert!((f64::from(cos) - angle.cos()).abs() < 3e-7 && (f64::from(sin) - angle.sin()).abs() < 3e-7, "u = {u}");
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_gaussian() {
        let mut values = vec![0.0; 400_000];
        fill_normals(7, 3, stream::STUDENT_NOISE, 0, &mut values);
        let moment = |k: i32| values.iter().map(|v| f64::from(*v).powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.005 && (moment(2) - 1.0).abs() < 0.01 && moment(3).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.06);
    }

    #[test]
    fn wide_blocks_equal_single_ones_bit_for_bit() {
        for first in [0, 4, 1 << 34, (1 << 34) - 8] {
            let mut values = vec![0.0; 4 * WIDE * 2 + 6];
            fill_normals(u64::MAX - 5, 9, 17, first, &mut values);
            for (i, value) in values.iter().enumerate() {
                assert_eq!(value.to_bits(), normal_at(u64::MAX - 5, 9, 17, first + i as u64).to_bits());
            }
        }
    }

    #[test]
    fn any_offset_continues_the_same_sequence() {
        let mut whole = vec![0.0; 64];
        fill_normals(1, 2, 3, 0, &mut whole);
        for first in 0..9 {
            let mut part = vec![0.0; 31];
            fill_normals(1, 2, 3, first as u64, &mut part);
            assert_eq!(part, whole[first..first + 31]);
            assert_eq!(normal_at(1, 2, 3, first as u64), whole[first]);
        }
        assert_ne!(normal_at(1, 2, 3, 1 << 40), normal_at(1, 2, 3, 0));
    }
}
