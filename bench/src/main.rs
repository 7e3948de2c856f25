//! `pointsman-bench`: flags in, figures out.

fn main() {}
