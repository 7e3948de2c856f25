//! What all instances of one plugin have in common, whatever their worker and generation: its store,
//! its open sessions, its values for the metrics page and its log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pointsman_contract::names::{PLUGIN_TARGET, PluginName};

use super::kv::KeyValues;
use super::log_lines::PluginLog;
use super::topics::Topics;

/// Counters, and gauges, that one plugin may name.
const VALUES_MAX: usize = 64;
const VALUE_NAME_MAX_BYTES: usize = 64;

/// One plugin's. It outlives generations.
#[derive(Debug)]
pub(super) struct PluginShared {
    pub(super) plugin: PluginName,
    pub(super) store: Mutex<KeyValues>,
    pub(super) topics: Topics,
    pub(super) log: Arc<PluginLog>,
    counts: Mutex<BTreeMap<String, u64>>,
    gauges: Mutex<BTreeMap<String, f64>>,
    has_complained: AtomicBool,
}

impl PluginShared {
    pub(super) fn new(plugin: PluginName) -> Self {
        let log = Arc::new(PluginLog::new(plugin.clone()));
        Self {
            plugin,
            store: Mutex::default(),
            topics: Topics::default(),
            log,
            counts: Mutex::default(),
            gauges: Mutex::default(),
            has_complained: AtomicBool::new(false),
        }
    }

    pub(super) fn count(&self, name: String, by: u64) {
        self.change(&self.counts, name, |count| *count = count.wrapping_add(by));
    }

    pub(super) fn gauge(&self, name: String, value: f64) {
        self.change(&self.gauges, name, |gauge| *gauge = value);
    }

    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        list(&self.counts)
    }

    pub(super) fn gauges(&self) -> Vec<(String, f64)> {
        list(&self.gauges)
    }

    /// What has no fit name or no room is dropped, and said once.
    fn change<V: Default>(
        &self,
        values: &Mutex<BTreeMap<String, V>>,
        name: String,
        change: impl FnOnce(&mut V),
    ) {
        let mut values = values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get_mut(&name) {
            return change(value);
        }
        if is_value_name(&name) && values.len() < VALUES_MAX {
            return change(values.entry(name).or_default());
        }
        drop(values);
        if !self.has_complained.swap(true, Ordering::Relaxed) {
            let plugin = self.plugin.as_str();
            tracing::warn!(target: PLUGIN_TARGET, plugin, name = name.escape_debug().take(80).collect::<String>(),
                "a metric was dropped: names match [a-z][a-z0-9_]{{0,63}}, and there are at most {VALUES_MAX} of each kind");
        }
    }
}

fn list<V: Copy>(values: &Mutex<BTreeMap<String, V>>) -> Vec<(String, V)> {
    let values = values.lock().unwrap_or_else(PoisonError::into_inner);
    values
        .iter()
        .map(|(name, &value)| (name.clone(), value))
        .collect()
}

fn is_value_name(name: &str) -> bool {
    name.len() <= VALUE_NAME_MAX_BYTES
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_by_name_and_bounded() {
        let share = PluginShared::new(PluginName::parse("chat").unwrap());
        share.count("messages".to_owned(), 2);
        share.count("messages".to_owned(), 3);
        share.count("Bad name".to_owned(), 1);
        share.gauge("rooms".to_owned(), 1.5);
        share.gauge("rooms".to_owned(), 0.5);
        assert_eq!(share.counts(), [("messages".to_owned(), 5)]);
        assert_eq!(share.gauges(), [("rooms".to_owned(), 0.5)]);
        for n in 0..100 {
            share.count(format!("n{n}"), 1);
        }
        assert_eq!(share.counts().len(), 64);
    }
}
