//! Notes of dead letters, for those who ask what became of their event. Nothing rests on them.

use super::{Store, StoreError};

impl Store {
    /// Remembers for a day that an event has become a dead letter, and why.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn note_dead_letters(&self, letters: &[(String, String)]) -> Result<(), StoreError> {
        const DAY_MS: u32 = 86_400_000;
        if letters.is_empty() {
            return Ok(());
        }
        let layout = self.layout().await?;
        let notes = letters.iter().map(|(event_id, reason)| {
            let mut note = redis::cmd("SET");
            note.arg(layout.dead_letter(layout.bucket_of(event_id), event_id)).arg(reason).arg("PX").arg(DAY_MS);
            note
        });
        self.read.scatter::<()>(notes).await.map(drop)
    }

    /// Why an event became a dead letter; `None` when it is not known to be one.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn dead_letter(&self, event_id: &str) -> Result<Option<String>, StoreError> {
        let layout = self.layout().await?;
        let key = layout.dead_letter(layout.bucket_of(event_id), event_id);
        self.read.command(redis::cmd("GET").arg(key)).await
    }
}
