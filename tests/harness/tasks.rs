//! Tasks that a helper runs beside the test. Dropping them ends them, and fails the test if one of
//! them has panicked: nobody joins them, and the panic would be a line on stderr that nobody reads.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use futures_util::FutureExt;
use tokio::task::JoinSet;

/// The tasks of one helper.
#[derive(Debug)]
pub struct Tasks {
    panics: Panics,
    _running: JoinSet<()>,
}

/// The panics of tasks, and of the tasks that these start.
#[derive(Clone, Debug, Default)]
pub struct Panics(Arc<Mutex<Vec<String>>>);

impl Tasks {
    /// Starts the one that `task` makes. What it starts itself, it lets [`Panics::watch`].
    pub fn start<F>(task: impl FnOnce(Panics) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = Panics::default();
        let mut running = JoinSet::new();
        running.spawn(panics.watch(task(panics.clone())));
        Self {
            panics,
            _running: running,
        }
    }
}

impl Panics {
    /// `task`, with its panic kept for the test.
    pub fn watch<F>(&self, task: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = Arc::clone(&self.0);
        async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                let mut panics = panics.lock().unwrap_or_else(PoisonError::into_inner);
                panics.push(message(panic.as_ref()));
            }
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let panics = self.panics.0.lock();
        let panics = panics.unwrap_or_else(PoisonError::into_inner).join("\n");
        // A second panic would abort the process, and the first says more.
        assert!(
            panics.is_empty() || thread::panicking(),
            "a helper's task has panicked: {panics}"
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
