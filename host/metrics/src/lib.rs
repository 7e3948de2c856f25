//! What is counted, and how it looks on the metrics page.
//!
//! [`counters`] are the cells that workers write, [`labels`] what they tell apart, [`scrape`] the figures that others own;
//! [`Metrics::encode`](counters::Metrics::encode) makes a page of all three. Depends on nothing of ours.

pub mod counters;
mod exposition;
pub mod labels;
mod process;
pub mod scrape;
