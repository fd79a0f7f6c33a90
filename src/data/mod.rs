//! Latent shards, aspect buckets, the demo data set.
