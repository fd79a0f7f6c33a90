//! Masks to train inpainting with: strokes of a brush, boxes, and what lies outside of a window (outpainting). They are drawn at the
//! latent's resolution from Philox: the same (seed, step, sample) gives the same mask. Painted is 1, kept is 0.

use serde::{Deserialize, Serialize};

use crate::flow::philox::{stream, uniform_at};

/// A kind of mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskKind {
    /// A line of two to four pieces, as a brush leaves it: a sixth to a third of the smaller side wide.
    Stroke,
    /// A rectangle, each side of which is a quarter to three quarters of the picture's.
    Box,
    /// All but a window in a corner or along a side, of two fifths to three quarters of what it cuts.
    Outpaint,
}

impl MaskKind {
    /// All kinds, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Stroke, Self::Box, Self::Outpaint];

    /// The name in configurations and pictures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stroke => "stroke",
            Self::Box => "box",
            Self::Outpaint => "outpaint",
        }
    }
}

/// Uniform numbers for one sample's mask.
#[derive(Clone, Debug)]
pub struct Dice {
    seed: u64,
    step: u32,
    next: u64,
}

impl Dice {
    /// Numbers that one mask may use: samples have their own.
    const NUMBERS: u64 = 32;

    /// Those of one sample of a step.
    pub fn new(seed: u64, step: u32, sample: u64) -> Self {
        Self { seed, step, next: sample * Self::NUMBERS }
    }

    /// A number in (0, 1).
    fn uniform(&mut self) -> f32 {
        self.next += 1;
        uniform_at(self.seed, self.step, stream::MASKS, self.next - 1)
    }

    /// A number in (`from`, `to`).
    fn between(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * self.uniform()
    }

    /// A whole number in `from ..= to`.
    fn whole(&mut self, from: usize, to: usize) -> usize {
        (from + (self.uniform() * (to - from + 1) as f32) as usize).min(to)
    }

    /// One of several.
    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.whole(0, from.len() - 1)]
    }
}

/// Which positions of a latent, or which pixels of a picture, are painted.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 where it is painted, else 0; row by row.
    pub values: Vec<f32>,
}

impl Mask {
    fn from_fn(height: usize, width: usize, painted: impl Fn(usize, usize) -> bool) -> Self {
        let values = (0..height * width).map(|i| f32::from(u8::from(painted(i / width, i % width)))).collect();
        Self { height, width, values }
    }

    /// A random mask of one of `kinds`. It paints at least one position, and not all of a latent of 8 x 8 or more.
    ///
    /// # Panics
    /// When there are no kinds.
    pub fn draw(kinds: &[MaskKind], height: usize, width: usize, dice: &mut Dice) -> Self {
        match dice.choose(kinds) {
            MaskKind::Stroke => {
                let side = height.min(width) as f32;
                // Narrower ones could pass between the positions' centres.
                let radius = dice.between(side / 12.0, side / 6.0).max(0.75);
                let pieces = dice.whole(2, 4);
                let mut points = vec![(dice.between(0.0, height as f32), dice.between(0.0, width as f32))];
                for _ in 0..pieces {
                    let (y, x) = points[points.len() - 1];
                    let step =
                        |dice: &mut Dice, from: f32, side: usize| (from + dice.between(-0.5, 0.5) * side as f32).clamp(0.0, side as f32);
                    points.push((step(dice, y, height), step(dice, x, width)));
                }
                Self::stroke(height, width, &points, radius)
            }
            MaskKind::Box => {
                let share = |dice: &mut Dice, side: usize| {
                    let most = (side * 3 / 4).max(1);
                    dice.whole((side / 4).clamp(1, most), most)
                };
                let (rows, columns) = (share(dice, height), share(dice, width));
                let (top, left) = (dice.whole(0, height - rows), dice.whole(0, width - columns));
                Self::from_fn(height, width, |y, x| (top..top + rows).contains(&y) && (left..left + columns).contains(&x))
            }
            MaskKind::Outpaint => {
                let [cut_rows, cut_columns] = dice.choose(&[[true, false], [false, true], [true, true]]);
                let window = |dice: &mut Dice, cut: bool, side: usize| {
                    let kept =
                        if cut { ((dice.between(0.4, 0.75) * side as f32).round() as usize).clamp(1, (side - 1).max(1)) } else { side };
                    if dice.choose(&[false, true]) { 0..kept } else { side - kept..side }
                };
                // A side of one position cannot be cut.
                let (rows, columns) = (window(dice, cut_rows && height > 1, height), window(dice, cut_columns && width > 1, width));
                let whole = rows.len() == height && columns.len() == width;
                Self::from_fn(height, width, |y, x| whole || !(rows.contains(&y) && columns.contains(&x)))
            }
        }
    }

    /// Everything closer than `radius` to the line through `points`, `(y, x)`; positions are unit squares, their centres count.
    fn stroke(height: usize, width: usize, points: &[(f32, f32)], radius: f32) -> Self {
        let near = |y: f32, x: f32, (ay, ax): (f32, f32), (by, bx): (f32, f32)| {
            let (dy, dx) = (by - ay, bx - ax);
            let length = dy * dy + dx * dx;
            let along = if length > 0.0 { (((y - ay) * dy + (x - ax) * dx) / length).clamp(0.0, 1.0) } else { 0.0 };
            let (ey, ex) = (y - ay - along * dy, x - ax - along * dx);
            ey * ey + ex * ex <= radius * radius
        };
        Self::from_fn(height, width, |y, x| points.windows(2).any(|pair| near(y as f32 + 0.5, x as f32 + 0.5, pair[0], pair[1])))
    }

