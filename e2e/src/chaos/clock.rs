//! A wrong clock for a process: a library that it is started with. A program with mimalloc can't start beside libfaketime.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("wrong_clock.c");

/// A library that gives processes a wrong clock.
#[derive(Debug, Clone)]
pub(super) struct WrongClock(PathBuf);

impl WrongClock {
    /// Compiles it into a folder.
    ///
    /// # Errors
    /// When there is no C compiler.
    pub(super) fn build(folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("wrong_clock.c"), folder.join("wrong_clock.so"));
        fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source);
        let done = compiler.output().context("cc")?;
        ensure!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
        Ok(Self(library))
    }

    /// Has a program started with a clock that is wrong by so many seconds.
    pub(super) fn set(&self, command: &mut tokio::process::Command, seconds: i64) {
        command.env("LD_PRELOAD", &self.0).env("WRONG_CLOCK", seconds.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_is_wrong_by_as_much_as_it_is_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let clock = WrongClock::build(folder.path()).unwrap();
        let day = 24 * 3_600;
        for wrong in [0, -20, day] {
            let mut date = tokio::process::Command::new("date");
            clock.set(date.arg("+%s"), wrong);
            let said = String::from_utf8(date.output().await.unwrap().stdout).unwrap();
            let off = said.trim().parse::<i64>().unwrap() - chrono::Utc::now().timestamp() - wrong;
            assert!(off.abs() < 10, "off by {off}");
        }
    }
}
