//! Images to latents and back.
