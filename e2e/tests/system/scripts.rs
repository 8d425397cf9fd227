//! What `scripts/test` starts ends with it.

#![cfg(target_os = "linux")] // the processes are looked for in /proc

use std::{fs, path::Path, process::Stdio};

use anyhow::ensure;
use e2e::{PATIENCE, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

/// Runs as `scripts/test` does: a server that leaves a child behind, and a program whose child is in a process group of its
/// own, as nextest's tests are. Neither child heeds SIGTERM.
const SCRIPT: &str = r#"
set -euo pipefail
for part in common net daemon session install servers; do . "$LIBRARY/$part.sh"; done
leave_nothing
daemon_start server 0 bash -c '(trap "" TERM; exec sleep 100000) & exec sleep 100000'
run_in_session bash -c 'trap "" TERM; set -m; sleep 100000 & touch "$TMPDIR/left"; echo "$TMPDIR"; exec sleep 100000'
"#;

/// The processes that have this in their environment.
fn marked(mark: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    // One that has ended meanwhile, or belongs to another user, is none of them.
    let of_mark = processes.filter(|process| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|part| part == mark.as_bytes())
    });
    of_mark.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ")).collect()
}

async fn leaves_nothing(signal: Signal, code: i32) {
    let mark = uuid::Uuid::now_v7().to_string();
    // A program that a script runs in the background ignores SIGINT, and a shell can't undo what it was started with.
    let mut script = Command::new("env")
        .args(["--default-signal=INT,TERM,HUP", "bash", "-c", SCRIPT])
        .env("LIBRARY", concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib"))
        .env("MARK", &mark)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(script.stdout.take().unwrap()).lines();
    let temporary = timeout(PATIENCE, lines.next_line()).await.expect("it has started all").unwrap().unwrap();
    let folder = Path::new(&temporary).parent().unwrap();
    assert!(folder.join("tmp/left").exists(), "{temporary}");
    eventually("all of them run", async || {
        let running = marked(&mark);
        ensure!(running.iter().filter(|command| command.starts_with("sleep")).count() == 4, "{running:?}");
        Ok(())
    })
    .await;

    kill(Pid::from_raw(script.id().unwrap().try_into().unwrap()), signal).unwrap();
    let status = timeout(PATIENCE, script.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(code), "{signal}");
    eventually("no process is left", async || {
        let left = marked(&mark);
        ensure!(left.is_empty(), "{signal}: {left:?}");
        Ok(())
    })
    .await;
    assert!(!folder.exists(), "{signal}: {} is left", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_run_that_is_ended_by_a_signal_leaves_no_process_and_no_file() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 143)] {
        leaves_nothing(signal, code).await;
    }
}
