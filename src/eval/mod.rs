//! Image quality: classifier features, Fréchet distance, accuracy, diversity.
