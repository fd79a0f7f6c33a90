//! Image quality: classifier features, Fréchet distance, accuracy, diversity.
//!
//! Three numbers that fail in different ways: the Fréchet distance sees how far the pictures as a crowd are from real
//! ones, accuracy whether each shows what its prompt asked for, diversity whether one prompt gives more than one picture.
//! (FID measures the first with an Inception network; here a small CNN, trained on the demo's data set, takes its place,
//! so the numbers compare with each other only.)

mod classifier;
mod diversity;
mod frechet;
mod pairs;
mod similarity;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::format::SafetensorsFile;
use crate::{Error, Result};

pub use classifier::{Classification, Classifier};
pub use diversity::mean_distance_within_classes;
pub use frechet::{Gaussian, frechet_distance};
pub use pairs::{Gallery, PairQuality};
pub use similarity::{Psnr, overlap};

static CLASSIFIER: &[u8] = include_bytes!("../data/demo/classifier.safetensors");
static STATISTICS: &[u8] = include_bytes!("../data/demo/statistics.safetensors");

/// What the pictures of one sampler setting are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Fréchet distance between the classifier's features of the pictures and of the test set; 0 is perfect.
    pub fd: f64,
    /// Share of pictures that the classifier takes for what the prompt asked for.
    pub accuracy: f64,
    /// Mean distance between two pictures of one class over that between real ones; near 0, all look alike.
    pub diversity: f64,
}

/// The classifier with what it says about real images.
#[derive(Clone, Debug)]
pub struct Evaluator {
    classifier: Classifier,
    real: Gaussian,
    real_diversity: f64,
    real_accuracy: f64,
}

impl Evaluator {
    /// The evaluator of the demo, for Fashion-MNIST; it is part of the program.
    ///
    /// # Errors
    /// Never in a program that was built from intact files.
    pub fn demo() -> Result<Self> {
        let classifier = SafetensorsFile::from_bytes("built-in classifier.safetensors", CLASSIFIER)?;
        let statistics = SafetensorsFile::from_bytes("built-in statistics.safetensors", STATISTICS)?;
        Self::read(&classifier, &statistics)
    }

    /// Reads `classifier.safetensors` and `statistics.safetensors` of a folder, as `reference/train_classifier.py` writes them.
    ///
    /// # Errors
    /// When a file is missing or damaged, or its tensors are not those of the classifier.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let open = |name: &str| SafetensorsFile::open(folder.as_ref().join(name));
        Self::read(&open("classifier.safetensors")?, &open("statistics.safetensors")?)
    }

    fn read(classifier: &SafetensorsFile, statistics: &SafetensorsFile) -> Result<Self> {
        let number = |key: &str| {
            let text = statistics.metadata_value(key)?;
            let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && value.is_finite());
            value.ok_or_else(|| Error::file(statistics.path(), format!("has `{key}` = \"{text}\", which is no positive number")))
        };
        let classifier = Classifier::read(classifier)?;
        let dim = classifier.features();
        statistics.expect_shape("mean", &[dim])?;
        statistics.expect_shape("covariance", &[dim, dim])?;
        let real = Gaussian { mean: statistics.f64("mean")?, covariance: statistics.f64("covariance")? };
        Ok(Self { classifier, real, real_diversity: number("diversity")?, real_accuracy: number("test_accuracy")? })
    }

    /// The classifier.
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// Accuracy on real test images: what `accuracy` can at best be expected to reach.
    pub fn real_accuracy(&self) -> f64 {
        self.real_accuracy
    }

    /// Shape of the images it takes, `[C, H, W]`.
    pub fn image_shape(&self) -> [usize; 3] {
        classifier::INPUT
    }

    /// Measures decoded images, `[n, C, H, W]` in about [-1, 1] (they are clamped), and the classes they should show.
    ///
    /// # Errors
    /// When there are fewer than two images, none of one class, or an image holds something else than numbers.
    pub fn measure(&self, images: &[f32], labels: &[usize]) -> Result<Quality> {
        let size: usize = self.image_shape().iter().product();
        if images.len() != labels.len() * size {
            return Err(Error::Usage(format!("{} numbers are not {} images of {:?}", images.len(), labels.len(), self.image_shape())));
        }
        if let Some(bad) = images.iter().position(|pixel| !pixel.is_finite()) {
            return Err(Error::Usage(format!("image {} holds {}: the network that drew it has diverged", bad / size, images[bad])));
        }
        let clamped: Vec<f32> = images.iter().map(|pixel| pixel.clamp(-1.0, 1.0)).collect();
        let seen = self.classifier.classify(&clamped)?;
        let drawn = Gaussian::fit(&seen.features, self.classifier.features())?;
        let right = seen.classes().zip(labels).filter(|(class, label)| class == *label).count();
        Ok(Quality {
            fd: frechet_distance(&drawn, &self.real)?,
            accuracy: right as f64 / labels.len() as f64,
            diversity: mean_distance_within_classes(&clamped, size, labels)? / self.real_diversity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static IMAGES: &[u8] = include_bytes!("../data/demo/test_images.safetensors");

    fn test_images() -> (Vec<f32>, Vec<usize>) {
        let file = SafetensorsFile::from_bytes("test_images", IMAGES).unwrap();
        let labels = file.u8("labels").unwrap().iter().copied().map(usize::from).collect();
        (crate::data::fashion_mnist::padded(file.u8("images").unwrap()), labels)
    }

    #[test]
    fn real_images_are_good() {
        let (images, labels) = test_images();
        let quality = Evaluator::demo().unwrap().measure(&images, &labels).unwrap();
        assert!(quality.accuracy > 0.85 && (0.85..1.15).contains(&quality.diversity), "{quality:?}");
        let noise: Vec<f32> = (0..images.len()).map(|i| ((i * 7919) % 997) as f32 / 498.0 - 1.0).collect();
        let bad = Evaluator::demo().unwrap().measure(&noise, &labels).unwrap();
        assert!(bad.fd > 10.0 * quality.fd && bad.accuracy < 0.2, "{bad:?} {quality:?}");
    }

    #[test]
    fn one_picture_for_all_has_no_diversity() {
        let (images, _) = test_images();
        let same = images[..1024].repeat(20);
        let quality = Evaluator::demo().unwrap().measure(&same, &[0; 20]).unwrap();
        assert!(quality.diversity < 1e-6 && quality.fd.is_finite(), "{quality:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let evaluator = Evaluator::demo().unwrap();
        let says = |images: &[f32], labels: &[usize], what: &str| {
            let error = evaluator.measure(images, labels).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        let mut images = vec![0.0; 2048];
        images[1500] = f32::NAN;
        says(&images, &[0, 0], "image 1 holds NaN");
        says(&images, &[0], "not 1 images");
        says(&images[..1024], &[0], "two");
        says(&vec![0.5; 2048], &[0, 1], "class");
        says(&[], &[], "two");
    }
}
