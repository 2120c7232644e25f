use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many lines of a log an error quotes.
const QUOTED_LINES: usize = 20;
/// The longest line that is kept for an error, in bytes.
const QUOTED_BYTES: usize = 400;

/// The log of one build.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Begins the log at `path`, replacing an earlier one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(path)
            .with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let mut owned = line.to_vec();
        owned.push(b'\n');
        self.file.write_all(&owned).with_context(|| format!("cannot write the log {}", self.path.display()))
    }
}

/// A program to run for a build. It ends when this process ends; its output goes to the log.
#[derive(Debug)]
pub struct Run {
    command: Command,
    shown: String,
}

impl Run {
    /// Runs `program`, looked up in PATH and in the system's sbin folders.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(&program);
        command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        // SAFETY: prctl with these arguments only sets an attribute of the child, and is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        Self { command, shown: program.as_ref().to_string_lossy().into_owned() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(self, args: I) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it in `dir`.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it `file` as standard input.
    #[must_use]
    pub fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Runs it to its end, its output in `log`.
    ///
    /// # Errors
    /// If it cannot be started or does not succeed: the error names the log and quotes its last lines.
    pub fn log_to(self, log: &mut Log) -> Result<()> {
        self.log_lines(log, |_| ())
    }

    /// As [`Run::log_to`], and hands every line of output to `seen`.
    ///
    /// # Errors
    /// As [`Run::log_to`].
    pub fn log_lines(mut self, log: &mut Log, mut seen: impl FnMut(&str)) -> Result<()> {
        log.line(format!("$ {}", self.shown).as_bytes())?;
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let other = writer.try_clone().context("cannot make a pipe")?;
        self.command.stdout(OwnedFd::from(writer)).stderr(OwnedFd::from(other));
        let program = self.command.get_program().to_string_lossy().into_owned();
        let mut child = self.command.spawn().with_context(|| format!("cannot start {program}"))?;
        // The command holds the write ends until it is dropped; the loop below ends when the last one is closed.
        drop(self.command);
        let mut last: VecDeque<String> = VecDeque::with_capacity(QUOTED_LINES);
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).context("cannot read the output of a program")? == 0 {
                break;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            log.line(text)?;
            seen(&String::from_utf8_lossy(text));
            let text = String::from_utf8_lossy(&text[..text.len().min(QUOTED_BYTES)]).into_owned();
            if last.len() == QUOTED_LINES {
                last.pop_front();
            }
            last.push_back(text);
        }
        let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
        if status.success() {
            return Ok(());
        }
        let quoted = last.iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n");
        bail!("{program} failed ({status}); log: {}\n{quoted}", log.path().display())
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// If it cannot be started or does not succeed; with what it wrote to standard error.
    pub fn output(mut self) -> Result<String> {
        let program = self.command.get_program().to_string_lossy().into_owned();
        let output = self.command.output().with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            bail!(
                "{} failed ({}): {}",
                self.shown,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// PATH, with the folders of administrators' programs, which a user's PATH may lack.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !std::env::split_paths(&path).any(|known| known == Path::new(folder)) {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(folder);
        }
    }
    path
}

/// Finds a program as [`Run`] would.
pub fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_log_and_quotes_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/x.log");
        let mut log = Log::create(&path).unwrap();
        let mut seen = Vec::new();
        let script = "for i in $(seq 30); do echo out $i; done; echo it broke >&2; exit 3";
        let error =
            Run::new("sh").args(["-c", script]).log_lines(&mut log, |line| seen.push(line.to_owned()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("it broke"), "{error}");
        assert!(error.contains("exit status: 3") && !error.contains("| out 10\n"), "{error}");
        assert_eq!(seen.len(), 31);
        assert!(std::fs::read_to_string(&path).unwrap().contains("out 1\n"));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::create(&dir.path().join("x.log")).unwrap();
        let error = Run::new("no-such-program-here").log_to(&mut log).unwrap_err().to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
        assert!(which("no-such-program-here").is_none() && which("sh").is_some());
    }
}
