//! How well pictures of (style, object) pairs are drawn, such as "noto style red apple", pairs that were trained on or not.
//!
//! A drawn picture is compared with true ones, all reduced to 16 x 16 means of red, green and blue, by the root mean square
//! difference, 0 to 1. Three questions: is the true picture of the pair the nearest among all objects of the style (object
//! accuracy), among all styles of the object (style accuracy), and how far is it (error)? Beside the error stand two that need no
//! network: that of another object of the style, which is chance, and that of the object in another style, which is what copying
//! would give.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Side of a reduced picture.
const SIDE: usize = 16;
/// What stands between style and object in a caption.
const BETWEEN: &str = " style ";

/// The true pictures of all pairs.
#[derive(Clone, Debug)]
pub struct Gallery {
    pairs: Vec<(String, String)>,
    pictures: Vec<Vec<f32>>,
    shape: [usize; 3],
}

/// What drawn pictures of some pairs are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairQuality {
    /// Pairs that were drawn.
    pub count: usize,
    /// Share of the drawn pictures that are nearer to their object than to any other of the style.
    pub object_accuracy: f64,
    /// What guessing would give.
    pub object_chance: f64,
    /// Share of the drawn pictures that are nearer to their style than to any other of the object.
    pub style_accuracy: f64,
    /// What guessing would give.
    pub style_chance: f64,
    /// Mean distance to the true picture.
    pub error: f64,
    /// Mean distance of the other objects of the style to the true picture.
    pub error_of_another_object: f64,
    /// Mean distance of the object in the other styles to the true picture.
    pub error_of_another_style: f64,
}

impl Gallery {
    /// The pictures `[n, C, H, W]` in [-1, 1] with their captions, `STYLE style OBJECT`.
    ///
    /// # Errors
    /// When a caption has another form, a side is no multiple of 16, or the numbers do not match.
    pub fn new(captions: &[&str], images: &[f32], shape: [usize; 3]) -> Result<Self> {
        let pair = |caption: &&str| {
            let (style, object) = caption.split_once(BETWEEN).ok_or_else(|| {
                Error::Usage(format!("the caption {caption:?} is not of the form \"STYLE style OBJECT\", as `prepare --emoji` writes them"))
            })?;
            Ok((style.to_owned(), object.to_owned()))
        };
        let pairs = captions.iter().map(pair).collect::<Result<Vec<_>>>()?;
        let size: usize = shape.iter().product();
        if shape[1] == 0 || !shape[1].is_multiple_of(SIDE) || !shape[2].is_multiple_of(SIDE) || images.len() != pairs.len() * size {
            return Err(Error::Usage(format!("pairs are measured on pictures whose sides are multiples of {SIDE}, not {shape:?}")));
        }
        let pictures = images.chunks_exact(size).map(|image| reduced(image, shape)).collect();
        Ok(Self { pairs, pictures, shape })
    }

    /// Measures drawn pictures `[n, C, H, W]` of the pairs at `which`.
    ///
    /// # Errors
    /// When there are none, or the numbers do not match.
    pub fn measure(&self, which: &[usize], drawn: &[f32]) -> Result<PairQuality> {
        let size: usize = self.shape.iter().product();
        if which.is_empty() || drawn.len() != which.len() * size || which.iter().any(|pair| *pair >= self.pairs.len()) {
            return Err(Error::Usage(format!("{} numbers are not pictures of {} pairs", drawn.len(), which.len())));
        }
        let mut sums = PairQuality::default();
        for (pair, image) in which.iter().zip(drawn.chunks_exact(size)) {
            let (image, truth) = (reduced(image, self.shape), &self.pictures[*pair]);
            let own = distance(&image, truth);
            let (style, object) = &self.pairs[*pair];
            let others = |same: &dyn Fn(&(String, String)) -> bool| -> Vec<usize> {
                (0..self.pairs.len()).filter(|other| other != pair && same(&self.pairs[*other])).collect()
            };
            let (of_style, of_object) = (others(&|other| &other.0 == style), others(&|other| &other.1 == object));
            let nearest = |rivals: &[usize]| rivals.iter().all(|rival| distance(&image, &self.pictures[*rival]) > own);
            let mean = |rivals: &[usize]| {
                rivals.iter().map(|rival| distance(&self.pictures[*rival], truth)).sum::<f64>() / rivals.len().max(1) as f64
            };
            sums.object_accuracy += f64::from(nearest(&of_style));
            sums.style_accuracy += f64::from(nearest(&of_object));
            sums.object_chance += 1.0 / (of_style.len() + 1) as f64;
            sums.style_chance += 1.0 / (of_object.len() + 1) as f64;
            sums.error += own;
            sums.error_of_another_object += mean(&of_style);
            sums.error_of_another_style += mean(&of_object);
        }
        Ok(sums.divided(which.len()))
    }

