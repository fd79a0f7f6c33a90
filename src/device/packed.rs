//! Moments of AdamW in few bits (after Dettmers et al., arXiv 2110.02861: a scale for each block of values). A block of 256
//! values keeps its largest magnitude in fp32; each value is a small float relative to it: the first moment in one byte, a
//! sign, four bits of exponent and three of fraction, the root of the second moment in two, four and twelve.
//!
//! Rounding is stochastic, or the slow decay of a moment, far below the distance of two codes, would never move it; the
//! random bits are Philox's, so every device and every resumed run rounds alike. The errors of `1 / (1 - beta)` steps add
//! up: at a `beta2` of 0.99 one byte for the second moment moves a weight's steps by a tenth, which two bytes do not.
//! The twin of `kernels/adamw.cu`.

/// Values that share a scale.
pub const PACK_BLOCK: usize = 256;

/// Blocks whose largest value is smaller are zero.
pub const LEAST_SCALE: f32 = 1e-36;

/// A kind of small float: an optional sign, four bits of exponent with bias 15, and the rest fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    signed: bool,
}

impl Packing {
    /// For first moments: one byte.
    pub const SIGNED: Self = Self { signed: true };
    /// For roots of second moments: two bytes.
    pub const UNSIGNED: Self = Self { signed: false };

    /// Bytes of a code.
    pub const fn bytes(self) -> usize {
        if self.signed { 1 } else { 2 }
    }

    const fn fraction_bits(self) -> u32 {
        if self.signed { 3 } else { 12 }
    }

    /// The largest code without its sign.
    const fn last(self) -> u32 {
        (16 << self.fraction_bits()) - 1
    }

    /// The largest number a code stands for; a block's scale does.
    pub const fn top(self) -> f32 {
        if self.signed { 1.875 } else { 1.999_755_9 }
    }

    /// The number a code stands for.
    #[inline(always)]
    pub fn decode(self, code: u16) -> f32 {
        // The exponent's bias becomes fp32's by an exact product, with which the codes below the smallest exponent agree.
        let magnitude = (u32::from(code) & self.last()) << (23 - self.fraction_bits());
        let number = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
        if self.signed && code > 127 { -number } else { number }
    }

    /// The code of a number whose magnitude is at most [`top`](Self::top): one of the two around it, by 16 random bits. What
    /// is not zero does not become zero where there is no sign: a step is divided by it.
    #[inline(always)]
    pub fn encode(self, number: f32, random: u32) -> u16 {
        let fraction = self.fraction_bits();
        let magnitude = number.abs();
        let smallest_normal = 1.0 / 16384.0;
        let code = if magnitude >= smallest_normal {
            ((magnitude.to_bits() + ((random << 7) >> fraction)) >> (23 - fraction)) - (112 << fraction)
        } else {
            let steps = f32::from_bits((127 + 14 + fraction) << 23);
            // Twelve bits and eleven: the sum is exact.
            (magnitude * steps + (random >> 5) as f32 * (1.0 / 2048.0)) as u32
        };
        let least = u32::from(!self.signed && magnitude > 0.0);
        let sign = if self.signed && number < 0.0 { 128 } else { 0 };
        (code.clamp(least, self.last()) | sign) as u16
    }

    /// Code `i` of a buffer, little-endian.
    #[inline(always)]
    pub fn read(self, codes: &[u8], i: usize) -> u16 {
        if self.signed { codes[i].into() } else { u16::from_le_bytes([codes[2 * i], codes[2 * i + 1]]) }
    }

    /// Writes code `i` of a buffer.
    #[inline(always)]
    pub fn write(self, codes: &mut [u8], i: usize, code: u16) {
        if self.signed {
            codes[i] = code as u8;
        } else {
            codes[2 * i..2 * i + 2].copy_from_slice(&code.to_le_bytes());
        }
    }

    /// What the numbers of codes are multiplied by, for a block's scale.
    #[inline(always)]
    pub fn unpack_factor(self, scale: f32) -> f32 {
        scale * (1.0 / self.top())
    }

    /// What values are multiplied by before they are encoded, for their largest magnitude.
    #[inline(always)]
    pub fn pack_factor(self, scale: f32) -> f32 {
        if scale >= LEAST_SCALE { self.top() / scale } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Packing; 2] = [Packing::SIGNED, Packing::UNSIGNED];

    #[test]
    fn codes_are_ordered_and_come_back_whatever_the_random_bits() {
        for kind in KINDS {
            let numbers: Vec<f32> = (0..=kind.last()).map(|code| kind.decode(code as u16)).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!((numbers[0], numbers[numbers.len() - 1]), (0.0, kind.top()));
            for random in [0, 1, 0x8000, 0xffff] {
                for (code, number) in numbers.iter().enumerate() {
                    assert_eq!(kind.encode(*number, random), code as u16, "{kind:?} {number:e}");
                }
            }
        }
        assert_eq!(Packing::SIGNED.decode(Packing::SIGNED.encode(-0.75, 9)), -0.75);
    }

    #[test]
    fn rounding_is_right_on_average() {
        for kind in KINDS {
            for number in [0.9_f32, 0.0371, 1.21e-4, 3.3e-5, 1.1e-6] {
                let codes = (0..1 << 16).map(|random| f64::from(kind.decode(kind.encode(number, random))));
                let mean = codes.sum::<f64>() / 65536.0;
                let step = f64::from(kind.decode(kind.encode(number, 0xffff)) - kind.decode(kind.encode(number, 0)));
                // Below the last step a code without a sign never is zero.
                let floor = if kind.signed { 0.0 } else { f64::from(kind.decode(1)) };
                assert!((mean - f64::from(number).max(floor)).abs() <= step / 1000.0, "{kind:?} {number:e}: {mean:e}");
            }
        }
    }

    #[test]
    fn only_zero_is_zero_without_a_sign() {
        assert_eq!(Packing::UNSIGNED.encode(0.0, 0xffff), 0);
        assert_eq!(Packing::UNSIGNED.encode(1e-30, 0), 1);
        assert_eq!(Packing::UNSIGNED.pack_factor(1e-37), 0.0);
    }

    #[test]
    fn the_scale_itself_comes_back() {
        for kind in KINDS {
            for scale in [1.0_f32, 3.7e-12, 8.9e20] {
                let code = kind.encode(scale * kind.pack_factor(scale), 0xffff);
                assert_eq!(u32::from(code), kind.last());
                approx::assert_relative_eq!(kind.decode(code) * kind.unpack_factor(scale), scale, max_relative = 1e-6);
            }
        }
    }
}
