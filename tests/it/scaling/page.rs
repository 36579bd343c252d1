//! SCALING.md holds what the replay prints.

use std::fs;
use std::path::{Path, PathBuf};

use super::tables;

/// Set, the page gets the tables; `tests/scaling` sets it.
const WRITE: &str = "SCALING_WRITE";

#[test]
fn the_page_holds_what_the_replay_prints() {
    let file = page();
    let text = fs::read_to_string(&file).expect("SCALING.md can be read");
    let mut expected = text.clone();
    for (name, table) in tables::all() {
        expected = with(&expected, name, &table);
    }
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, &expected).expect("SCALING.md can be written");
        return;
    }
    let different: Vec<_> = text.lines().zip(expected.lines()).filter(|(is, shall)| is != shall).collect();
    assert!(
        text == expected,
        "SCALING.md is not of this replay; run tests/scaling. Is and shall be: {different:#?}"
    );
}

/// The page with another table between its two marks.
fn with(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- {name} -->\n");
    let end = format!("<!-- end of {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("SCALING.md has no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("SCALING.md has no {end}"));
    format!("{before}{begin}\n{table}\n{end}{after}")
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/ringcast/SCALING.md")
}

#[test]
fn a_table_is_put_between_its_marks() {
    let text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n";
    assert_eq!(with(text, "x", "new\n"), "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb\n");
}
