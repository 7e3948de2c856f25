//! What a plugin hands to the generation that takes its place.

/// Optional, beside [`Policy`](crate::policy::Policy), [`Handler`](crate::handler::Handler) or
/// [`Filter`](crate::filter::Filter): `export!(Sticky: policy + state)`.
pub trait State {
    /// The layout of what `save` writes. Count it up when the layout changes.
    const VERSION: u32;

    /// What the next generation has to know.
    fn save(&self) -> Vec<u8>;

    /// Called after `configure` with what the generation before had saved, and with its version.
    ///
    /// # Errors
    ///
    /// Stops the swap: the generation before goes on serving.
    fn restore(&mut self, saved: &[u8], from_version: u32) -> Result<(), String>;
}