    /// How many styles and objects there are.
    pub fn sizes(&self) -> (usize, usize) {
        let styles: BTreeSet<_> = self.pairs.iter().map(|pair| &pair.0).collect();
        let objects: BTreeSet<_> = self.pairs.iter().map(|pair| &pair.1).collect();
        (styles.len(), objects.len())
    }
}

impl PairQuality {
    fn divided(self, count: usize) -> Self {
        let n = count as f64;
        Self {
            count,
            object_accuracy: self.object_accuracy / n,
            object_chance: self.object_chance / n,
            style_accuracy: self.style_accuracy / n,
            style_chance: self.style_chance / n,
            error: self.error / n,
            error_of_another_object: self.error_of_another_object / n,
            error_of_another_style: self.error_of_another_style / n,
        }
    }
}

/// Means over a grid of 16 x 16, `[C, 16, 16]`, clamped to [-1, 1].
fn reduced(image: &[f32], [c, h, w]: [usize; 3]) -> Vec<f32> {
    let (rows, columns) = (h / SIDE, w / SIDE);
    let mut out = vec![0.0; c * SIDE * SIDE];
    for (place, value) in image.iter().enumerate() {
        let (channel, y, x) = (place / (h * w), place / w % h, place % w);
        out[(channel * SIDE + y / rows) * SIDE + x / columns] += value.clamp(-1.0, 1.0) / (rows * columns) as f32;
    }
    out
}

/// Root mean square difference of pictures in [-1, 1], as a share of the range.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len().max(1) as f64).sqrt() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [1, 32, 32];

    /// Two styles (dark and light ground) of three objects (a bright column at another place).
    fn truth() -> (Vec<&'static str>, Vec<f32>) {
        let captions = vec!["a style x", "a style y", "a style z", "b style x", "b style y", "b style z"];
        let picture = |i: usize| (0..1024).map(move |p| if p % 32 / 8 == i % 3 { 1.0 } else { [-1.0, -0.5][i / 3] });
        (captions, (0..6).flat_map(picture).collect())
    }

    #[test]
    fn true_pictures_are_perfect() {
        let (captions, images) = truth();
        let gallery = Gallery::new(&captions, &images, SHAPE).unwrap();
        assert_eq!(gallery.sizes(), (2, 3));
        let quality = gallery.measure(&[0, 1, 2, 3, 4, 5], &images).unwrap();
        assert_eq!((quality.object_accuracy, quality.style_accuracy, quality.error), (1.0, 1.0, 0.0));
        approx::assert_relative_eq!(quality.object_chance, 1.0 / 3.0, epsilon = 1e-9);
        assert_eq!(quality.style_chance, 0.5);
        // Another object: half the columns differ by 2 or 1.5 of a range of 2. Another style: three quarters by 0.5.
        approx::assert_relative_eq!(quality.error_of_another_object, 0.5f64.sqrt() * (1.0 + 0.75) / 2.0, epsilon = 1e-6);
        approx::assert_relative_eq!(quality.error_of_another_style, 0.75f64.sqrt() * 0.25, epsilon = 1e-6);
    }

    #[test]
    fn a_wrong_object_and_a_wrong_style_are_told_apart() {
        let (captions, images) = truth();
        let gallery = Gallery::new(&captions, &images, SHAPE).unwrap();
        let of = |i: usize| &images[i * 1024..(i + 1) * 1024];
        let other_object = gallery.measure(&[0], of(1)).unwrap();
        assert_eq!((other_object.object_accuracy, other_object.error), (0.0, 0.5f64.sqrt()));
        let other_style = gallery.measure(&[0], of(3)).unwrap();
        assert_eq!((other_style.object_accuracy, other_style.style_accuracy), (1.0, 0.0));
    }

    #[test]
    fn nonsense_is_refused() {
        let (captions, images) = truth();
        assert!(Gallery::new(&["red apple"], &images[..1024], SHAPE).unwrap_err().to_string().contains("STYLE style OBJECT"));
        assert!(Gallery::new(&captions, &images, [1, 24, 32]).is_err());
        let gallery = Gallery::new(&captions, &images, SHAPE).unwrap();
        assert!(gallery.measure(&[], &[]).is_err() && gallery.measure(&[9], &images[..1024]).is_err());
    }
}
