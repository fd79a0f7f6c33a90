//! Bringing a picture to the size of its bucket: as much of it as has the bucket's aspect, chosen so that the subject stays in,
//! scaled by a Lanczos filter.
//!
//! The subject is where there is something to see. On a small copy every pixel gets the saliency
//! `s = |∇ luma| + |colour - mean colour| / 2`; along the side that is too long the window is taken for which
//! `Σ s(i) (1 - d²/2)` is largest, `d` in [-1, 1] being the place in the window: what is in the middle of it counts twice what is
//! at its edges. Of windows that are about equal the one nearest to the picture's middle is taken. Called by [`super::Library`].

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{PixelType, ResizeOptions, Resizer};
use image::RgbImage;

/// Longest side of the small copy.
const SMALL: u32 = 128;
/// What the best window must be better by, for every picture's length it is away from the middle.
const MIDDLE: f64 = 0.05;

/// Which part is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// The part with the subject.
    Subject,
    /// The middle.
    Center,
}

/// Where the part that is kept begins, as shares of the picture's sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Corner {
    x: f64,
    y: f64,
}

/// The part of a picture that is kept for `width` x `height`.
///
/// # Errors
/// When a side is zero, in words.
pub fn choose(image: &RgbImage, size: (usize, usize), crop: Crop) -> Result<Corner, String> {
    if holds(image, size) {
        return Ok(Corner { x: 0.0, y: 0.0 });
    }
    let (kept_w, kept_h) = kept(image, size);
    let (share_x, share_y) = (kept_w / f64::from(image.width()), kept_h / f64::from(image.height()));
    let (x, y) = match crop {
        Crop::Center => ((1.0 - share_x) / 2.0, (1.0 - share_y) / 2.0),
        Crop::Subject => subject(image, share_x, share_y)?,
    };
    Ok(Corner { x, y })
}

/// Cuts a picture there and scales it to `width` x `height`; one of that size is left as it is.
///
/// # Errors
/// When a side is zero, in words.
pub fn cut(image: &RgbImage, corner: Corner, size: (usize, usize)) -> Result<RgbImage, String> {
    if holds(image, size) {
        return Ok(image.clone());
    }
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let (kept_w, kept_h) = kept(image, size);
    let window = ((corner.x * w).min(w - kept_w), (corner.y * h).min(h - kept_h), kept_w, kept_h);
    resize(image, window, (size.0 as u32, size.1 as u32))
}

/// Whether the picture has the size already.
fn holds(image: &RgbImage, (width, height): (usize, usize)) -> bool {
    image.dimensions() == (width as u32, height as u32)
}

/// Sides of the largest part with the size's aspect.
fn kept(image: &RgbImage, (width, height): (usize, usize)) -> (f64, f64) {
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let scale = (w / width as f64).min(h / height as f64);
    ((width as f64 * scale).min(w), (height as f64 * scale).min(h))
}

/// Where the window of these shares of the picture begins, as shares of it.
fn subject(image: &RgbImage, share_x: f64, share_y: f64) -> Result<(f64, f64), String> {
    if share_x.max(share_y) >= 1.0 && share_x.min(share_y) >= 1.0 - 1e-9 {
        return Ok((0.0, 0.0));
    }
    let (w, h) = image.dimensions();
    let factor = (f64::from(SMALL) / f64::from(w.max(h))).min(1.0);
    let side = |side: u32| ((f64::from(side) * factor).round() as u32).max(1);
    let small = resize(image, (0.0, 0.0, f64::from(w), f64::from(h)), (side(w), side(h)))?;
    let saliency = saliency(&small);
    let columns = small.width() as usize;
    let along_x = |x: usize| saliency.iter().skip(x).step_by(columns).sum::<f64>();
    let along_y = |y: usize| saliency.iter().skip(y * columns).take(columns).sum::<f64>();
    let xs: Vec<f64> = (0..columns).map(along_x).collect();
    let ys: Vec<f64> = (0..small.height() as usize).map(along_y).collect();
    Ok((best_window(&xs, share_x), best_window(&ys, share_y)))
}

/// Where the best window of `share` of a profile begins, as a share of it.
fn best_window(profile: &[f64], share: f64) -> f64 {
    let n = profile.len();
    let size = ((n as f64 * share).round() as usize).clamp(1, n);
    let last = n - size;
    if last == 0 {
        return 0.0;
    }
    let middle = last as f64 / 2.0;
    let score = |start: usize| {
        let weight = |i: usize| 1.0 - ((2 * i + 1) as f64 / size as f64 - 1.0).powi(2) / 2.0;
        let seen: f64 = profile[start..start + size].iter().enumerate().map(|(i, s)| s * weight(i)).sum();
        seen * (1.0 - MIDDLE * (start as f64 - middle).abs() / n as f64)
    };
    let nearer = |a: usize, b: usize| (a as f64 - middle).abs() < (b as f64 - middle).abs();
    let better = |a: usize, b: usize| score(a) > score(b) || (score(a) == score(b) && nearer(a, b));
    let best = (1..=last).fold(0, |best, start| if better(start, best) { start } else { best });
    best as f64 / last as f64 * (1.0 - share)
}

