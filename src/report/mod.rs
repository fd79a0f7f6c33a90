//! Pictures for people: image grids, training curves, tables.
