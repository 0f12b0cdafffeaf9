//! Running a program to its end, with a choice of output.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where a program's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// To the test.
    Kept,
    /// To a closed pipe.
    ClosedPipe,
    /// To a full disk.
    Full,
}

impl Sink {
    fn stdio(self) -> Stdio {
        match self {
            Self::Kept => Stdio::piped(),
            Self::ClosedPipe => {
                let (_, writer) = std::io::pipe().unwrap();
                writer.into()
            }
            Self::Full => File::options()
                .write(true)
                .open("/dev/full")
                .unwrap()
                .into(),
        }
    }
}

/// A command line, its standard input, and the destinations of its output.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    /// The arguments.
    pub arguments: &'a [&'a str],
    /// Standard input.
    pub input: &'a [u8],
    /// Standard output.
    pub stdout: Sink,
    /// Standard error.
    pub stderr: Sink,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub printed: String,
    /// Standard error.
    pub logged: String,
}

impl<'a> Invocation<'a> {
    /// An invocation without input whose output goes to the test.
    pub fn of(arguments: &'a [&'a str]) -> Self {
        Self {
            arguments,
            input: b"",
            stdout: Sink::Kept,
            stderr: Sink::Kept,
        }
    }

    /// Runs a program to its end. Panics if the program panicked.
    pub fn run(self, program: &Path) -> Ended {
        let mut child = Command::new(program)
            .args(self.arguments)
            .stdin(Stdio::piped())
            .stdout(self.stdout.stdio())
            .stderr(self.stderr.stdio())
            .spawn()
            .unwrap();
        // It may end before it has read all input.
        let _ = child.stdin.take().unwrap().write_all(self.input);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ended = Ended {
            code: output.status.code(),
            printed: text(&output.stdout),
            logged: text(&output.stderr),
        };
        for stream in [&ended.printed, &ended.logged] {
            assert!(!stream.contains("panicked"), "{self:?}: {stream}");
        }
        ended
    }

    /// [Runs](Self::run) the program, and asserts this exit code and these words in its output.
    pub fn ends(self, program: &Path, code: i32, words: &str) -> Ended {
        let ended = self.run(program);
        assert_eq!(ended.code, Some(code), "{self:?}: {ended:?}");
        let stream = [&ended.printed, &ended.logged];
        assert!(
            stream.iter().any(|stream| stream.contains(words)),
            "{words:?} is not in {ended:?} of {self:?}"
        );
        ended
    }
}

/// Asserts that the `--help` of a program and of each of these commands goes to standard output, lists the
/// exit codes, and handles every kind of output.
pub fn helps(program: &Path, commands: &[&[&str]]) {
    for &command in commands {
        let help = [command, &["--help"][..]].concat();
        let help = Invocation::of(&help);
        help.ends(program, 0, "Exit codes:\n  0 ");
        for (stdout, code) in [(Sink::ClosedPipe, 0), (Sink::Full, 1)] {
            Invocation { stdout, ..help }.ends(program, code, "");
        }
    }
    let version = Invocation::of(&["--version"]);
    version.ends(program, 0, env!("CARGO_PKG_VERSION"));
    let stdout = Sink::Full;
    let full = Invocation { stdout, ..version };
    full.ends(program, 1, "cannot write to standard output");
    for stderr in [Sink::ClosedPipe, Sink::Full] {
        let wrong = Invocation::of(&["--no-such-option"]);
        Invocation { stderr, ..wrong }.ends(program, 2, "");
    }
}