    /// The mask of a picture as a latent has it, `factor` pixels a position: painted where any of its pixels is.
    pub fn shrunk(&self, factor: usize) -> Self {
        let any = |y: usize, x: usize| {
            let mut pixels = (0..factor * factor).map(|i| (y * factor + i / factor) * self.width + x * factor + i % factor);
            pixels.any(|at| self.values[at] > 0.0)
        };
        Self::from_fn(self.height / factor, self.width / factor, any)
    }

    /// The mask of a latent as a picture has it.
    pub fn enlarged(&self, factor: usize) -> Self {
        Self::from_fn(self.height * factor, self.width * factor, |y, x| self.values[y / factor * self.width + x / factor] > 0.0)
    }

    /// Share that is painted.
    pub fn share(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mask: &Mask) -> Vec<String> {
        let letter = |v: &f32| if *v > 0.0 { '#' } else { '.' };
        mask.values.chunks(mask.width).map(|row| row.iter().map(letter).collect()).collect()
    }

    #[test]
    fn a_stroke_paints_what_is_near_its_line() {
        // Down the middle of column 1, then to the right along row 3.
        let mask = Mask::stroke(5, 6, &[(0.5, 1.5), (3.5, 1.5), (3.5, 4.5)], 0.75);
        assert_eq!(rows(&mask), [".#....", ".#....", ".#....", ".####.", "......"]);
        let dot = Mask::stroke(3, 3, &[(1.5, 1.5), (1.5, 1.5)], 1.0);
        assert_eq!(rows(&dot), [".#.", "###", ".#."]);
    }

    #[test]
    fn kinds_paint_the_shares_that_they_say() {
        for (kind, from, to) in [(MaskKind::Stroke, 0.01, 0.75), (MaskKind::Box, 1.0 / 16.0, 9.0 / 16.0), (MaskKind::Outpaint, 0.25, 0.86)]
        {
            let masks: Vec<Mask> = (0..300).map(|i| Mask::draw(&[kind], 16, 12, &mut Dice::new(3, 1, i))).collect();
            assert!(
                masks.iter().all(|m| (from..=to).contains(&m.share())),
                "{kind:?}: {:?}",
                masks.iter().map(Mask::share).collect::<Vec<_>>()
            );
            let mean = masks.iter().map(Mask::share).sum::<f32>() / 300.0;
            assert!((0.1..0.6).contains(&mean), "{kind:?}: {mean}");
            assert!(masks.iter().any(|m| m != &masks[0]));
        }
    }

    #[test]
    fn boxes_are_whole_and_windows_touch_an_edge() {
        for i in 0..100 {
            let mask = Mask::draw(&[MaskKind::Box], 8, 8, &mut Dice::new(1, 0, i));
            let painted: Vec<usize> = (0..64).filter(|at| mask.values[*at] > 0.0).collect();
            let span = |of: &dyn Fn(usize) -> usize| {
                painted.iter().map(|at| of(*at)).max().unwrap() - painted.iter().map(|at| of(*at)).min().unwrap() + 1
            };
            let (tall, wide) = (span(&|at| at / 8), span(&|at| at % 8));
            assert!(painted.len() == tall * wide && (2..=6).contains(&tall) && (2..=6).contains(&wide), "{:?}", rows(&mask));
            let mask = Mask::draw(&[MaskKind::Outpaint], 8, 8, &mut Dice::new(1, 0, i));
            let corners = [0, 7, 56, 63].iter().filter(|at| mask.values[**at] == 0.0).count();
            assert!([1, 2].contains(&corners), "{:?}", rows(&mask));
        }
    }

    #[test]
    fn masks_depend_on_seed_step_and_sample_alone() {
        let draw = |seed, step, sample| Mask::draw(&MaskKind::ALL, 8, 8, &mut Dice::new(seed, step, sample));
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        let others = [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)];
        assert!(others.iter().all(|other| *other != draw(1, 2, 3)));
    }

    #[test]
    fn every_size_has_masks() {
        for (height, width) in [(1, 1), (1, 5), (2, 2), (3, 1), (8, 8), (128, 96)] {
            for kind in MaskKind::ALL {
                for i in 0..30 {
                    let mask = Mask::draw(&[kind], height, width, &mut Dice::new(0, 0, i));
                    assert!(
                        mask.share() > 0.0 && (height.min(width) < 8 || mask.share() < 1.0),
                        "{kind:?} {height}x{width}: {:?}",
                        rows(&mask)
                    );
                }
            }
        }
    }

    #[test]
    fn pictures_and_latents_have_the_same_mask() {
        let mask = Mask { height: 4, width: 4, values: vec![0., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1.] };
        assert_eq!(rows(&mask.shrunk(2)), ["#.", ".#"]);
        assert_eq!(rows(&mask.shrunk(2).enlarged(2)), ["##..", "##..", "..##", "..##"]);
    }
}