/// How much there is to see at each pixel.
fn saliency(image: &RgbImage) -> Vec<f64> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let pixel = |x: usize, y: usize| image.get_pixel(x as u32, y as u32).0.map(f64::from);
    let luma = |x: usize, y: usize| {
        let [r, g, b] = pixel(x, y);
        0.299 * r + 0.587 * g + 0.114 * b
    };
    let mut mean = [0.0; 3];
    image.pixels().for_each(|p| mean.iter_mut().zip(p.0).for_each(|(sum, value)| *sum += f64::from(value) / (w * h) as f64));
    let places = (0..h).flat_map(|y| (0..w).map(move |x| (x, y)));
    let value = |(x, y): (usize, usize)| {
        let dx = luma((x + 1).min(w - 1), y) - luma(x.saturating_sub(1), y);
        let dy = luma(x, (y + 1).min(h - 1)) - luma(x, y.saturating_sub(1));
        let colour = pixel(x, y).iter().zip(mean).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        dx.hypot(dy) + colour / 2.0
    };
    places.map(value).collect()
}

/// The part `(left, top, width, height)` of a picture, scaled to a size.
fn resize(image: &RgbImage, (left, top, w, h): (f64, f64, f64, f64), (width, height): (u32, u32)) -> Result<RgbImage, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot be scaled: {error}");
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).map_err(|e| failed(&e))?;
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().crop(left, top, w, h);
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| failed(&e))?;
    RgbImage::from_raw(width, height, target.into_vec()).ok_or_else(|| "cannot be scaled".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use image::imageops;

    /// A dark picture with a bright disc.
    fn disc(size: (u32, u32), centre: (f32, f32), radius: f32) -> RgbImage {
        RgbImage::from_fn(size.0, size.1, |x, y| {
            let inside = (x as f32 - centre.0).hypot(y as f32 - centre.1) < radius;
            if inside { Rgb([250, 210, 40]) } else { Rgb([20, 24, 40]) }
        })
    }

    fn fit(image: &RgbImage, size: (usize, usize), crop: Crop) -> Result<RgbImage, String> {
        cut(image, choose(image, size, crop)?, size)
    }

    fn bright(image: &RgbImage) -> usize {
        image.pixels().filter(|p| p.0[0] > 128).count()
    }

    #[test]
    fn the_subject_stays_in_wherever_it_is() {
        for x in [50.0, 200.0, 350.0, 550.0] {
            let wide = disc((600, 200), (x, 100.0), 45.0);
            let tall = imageops::rotate90(&wide);
            for image in [wide, tall] {
                let expected = (std::f64::consts::PI * 45.0 * 45.0 * (100.0_f64 / 200.0).powi(2)) as usize;
                let kept = bright(&fit(&image, (100, 100), Crop::Subject).unwrap());
                assert!(kept.abs_diff(expected) < expected / 20, "at {x}: {kept} of {expected}");
            }
        }
        let image = disc((600, 200), (50.0, 100.0), 45.0);
        assert_eq!(bright(&fit(&image, (100, 100), Crop::Center).unwrap()), 0);
    }

    #[test]
    fn a_plain_picture_is_cut_in_the_middle() {
        // Red grows to the right: the middle of the picture is told by its colour.
        let ramp = RgbImage::from_fn(300, 100, |x, _| Rgb([(x * 255 / 299) as u8, 0, 0]));
        let middle = fit(&ramp, (100, 100), Crop::Center).unwrap();
        assert!(middle.get_pixel(50, 50).0[0].abs_diff(128) <= 2);
        let plain = fit(&RgbImage::from_pixel(300, 100, Rgb([7, 8, 9])), (40, 40), Crop::Subject).unwrap();
        assert!(plain.pixels().all(|p| p.0 == [7, 8, 9]));
        approx::assert_relative_eq!(best_window(&[1.0; 30], 1.0 / 3.0), 1.0 / 3.0, epsilon = 1e-12);
    }

    #[test]
    fn any_size_fits_any_bucket() {
        for (w, h) in [(1, 1), (1, 500), (500, 1), (64, 64), (63, 65), (3, 2)] {
            for size in [(64, 64), (32, 96), (128, 16)] {
                let fitted = fit(&RgbImage::new(w, h), size, Crop::Subject).unwrap();
                assert_eq!((fitted.width() as usize, fitted.height() as usize), size, "{w}x{h}");
            }
        }
    }

    #[test]
    fn a_picture_of_the_right_size_is_left_as_it_is() {
        let image = RgbImage::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 9) as u8, 77]));
        assert_eq!(fit(&image, (40, 24), Crop::Subject).unwrap(), image);
    }
}
