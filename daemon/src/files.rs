//! Looks at the files that declarations name, programs and models, and tells the driver what they are made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::backend;
use berth_core::config::Model;
use berth_core::facts::FileFacts;
use berth_observe::files;
use tokio::sync::mpsc;

use crate::declared::Declared;
use crate::driver::Message;
use crate::preflight::LOOK_UP;

/// Between two looks at all files: one that is copied anew shows within this time, and at once where it is asked for.
const EVERY: Duration = Duration::from_secs(10);

/// What is known of files. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Files(Arc<Mutex<BTreeMap<PathBuf, FileFacts>>>);

impl Files {
    /// Looks at the files of these models: all that is known of files afterwards. Where their file system does not
    /// answer in time, what was known before.
    pub async fn look(&self, models: Vec<Model>) -> BTreeMap<PathBuf, FileFacts> {
        let files = self.clone();
        let looked =
            tokio::task::spawn_blocking(move || models.iter().for_each(|model| files.look_at(model)));
        _ = tokio::time::timeout(LOOK_UP, looked).await;
        self.known().clone()
    }

    fn look_at(&self, model: &Model) {
        let program = berth_observe::files::found(&model.program).unwrap_or_else(|| model.program.clone());
        self.note(&model.program, files::look_at_program(&program));
        for path in backend::of(model.backend).files(model) {
            let before = self.known().get(&path).cloned();
            // Read without the lock: this can take long.
            let facts = files::look(&path, before.as_ref());
            self.note(&path, facts);
        }
    }

    fn note(&self, path: &Path, facts: FileFacts) {
        self.known().insert(path.to_owned(), facts);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, FileFacts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at all files again and again.
pub fn spawn(files: Files, declared: Declared, driver: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let known = files.look(declared.now().models.values().cloned().collect()).await;
            if driver.send(Message::Files(known)).await.is_err() {
                return;
            }
        }
    });
}
