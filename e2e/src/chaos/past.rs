//! The past of a Redis: what its files were.
//!
//! The append-only file only grows, so its first n bytes are what it was when it had n bytes. A
//! restored backup, a disk that lost its cache and a torn tail are all such a prefix.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

const PERIOD: Duration = Duration::from_millis(250);

type Marks = Arc<Mutex<Vec<(Instant, u64)>>>;

/// Notes how long the append-only file is, again and again.
#[derive(Debug)]
pub struct Past {
    folder: PathBuf,
    marks: Marks,
    writer: JoinHandle<()>,
}

impl Past {
    /// Begins with the files in `folder`, the data folder of a server that does not rewrite them.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        let (folder, marks) = (folder.to_owned(), Marks::default());
        let writer = tokio::spawn(note(folder.clone(), Arc::clone(&marks)));
        Self { folder, marks, writer }
    }

    /// Takes the files of a server that is not running back to what they were at `time`. Gives the
    /// bytes that are lost by that.
    ///
    /// # Errors
    /// When they cannot be changed.
    pub fn restore(&self, time: Instant) -> io::Result<u64> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let length = marks.iter().rev().find(|(noted, _)| *noted <= time).map_or(0, |(_, length)| *length);
        drop(marks);
        self.truncate(length)
    }

    /// Takes so many bytes off the end of the files of a server that is not running.
    ///
    /// # Errors
    /// When they cannot be changed.
    pub fn tear(&self, bytes: u64) -> io::Result<u64> {
        let file = growing_file(&self.folder)?;
        self.truncate(fs::metadata(file)?.len().saturating_sub(bytes))
    }

    /// The files are gone, and their past with them.
    pub fn forget(&self) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn truncate(&self, length: u64) -> io::Result<u64> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, noted)| *noted <= length);
        let path = growing_file(&self.folder)?;
        // Only ever shorter: a file that is set longer gets zeros, which no crash leaves behind.
        let before = fs::metadata(&path)?.len();
        OpenOptions::new().write(true).open(path)?.set_len(length.min(before))?;
        Ok(before.saturating_sub(length))
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn note(folder: PathBuf, marks: Marks) {
    loop {
        if let Ok(length) = growing_file(&folder).and_then(fs::metadata).map(|file| file.len()) {
            marks.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), length));
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The file that writes are appended to (Redis 7: a base, increments and a manifest).
fn growing_file(folder: &Path) -> io::Result<PathBuf> {
    let mut names = fs::read_dir(folder.join("appendonlydir"))?.filter_map(Result::ok).map(|entry| entry.path());
    names
        .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no append-only file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grow(folder: &Path, to: u64) {
        fs::create_dir_all(folder.join("appendonlydir")).unwrap();
        fs::write(folder.join("appendonlydir/a.1.incr.aof"), vec![b'x'; usize::try_from(to).unwrap()]).unwrap();
    }

    fn length(folder: &Path) -> u64 {
        fs::metadata(growing_file(folder).unwrap()).unwrap().len()
    }

    #[tokio::test]
    async fn files_go_back_to_what_they_were_and_tear() {
        let folder = tempfile::tempdir().unwrap();
        grow(folder.path(), 10);
        let past = Past::of(folder.path());
        tokio::time::sleep(2 * PERIOD).await;
        let then = Instant::now();
        grow(folder.path(), 100);
        tokio::time::sleep(2 * PERIOD).await;
        assert_eq!(past.tear(7).unwrap(), 7);
        assert_eq!(length(folder.path()), 93);
        assert_eq!(past.restore(then).unwrap(), 83);
        assert_eq!(length(folder.path()), 10);
        assert_eq!(past.restore(then - Duration::from_secs(60)).unwrap(), 10);
    }
}
