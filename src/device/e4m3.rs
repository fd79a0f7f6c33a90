//! FP8 e4m3 (Micikevicius et al., arXiv 2209.05433): a sign, four bits of exponent with bias 7, three of fraction; 448 is the
//! largest number, there are no infinities, and all ones is not-a-number. The twin of `kernels/quantize.cu`.
//!
//! Rows of a matrix share a scale: its largest magnitude becomes 448. All of it is fp32 arithmetic, each operation rounded
//! by itself, so that every device has the same codes.

/// The largest number.
pub const LARGEST: f32 = 448.0;

/// Rows whose largest magnitude is smaller are zero, for 448 over it must not overflow.
pub const LEAST: f32 = 1e-30;

/// The code of what is no number.
const NAN: u8 = 0x7f;

/// The nearest code, of two equally near ones the even one; beyond 448, that of 448.
#[inline(always)]
pub fn encode(number: f32) -> u8 {
    let magnitude = number.abs();
    let bits = magnitude.to_bits();
    let code = if magnitude.is_nan() {
        return NAN;
    } else if magnitude >= LARGEST {
        u32::from(NAN) - 1
    } else if magnitude >= 1.0 / 64.0 {
        // Twenty bits of the fraction go; a carry may pass into the exponent, whose bias changes from 127 to 7.
        ((bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    } else {
        // Multiples of 1/512: the sum with 2^23 rounds to one. Eight of them are the first number with a full exponent.
        (magnitude * 512.0 + 8_388_608.0).to_bits() & 0xf
    };
    code as u8 | if number.is_sign_negative() { 0x80 } else { 0 }
}

/// The number a code stands for.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    if code & NAN == NAN {
        return f32::NAN;
    }
    // The exponent's bias becomes fp32's by an exact product, with which the codes below the smallest exponent agree.
    let magnitude = f32::from_bits(u32::from(code & NAN) << 20) * f32::from_bits((127 + 120) << 23);
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// What the numbers of a row are multiplied by before they are encoded, and what their codes' numbers are multiplied by, for
/// the row's largest magnitude.
#[inline(always)]
pub fn factor_and_scale(largest: f32) -> (f32, f32) {
    if largest >= LEAST { (LARGEST / largest, largest / LARGEST) } else { (0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value of a code by the format's definition.
    fn defined(code: u8) -> f64 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = if exponent == 0 { fraction * 2_f64.powi(-9) } else { (8.0 + fraction) * 2_f64.powi(exponent - 10) };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_code_is_what_the_format_says_and_comes_back() {
        for code in 0..=255_u8 {
            if code & 0x7f == 0x7f {
                assert!(decode(code).is_nan());
                continue;
            }
            assert_eq!(f64::from(decode(code)), defined(code), "{code:#x}");
            assert_eq!(encode(decode(code)), code, "{code:#x}");
        }
        assert_eq!(decode(0x7e), LARGEST);
    }

    #[test]
    fn numbers_between_two_codes_go_to_the_nearer_and_ties_to_the_even_one() {
        for code in 0..0x7e_u8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = (low + high) / 2.0;
            let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
            let even = if code % 2 == 0 { code } else { code + 1 };
            for (number, expected) in [(below, code), (middle, even), (above, code + 1)] {
                assert_eq!(encode(number), expected, "{number:e}");
                assert_eq!(encode(-number), expected | 0x80, "-{number:e}");
            }
        }
    }

    #[test]
    fn what_is_too_large_saturates_and_what_is_no_number_stays_none() {
        for number in [448.0, 448.1, 463.9, 464.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(number), encode(-number)), (0x7e, 0xfe), "{number:e}");
        }
        assert_eq!((encode(f32::NAN), encode(0.0), encode(-0.0), encode(1e-40)), (0x7f, 0, 0x80, 0));
    }

    #[test]
    fn a_row_of_zeros_has_a_scale() {
        assert_eq!(factor_and_scale(0.0), (0.0, 1.0));
        assert_eq!(factor_and_scale(1e-38), (0.0, 1.0));
        let (factor, scale) = factor_and_scale(LEAST);
        assert!(factor.is_finite() && scale > 0.0 && scale.is_normal());
        assert_eq!(factor_and_scale(448.0), (1.0, 1.0));
    }
}
