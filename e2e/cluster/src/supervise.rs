//! Child processes that cannot outlive this process.
//!
//! Destructors are not enough: a test binary exits without running those of its statics, and SIGKILL runs none. So
//! one `/bin/sh` per process, the *watchdog*, holds the read end of a pipe whose write end only this process has.
//! When the kernel closes that pipe, for whatever reason, the watchdog kills every process group it was told of.
//!
//! No moment is left uncovered: a child starts as a shell that waits for a word on its own pipe. It gets that word,
//! and only then `exec`s the program, after the watchdog knows of it; if this process dies before, the shell reads
//! the end of the pipe and exits.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use tokio::sync::watch;

pub use nix::sys::signal::Signal;

/// Lines: `+ PGID` to look after a group, `- PGID` when it has ended, `x PATH` to remove a folder at the end.
const WATCHDOG: &str = r#"
groups=
while read -r verb what; do
  case $verb in
    +) groups="$groups $what" ;;
    -) rest=
       for group in $groups; do [ "$group" = "$what" ] || rest="$rest $group"; done
       groups=$rest ;;
    x) set -- "$@" "$what" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ $# = 0 ] || { sleep 1; rm -rf -- "$@"; }
"#;

/// Waits for leave to start, then becomes the program without keeping the pipe as its input.
const GATE: &str = r#"read -r start || exit 125; exec "$@" </dev/null"#;

static WATCHDOG_PIPE: Mutex<Option<ChildStdin>> = Mutex::new(None);

fn tell_watchdog(line: &str) -> Result<()> {
    let mut pipe = WATCHDOG_PIPE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if pipe.is_none() {
        // In a group of its own: a Ctrl-C meant for this process must not take the watchdog first.
        let mut watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "spotpool-watchdog"])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start /bin/sh as the watchdog of child processes")?;
        *pipe = watchdog.stdin.take();
    }
    let Some(stdin) = pipe.as_mut() else { bail!("the watchdog of child processes has no input") };
    stdin
        .write_all(format!("{line}\n").as_bytes())
        .context("the watchdog of child processes is gone; was it killed?")
}

/// Has the watchdog remove a folder once this process is gone, however it ends.
pub(crate) fn remove_at_exit(dir: &Path) -> Result<()> {
    tell_watchdog(&format!("x {}", dir.display()))
}

/// A program to be started under supervision.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Program {
    /// `name` is how messages call it; `path` is a file, or a command to be found in `PATH`.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: path.into(), args: Vec::new(), env: Vec::new(), dir: None, log: None }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable; the others are inherited.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Does not hand an environment variable on.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Appends standard output and error to this file; without it they are discarded.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Starts the program in a process group of its own.
    pub fn spawn(self) -> Result<Supervised> {
        self.start().with_context(|| format!("cannot start {} ({})", self.name, self.path.display()))
    }

    fn start(&self) -> Result<Supervised> {
        // The shell would find out too late, and tell only the log.
        if self.path.components().count() > 1 && !self.path.is_file() {
            bail!("there is no such file");
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GATE]).arg(&self.name).arg(&self.path).args(&self.args);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        match &self.log {
            Some(path) => {
                let file = open_log(path)?;
                command.stdout(file.try_clone()?).stderr(file);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let mut child = command.stdin(Stdio::piped()).process_group(0).spawn()?;
        let id = child.id();
        let started = tell_watchdog(&format!("+ {id}")).and_then(|()| {
            let mut gate = child.stdin.take().context("the gate has no input")?;
            gate.write_all(b"start\n").context("the shell that starts it ended too soon")
        });
        if let Err(error) = started {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }

        let (tell, exit) = watch::channel(None);
        std::thread::spawn(move || tell.send_replace(Some(reap(child))));
        Ok(Supervised { name: self.name.clone(), id, log: self.log.clone(), exit })
    }
}

fn open_log(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write the log {}", path.display()))
}

/// Waits for the end of a child, and ends what it left in its group.
fn reap(mut child: Child) -> ExitStatus {
    let status = child.wait();
    let _ = killpg(pid(child.id()), Signal::SIGKILL);
    let _ = tell_watchdog(&format!("- {}", child.id()));
    // Waiting fails only if someone else has reaped the child; its status is lost then.
    status.unwrap_or_else(|_| ExitStatus::from_raw(0xff00))
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id as i32)
}

/// A running child process (and whatever it starts in its process group), killed when this value is dropped and,
/// by the watchdog, when this process ends in any way.
///
/// It belongs to no async runtime: one test may start it and another wait for it.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    id: u32,
    log: Option<PathBuf>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Supervised {
    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program's process id, which is that of its process group, too.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its output goes.
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// An error with the end of its log if it has ended, for use in loops that wait for something of it.
    pub fn check_running(&self) -> Result<()> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}{}", self.name, self.log_tail()),
        }
    }

    /// The last lines of its log and where to find the rest, as the end of an error message.
    pub fn log_tail(&self) -> String {
        let Some(path) = &self.log else {
            return String::new();
        };
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
        format!("; the end of its log {}:\n  {last}", path.display())
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        ended.unwrap_or_else(|| ExitStatus::from_raw(0xff00))
    }

    /// Sends a signal to the program itself, not to its group. No error if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.exit_status().is_some() {
            return Ok(());
        }
        match kill(pid(self.id), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot send {signal} to {}", self.name)),
        }
    }

    /// Asks it to end (SIGTERM).
    pub fn term(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Kills it and everything in its process group.
    pub fn kill(&self) -> Result<()> {
        if self.exit_status().is_some() {
            return Ok(());
        }
        match killpg(pid(self.id), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot kill {}", self.name)),
        }
    }

    /// Asks it to end, waits for as long as `grace`, then kills it.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.term()?;
        if let Ok(status) = tokio::time::timeout(grace, self.wait()).await {
            return Ok(status);
        }
        self.kill()?;
        Ok(self.wait().await)
    }

    /// Kills it and waits, for destructors, which cannot await.
    pub(crate) fn kill_blocking(&self) {
        let _ = self.kill();
        let began = Instant::now();
        while self.exit_status().is_none() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Runs a short program to its end and returns what it printed; what it wrote to standard error is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("`{name}` is not installed or not in PATH")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot run {name}")),
    };
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
