//! What a test counted, for whoever reads the run: nobody sees what a passing test prints.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Names a file, to which the counts go; `tests/run` shows it at its end.
const TALLIES: &str = "RINGCAST_TEST_TALLIES";

/// Prints it, which is shown where the test fails, and notes it where somebody wants to know. A test's thread has its name.
pub(crate) fn tally(told: impl Display) {
    let told = told.to_string();
    println!("{told}");
    let Some(tallies) = std::env::var_os(TALLIES) else { return };
    let thread = std::thread::current();
    let test = thread.name().expect("a test counts on its own thread");
    let lines = told.lines().fold(String::new(), |lines, line| lines + test + ": " + line + "\n");
    // At one go: tests that run at the same time write to the same file.
    let noted = OpenOptions::new().create(true).append(true).open(tallies);
    noted
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .expect("the file that is named can be written");
}
