//! What came of it: medians, tables, a picture.
