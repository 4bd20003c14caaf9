//! Tells a person on stderr what is being waited for.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Quicker things are not worth a line.
const QUIET: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_secs(10);

/// Prints what is going on and for how long, until it is dropped.
///
/// A thread and not a task, so that it also speaks while the runtime is busy or blocked.
pub(crate) struct Progress {
    stop: Option<Sender<()>>,
    printer: Option<JoinHandle<()>>,
}

impl Progress {
    /// `what` is a phrase such as "building etcd".
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        let (stop, stopped) = mpsc::channel();
        let began = Instant::now();
        let printer = std::thread::spawn(move || {
            let mut pause = QUIET;
            let mut spoke = false;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                say(&format!("{what} … {} s", began.elapsed().as_secs()));
                (pause, spoke) = (EVERY, true);
            }
            if spoke {
                say(&format!("{what} took {:.1} s", began.elapsed().as_secs_f64()));
            }
        });
        Self { stop: Some(stop), printer: Some(printer) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
    }
}

/// Not by `eprintln!`, which a test binary captures: a first build of minutes would look like a hang.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "spotpool: {line}");
}
